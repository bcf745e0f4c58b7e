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

namespace fedkern {

// What one group's rows share.
template <typename T>
struct CalibratedCEGroup {
  const T* n;  // [C] class counts
  const T* w;  // [C] class weights, or null: neither weights nor label smoothing
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

// Rows that `scratch` must have room for, C elements each: none where a row can be worked on in the
// gradient itself, one where it has to be converted, a tile where it has to be gathered.
template <typename scalar_t>
FEDKERN_ALWAYS_INLINE int64_t
calibrated_ce_scratch_rows(const CalibratedCEArguments<scalar_t>& arguments) {
  constexpr int64_t kTileRows = 16, kTileElements = 65536;
  const bool contiguous = arguments.logits_layout.class_stride == 1 &&
                          (!arguments.gradient || arguments.gradient_layout.class_stride == 1);
  if (!contiguous) {
    const int64_t rows = kTileElements / arguments.num_classes;
    return rows < 1 ? 1 : rows > kTileRows ? kTileRows : rows;
  }
  return sizeof(scalar_t) < sizeof(accumulate_t<scalar_t>) ? 1 : 0;
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
