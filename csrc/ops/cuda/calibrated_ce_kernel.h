#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

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
  int64_t rows;
  int64_t num_classes;

  const T* given_counts;  // [C] or null: the labels' histogram
  const T* weight;        // [C] or null: all 1

  Calibration calibration;
  Reduction reduction;
  int64_t ignore_index;
  double label_smoothing;

  // Working memory.
  int64_t* histogram;  // [C], zero
  T* n;                // [C] class counts
  double* sums;        // [2]: the mean's denominator (else 1) and the sum of the weights
  double* row_losses;  // [rows], or null for Reduction::kNone

  scalar_t* loss;      // one, or [rows] for Reduction::kNone
  scalar_t* gradient;  // or null
  RowLayout gradient_layout;
};

// Loss and, if wanted, gradient; asserts on bad labels and counts.
template <typename scalar_t>
cudaError_t calibrated_ce_forward_cuda(const CalibratedCECudaArguments<scalar_t>& arguments,
                                       cudaStream_t stream);

extern template cudaError_t calibrated_ce_forward_cuda(const CalibratedCECudaArguments<float>&,
                                                       cudaStream_t);
extern template cudaError_t calibrated_ce_forward_cuda(const CalibratedCECudaArguments<double>&,
                                                       cudaStream_t);
extern template cudaError_t calibrated_ce_forward_cuda(const CalibratedCECudaArguments<__half>&,
                                                       cudaStream_t);
extern template cudaError_t calibrated_ce_forward_cuda(
    const CalibratedCECudaArguments<__nv_bfloat16>&, cudaStream_t);

}  // namespace fedkern
