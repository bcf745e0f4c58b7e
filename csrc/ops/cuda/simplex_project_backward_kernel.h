#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

namespace fedkern {

// Device pointers throughout.
template <typename scalar_t>
struct SimplexProjectBackwardCudaArguments {
  const scalar_t* grad;  // contiguous rows
  const uint8_t* support;
  int64_t rows;
  int64_t length;  // M
  scalar_t* result;
};

// One launch.
template <typename scalar_t>
cudaError_t simplex_project_backward_cuda(
    const SimplexProjectBackwardCudaArguments<scalar_t>& arguments, cudaStream_t stream);

}  // namespace fedkern
