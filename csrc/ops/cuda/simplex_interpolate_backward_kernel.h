#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "ops/simplex_interpolate_list.h"

namespace fedkern {

// Device pointers, but for `tensors`.
template <typename scalar_t>
struct SimplexInterpolateBackwardCudaArguments {
  const SimplexTensor<scalar_t, const scalar_t>* tensors;
  int64_t num_tensors;
  int64_t num_groups;     // B
  int64_t num_points;     // G
  int64_t num_endpoints;  // M
  int64_t num_pieces;     // of a group's rows, in all tensors
  double* products;       // scratch, [B, G, M, num_pieces]
  double* result;         // [B, G, M]
};

// How many pieces a row of `size` elements is cut into.
template <typename scalar_t>
int64_t simplex_interpolate_backward_cuda_pieces(int64_t size);

// How many tasks each piece of a group's rows makes.
int64_t simplex_interpolate_backward_cuda_tiles(int64_t num_points, int64_t num_endpoints);

// One launch for every kMostTensors tensors (simplex_interpolate_table.cuh), and one that sums what
// these found.
template <typename scalar_t>
cudaError_t simplex_interpolate_backward_cuda(
    const SimplexInterpolateBackwardCudaArguments<scalar_t>& arguments, cudaStream_t stream);

}  // namespace fedkern
