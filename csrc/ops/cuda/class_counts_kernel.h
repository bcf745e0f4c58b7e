#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace fedkern {

// Adds the classes of labels[0..size) to counts[0..num_classes). Asserts on a label out of range.
cudaError_t count_labels_cuda(const int64_t* labels, int64_t size, int64_t num_classes,
                              int64_t ignore_index, int64_t* counts, cudaStream_t stream);

}  // namespace fedkern
