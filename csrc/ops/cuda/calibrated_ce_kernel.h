#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "common/accumulate.h"
#include "common/row_layout.h"
#include "ops/calibrated_ce_math.h"

namespace fedkern {

// Device pointers throughout.
template <typename scalar_t>
struct CalibratedCECudaArguments {
  using T = accumulate_t<scalar_t>;

  const scalar_t* logits;
  RowLayout logits_layout;
  const int64_t* target;  // one label a row, in row order
  int64_t groups;
  int64_t rows;  // of a group
  int64_t num_classes;

  const T* class_counts;        // [C] or [groups, C], or null: the histogram of a group's labels
  int64_t class_counts_stride;  // from group to group: 0 or C
  const T* weight;              // likewise, or null: all 1
  int64_t weight_stride;
  const T* logit_adjustment;  // likewise, or null: all 0
  int64_t logit_adjustment_stride;

  Calibration calibration;
  Reduction reduction;
  int64_t ignore_index;
  double label_smoothing;

  scalar_t* loss;      // [groups], or [groups * rows] for Reduction::kNone
  scalar_t* gradient;  // or null
  RowLayout gradient_layout;

  void* workspace;  // calibrated_ce_workspace() bytes, 256-byte aligned, uninitialised
};

// Bytes of working memory that these arguments need (whatever `workspace` is).
template <typename scalar_t>
size_t calibrated_ce_workspace(const CalibratedCECudaArguments<scalar_t>& arguments);

// Loss and, if wanted, gradient; asserts on bad labels and counts. At most two launches.
template <typename scalar_t>
cudaError_t calibrated_ce_forward_cuda(const CalibratedCECudaArguments<scalar_t>& arguments,
                                       cudaStream_t stream);

}  // namespace fedkern
