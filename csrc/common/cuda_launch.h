#pragma once

// How CUDA kernels are launched and how they refuse bad data; no torch header.

#undef NDEBUG  // release builds define it, but a bad label must stop a kernel there, too
#include <cuda_runtime.h>

#include <cassert>
#include <cstdint>

// Kernels with commas in their name go in parentheses: FEDKERN_LAUNCH((kernel<A, B>), ...).
#define FEDKERN_LAUNCH(kernel, grid, block, stream, ...) \
  kernel<<<dim3(grid), dim3(block), 0, stream>>>(__VA_ARGS__)

namespace fedkern {

// Enough blocks to fill any GPU; kernels loop over what is left.
inline unsigned grid_size(int64_t blocks_wanted) {
  constexpr int64_t kMost = 1 << 16;
  return static_cast<unsigned>(blocks_wanted < 1       ? 1
                               : blocks_wanted < kMost ? blocks_wanted
                                                       : kMost);
}

}  // namespace fedkern
