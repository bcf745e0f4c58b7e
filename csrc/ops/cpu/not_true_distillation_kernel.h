#pragma once

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <cstdint>
#include <tuple>

#include "common/accumulate.h"
#include "common/cpu_capability.h"
#include "common/macros.h"
#include "common/row_layout.h"
#include "ops/cpu/row_tiles.h"

namespace fedkern {

template <typename scalar_t>
struct NotTrueDistillationArguments {
  const scalar_t* student;
  RowLayout student_layout;
  const scalar_t* teacher;
  RowLayout teacher_layout;
  const int64_t* target;  // one label a row, in row order
  int64_t num_classes;
  int64_t ignore_index;
  double tau;

  scalar_t* row_loss;  // [rows] or null
  scalar_t* gradient;  // or null
  RowLayout gradient_layout;
};

// Scratch memory has two rows, the student's and the teacher's, for each row of a tile.
template <typename scalar_t>
FEDKERN_ALWAYS_INLINE int64_t
not_true_tile_rows(const NotTrueDistillationArguments<scalar_t>& arguments) {
  const int64_t row_bytes =
      2 * padded(arguments.num_classes) * static_cast<int64_t>(sizeof(accumulate_t<scalar_t>));
  const int64_t rows = kRowTileBytes / row_bytes;
  return rows < 1 ? 1 : rows > kMostTileRows ? kMostTileRows : rows;
}

// Elements of scratch memory that a call needs, aligned to a cache line.
template <typename scalar_t>
FEDKERN_ALWAYS_INLINE int64_t
not_true_distillation_scratch_size(const NotTrueDistillationArguments<scalar_t>& arguments) {
  return not_true_tile_rows(arguments) * 2 * padded(arguments.num_classes);
}

// Rows [begin, end), all of one group, with the reduction's factor: writes their losses and
// gradients, returns the sum of their losses, unscaled.
template <typename scalar_t>
using NotTrueDistillationRun = double (*)(const NotTrueDistillationArguments<scalar_t>&,
                                          double factor, int64_t begin, int64_t end,
                                          accumulate_t<scalar_t>* scratch);

using NotTrueDistillationKernels =
    std::tuple<NotTrueDistillationRun<float>, NotTrueDistillationRun<double>,
               NotTrueDistillationRun<c10::BFloat16>, NotTrueDistillationRun<c10::Half>>;
FEDKERN_DECLARE_VARIANTS(NotTrueDistillationKernels, not_true_distillation_kernels)

}  // namespace fedkern
