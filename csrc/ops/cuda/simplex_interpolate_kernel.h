#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "common/accumulate.h"
#include "ops/simplex_interpolate_list.h"

namespace fedkern {

// Device pointers, but for `tensors`.
template <typename scalar_t>
struct SimplexInterpolateCudaArguments {
  const SimplexTensor<scalar_t, scalar_t>* tensors;
  int64_t num_tensors;
  const accumulate_t<scalar_t>* alpha;  // [B, G, M], contiguous
  int64_t num_points;                   // G
  int64_t num_endpoints;                // M
};

// How many tasks a tensor of `size` elements an endpoint has for each group.
template <typename scalar_t>
int64_t simplex_interpolate_cuda_tasks(int64_t size, int64_t num_points);

// One launch for every kMostTensors tensors (simplex_interpolate_table.cuh).
template <typename scalar_t>
cudaError_t simplex_interpolate_cuda(const SimplexInterpolateCudaArguments<scalar_t>& arguments,
                                     cudaStream_t stream);

}  // namespace fedkern
