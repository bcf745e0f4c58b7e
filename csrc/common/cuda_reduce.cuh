#pragma once

// Reductions over neighbouring lanes of a warp, and over a block. Always in the same order, so the
// bits never change; every thread gets the result, and all of the warp or block must call.

#include <cuda_runtime.h>

#include <cstdint>

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

// Whether this block is the last of `blocks` to come here: it sees what thread 0 of each has
// written before. All of the block call, once; *ticket was 0.
__device__ inline bool is_last_block(unsigned* ticket, int64_t blocks) {
  __shared__ bool last;
  if (threadIdx.x == 0) {
    __threadfence();  // what this thread has written before its ticket
    last = atomicAdd(ticket, 1u) == blocks - 1;
    __threadfence();  // the ticket before what the others have written
  }
  __syncthreads();
  return last;
}

}  // namespace fedkern
