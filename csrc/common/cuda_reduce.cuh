#pragma once

// Reductions over neighbouring lanes of a warp, and over a block. Always in the same order, so the
// bits never change; every thread gets the result, and all of the warp or block must call.

#include <cuda_runtime.h>

namespace fedkern {

struct Sum {
  template <typename T>
  __device__ T operator()(T a, T b) const {
    return a + b;
  }
};

// Of a number and a nan, the number.
struct Maximum {
  template <typename T>
  __device__ T operator()(T a, T b) const {
    return max(a, b);
  }
};

// Over kLanes lanes, a power of two, that begin at a multiple of it.
template <int kLanes, typename T, typename Combine>
__device__ T lane_reduce(T value, const Combine& combine) {
#pragma unroll
  for (int offset = kLanes / 2; offset > 0; offset /= 2) {
    value = combine(value, __shfl_xor_sync(0xffffffffu, value, offset));
  }
  return value;
}

// Over a block of kThreads threads, a multiple of 32.
template <int kThreads, typename T, typename Combine>
__device__ T block_reduce(T value, const Combine& combine) {
  constexpr int kWarps = kThreads / 32;
  static_assert(kWarps <= 32 && (kWarps & (kWarps - 1)) == 0, "a power of two of warps");
  __shared__ T of_warp[kWarps];
  value = lane_reduce<32>(value, combine);
  __syncthreads();  // of_warp may still be read for an earlier reduction
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = value;
  __syncthreads();
  return lane_reduce<kWarps>(of_warp[threadIdx.x % kWarps], combine);
}

template <int kThreads, typename T>
__device__ T block_sum(T value) {
  return block_reduce<kThreads>(value, Sum{});
}

template <int kThreads, typename T>
__device__ T block_max(T value) {
  return block_reduce<kThreads>(value, Maximum{});
}

}  // namespace fedkern
