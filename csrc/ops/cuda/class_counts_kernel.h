#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace fedkern {

// Adds the classes of each group's labels[0..size) to its counts[0..num_classes), which must be 0
// before. Asserts on a label out of range. One launch.
cudaError_t class_counts_cuda(const int64_t* labels, int64_t groups, int64_t size,
                              int64_t num_classes, int64_t ignore_index, int64_t* counts,
                              cudaStream_t stream);

}  // namespace fedkern
