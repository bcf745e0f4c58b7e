#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "ops/sgd_step_math.h"
#include "ops/sgd_step_rows.h"

namespace fedkern {

// Device pointers throughout.
template <typename scalar_t>
struct SgdStepCudaArguments {
  SgdStepRows<scalar_t> rows;
  SgdStepTerms terms;
  SgdStepFactors<accumulate_t<scalar_t>> factors;  // without clipping, for an alpha of 1
  double max_norm;
  double* sums;  // sgd_step_cuda_sums() of scratch; null: no clipping
  bool zero_grad;
};

template <typename scalar_t>
int64_t sgd_step_cuda_sums(const SgdStepRows<scalar_t>& rows);

// Two launches; one without clipping.
template <typename scalar_t>
cudaError_t sgd_step_cuda(const SgdStepCudaArguments<scalar_t>& arguments, cudaStream_t stream);

}  // namespace fedkern
