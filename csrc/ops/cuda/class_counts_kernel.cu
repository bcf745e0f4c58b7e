// One thread a label, one integer atomic each: exact, whatever the order.

#include "common/cuda_launch.h"
#include "ops/cuda/class_counts_kernel.h"

namespace fedkern {
namespace {

constexpr int kThreads = 256;

__global__ void __launch_bounds__(kThreads)
    count_labels(const int64_t* __restrict__ labels, int64_t size, int64_t num_classes,
                 int64_t ignore_index, unsigned long long* __restrict__ counts) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < size; i += step) {
    const int64_t label = labels[i];
    if (label == ignore_index) continue;
    assert(label >= 0 && label < num_classes && "target must hold class indices in [0, C)");
    atomicAdd(&counts[label], 1ull);
  }
}

}  // namespace

cudaError_t count_labels_cuda(const int64_t* labels, int64_t size, int64_t num_classes,
                              int64_t ignore_index, int64_t* counts, cudaStream_t stream) {
  FEDKERN_LAUNCH(count_labels, grid_size((size + kThreads - 1) / kThreads), kThreads, stream,
                 labels, size, num_classes, ignore_index,
                 reinterpret_cast<unsigned long long*>(counts));
  return cudaGetLastError();
}

}  // namespace fedkern
