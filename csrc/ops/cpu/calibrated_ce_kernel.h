#pragma once

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <cstdint>
#include <tuple>

#include "common/accumulate.h"
#include "common/cpu_capability.h"
#include "common/macros.h"
#include "common/row_layout.h"
#include "ops/calibrated_ce_math.h"
#include "ops/cpu/row_tiles.h"

namespace fedkern {

// What one group's rows share.
template <typename T>
struct CalibratedCEGroup {
  const T* n;  // [padded(C)] class counts, then zeros
  const T* w;  // [padded(C)] class weights, then zeros; or null: no weights, no label smoothing
  const T* adjustment;  // [padded(C)] what is added to the logits, then zeros; or null
  LabelSmoothing smoothing;
  double factor;  // 1 over the mean's denominator, else 1
};

template <typename scalar_t>
struct CalibratedCEArguments {
  const scalar_t* logits;
  RowLayout logits_layout;
  const int64_t* target;  // one label a row, in row order
  int64_t num_classes;
  Calibration calibration;
  int64_t ignore_index;

  scalar_t* row_loss;  // [rows] or null
  scalar_t* gradient;  // or null
  RowLayout gradient_layout;
};

// ---- tiles: the rows that are worked on at a time, in scratch memory ----------------------------

constexpr int64_t kColumnTileBytes = 64 << 10;  // long runs of each class matter more than L1

// Positions next to each other in memory, but not classes: then a vector's lanes are rows.
template <typename scalar_t>
FEDKERN_ALWAYS_INLINE bool lanes_are_rows(const CalibratedCEArguments<scalar_t>& arguments) {
  const RowLayout &from = arguments.logits_layout, &to = arguments.gradient_layout;
  return from.class_stride != 1 && from.position_stride == 1 && from.positions >= 8 &&
         (!arguments.gradient || to.position_stride == 1);
}

template <typename scalar_t>
FEDKERN_ALWAYS_INLINE int64_t tile_rows(const CalibratedCEArguments<scalar_t>& arguments) {
  const bool columns = lanes_are_rows(arguments);
  const int64_t least = columns ? padded(1) : 1;  // whole vectors of rows
  const int64_t rows = (columns ? kColumnTileBytes : kRowTileBytes) /
                       static_cast<int64_t>(sizeof(accumulate_t<scalar_t>)) /
                       padded(arguments.num_classes) / least * least;
  return rows < least ? least : rows > kMostTileRows ? kMostTileRows : rows;
}

// Elements of scratch memory that a call needs, aligned to a cache line.
template <typename scalar_t>
FEDKERN_ALWAYS_INLINE int64_t
calibrated_ce_scratch_size(const CalibratedCEArguments<scalar_t>& arguments) {
  return tile_rows(arguments) * padded(arguments.num_classes);
}

// Rows [begin, end), all of one group: writes their losses and gradients, returns the sum of their
// losses, unscaled.
template <typename scalar_t>
using CalibratedCERun = double (*)(const CalibratedCEArguments<scalar_t>&,
                                   const CalibratedCEGroup<accumulate_t<scalar_t>>&, int64_t begin,
                                   int64_t end, accumulate_t<scalar_t>* scratch);

using CalibratedCEKernels = std::tuple<CalibratedCERun<float>, CalibratedCERun<double>,
                                       CalibratedCERun<c10::BFloat16>, CalibratedCERun<c10::Half>>;
FEDKERN_DECLARE_VARIANTS(CalibratedCEKernels, calibrated_ce_kernels)

}  // namespace fedkern
