#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "common/accumulate.h"
#include "ops/simplex_project_math.h"

namespace fedkern {

// Device pointers throughout.
template <typename scalar_t>
struct SimplexProjectCudaArguments {
  const scalar_t* x;  // contiguous rows
  int64_t rows;
  int64_t length;  // M
  RowZ<accumulate_t<scalar_t>> z;
  scalar_t* result;
  uint8_t* support;
};

// One launch. Asserts that z is valid.
template <typename scalar_t>
cudaError_t simplex_project_cuda(const SimplexProjectCudaArguments<scalar_t>& arguments,
                                 cudaStream_t stream);

}  // namespace fedkern
