#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace fedkern {

// Draws result [points, size] with the key that lies at `key` on the device. One launch.
template <typename T>
cudaError_t simplex_sample_cuda(const int64_t* key, int64_t points, int64_t size, T* result,
                                cudaStream_t stream);

}  // namespace fedkern
