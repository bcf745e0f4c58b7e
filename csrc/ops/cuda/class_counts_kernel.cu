// One launch. A block counts kBlockLabels labels of a group for a range of classes in shared
// memory, then adds what it found to the result: integers, exact whatever the order.

#include "ops/cuda/class_counts.cuh"
#include "ops/cuda/class_counts_kernel.h"

namespace fedkern {
namespace {

constexpr int kThreads = 512;
constexpr int64_t kBlockLabels = 16384;

__global__ void __launch_bounds__(kThreads)
    count_classes(const int64_t* __restrict__ labels, int64_t groups, int64_t size,
                  int64_t num_classes, int64_t ignore_index,
                  unsigned long long* __restrict__ counts) {
  __shared__ unsigned histogram[kRangeClasses];
  const int64_t ranges = (num_classes + kRangeClasses - 1) / kRangeClasses;
  const int64_t parts = (size + kBlockLabels - 1) / kBlockLabels;
  for (int64_t task = blockIdx.x; task < groups * parts * ranges; task += gridDim.x) {
    const int64_t group = task / (parts * ranges);
    const int64_t begin = task / ranges % parts * kBlockLabels;
    const int64_t first = task % ranges * kRangeClasses;
    const int range = static_cast<int>(min(num_classes - first, int64_t{kRangeClasses}));
    count_labels<kThreads>(labels + group * size + begin, min(size - begin, kBlockLabels),
                           num_classes, ignore_index, first, range, histogram);
    for (int i = threadIdx.x; i < range; i += kThreads) {
      if (histogram[i] > 0) atomicAdd(&counts[group * num_classes + first + i], histogram[i]);
    }
    __syncthreads();  // before the next task clears the histogram
  }
}

}  // namespace

cudaError_t class_counts_cuda(const int64_t* labels, int64_t groups, int64_t size,
                              int64_t num_classes, int64_t ignore_index, int64_t* counts,
                              cudaStream_t stream) {
  const int64_t ranges = (num_classes + kRangeClasses - 1) / kRangeClasses;
  const int64_t tasks = groups * ((size + kBlockLabels - 1) / kBlockLabels) * ranges;
  if (tasks == 0) return cudaSuccess;
  FEDKERN_LAUNCH(count_classes, grid_size(tasks), kThreads, 0, stream, labels, groups, size,
                 num_classes, ignore_index, reinterpret_cast<unsigned long long*>(counts));
  return cudaGetLastError();
}

}  // namespace fedkern
