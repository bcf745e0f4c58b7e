#pragma once

// A thread's share of a row: as many elements as 16 bytes hold, next to each other (kVectors), or
// one behind every kThreads elements.

#include <cuda_runtime.h>

#include <cstdint>

#include "common/cuda_vector.cuh"

namespace fedkern {

// `row` is where the share begins, with `left` elements to the end of the row; what would lie
// behind it is 0.
template <bool kVectors, int kThreads, typename scalar_t, typename T>
__device__ void load_share(const scalar_t* row, int64_t left,
                           T (&values)[Vector<scalar_t>::kSize]) {
  constexpr int kWidth = Vector<scalar_t>::kSize, kStep = kVectors ? 1 : kThreads;
  if (kVectors && left >= kWidth) {
    unpack(load_cached(row), values);
    return;
  }
#pragma unroll
  for (int i = 0; i < kWidth; ++i) {
    values[i] = i * kStep < left ? static_cast<T>(row[i * kStep]) : T(0);
  }
}

// kKept: it will be read again soon.
template <bool kVectors, int kThreads, bool kKept = false, typename scalar_t, typename T>
__device__ void store_share(scalar_t* row, int64_t left,
                            const T (&values)[Vector<scalar_t>::kSize]) {
  constexpr int kWidth = Vector<scalar_t>::kSize, kStep = kVectors ? 1 : kThreads;
  if (kVectors && left >= kWidth) {
    if constexpr (kKept) {
      store_cached(row, pack<scalar_t>(values));
    } else {
      store_streaming(row, pack<scalar_t>(values));
    }
    return;
  }
#pragma unroll
  for (int i = 0; i < kWidth; ++i) {
    if (i * kStep < left) row[i * kStep] = static_cast<scalar_t>(values[i]);
  }
}

// Where a thread's share begins in a piece of kThreads shares.
template <bool kVectors, typename scalar_t>
__device__ int64_t share_offset() {
  return kVectors ? threadIdx.x * Vector<scalar_t>::kSize : threadIdx.x;
}

}  // namespace fedkern
