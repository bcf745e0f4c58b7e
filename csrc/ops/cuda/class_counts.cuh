#pragma once

// The histogram of labels, in shared memory: one integer atomic a label, exact whatever the order.
// A block counts some labels for a range of classes, so it fits any number of classes.

#include <cstdint>

#include "common/cuda_launch.h"

namespace fedkern {

constexpr int kRangeClasses = 8192;  // 32 KB of counters

// histogram[i] = how often class first + i occurs among labels[0..size), for i < range. All of the
// block call; all see the result.
template <int kThreads>
__device__ void count_labels(const int64_t* __restrict__ labels, int64_t size, int64_t num_classes,
                             int64_t ignore_index, int64_t first, int range, unsigned* histogram) {
  constexpr int kInFlight = 4;
#pragma unroll 1
  for (int i = threadIdx.x; i < range; i += kThreads) histogram[i] = 0;
  __syncthreads();
#pragma unroll 1
  for (int64_t i = threadIdx.x; i < size; i += kInFlight * kThreads) {
    int64_t label[kInFlight];
#pragma unroll
    for (int k = 0; k < kInFlight; ++k) {
      label[k] = i + k * kThreads < size ? labels[i + k * kThreads] : ignore_index;
    }
#pragma unroll
    for (int k = 0; k < kInFlight; ++k) {
      if (label[k] == ignore_index) continue;
      assert(label[k] >= 0 && label[k] < num_classes && "target must hold class indices in [0, C)");
      const int64_t place = label[k] - first;
      if (place >= 0 && place < range) atomicAdd(&histogram[place], 1u);
    }
  }
  __syncthreads();
}

}  // namespace fedkern
