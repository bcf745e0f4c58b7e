#pragma once

// Reductions over a block of kThreads threads (a multiple of 32). Always in the same order, so the
// bits never change; every thread gets the result, and all of them must call.

#include <cuda_runtime.h>

namespace fedkern {

template <int kThreads, typename T, typename Combine>
__device__ T block_reduce(T value, const Combine& combine) {
  constexpr int kWarps = kThreads / 32;
  __shared__ T of_warp[kWarps];
  for (int offset = 16; offset > 0; offset /= 2) {
    value = combine(value, __shfl_xor_sync(0xffffffffu, value, offset));
  }
  __syncthreads();  // of_warp may still be read for an earlier reduction
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = value;
  __syncthreads();
  value = of_warp[0];
  for (int warp = 1; warp < kWarps; ++warp) value = combine(value, of_warp[warp]);
  return value;
}

template <int kThreads, typename T>
__device__ T block_sum(T value) {
  return block_reduce<kThreads>(value, [](T a, T b) { return a + b; });
}

template <int kThreads, typename T>
__device__ T block_max(T value) {
  return block_reduce<kThreads>(value, [](T a, T b) { return a > b ? a : b; });
}

}  // namespace fedkern
