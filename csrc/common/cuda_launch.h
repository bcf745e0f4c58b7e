#pragma once

// How CUDA kernels are launched, find their dynamic shared memory and refuse bad data; no torch
// header. tests/cuda_emulator runs the same source on the CPU.

#undef NDEBUG  // release builds define it, but a bad label must stop a kernel there, too
#include <cuda_runtime.h>

#include <cassert>
#include <cstdint>

// FEDKERN_LAUNCH(kernel, grid, block, shared_bytes, stream, arguments...)
//   Kernels with commas in their name go in parentheses: FEDKERN_LAUNCH((kernel<A, B>), ...).
// FEDKERN_DYNAMIC_SHARED(T, name)
//   In a kernel: T* name, the shared_bytes of its block, aligned to 16 bytes.
#if defined(FEDKERN_CUDA_EMULATOR)
#define FEDKERN_LAUNCH(kernel, grid, block, shared_bytes, stream, ...)            \
  ::cuda_emulator::launch(#kernel, kernel, dim3(grid), dim3(block), shared_bytes, \
                          stream __VA_OPT__(, ) __VA_ARGS__)
#define FEDKERN_DYNAMIC_SHARED(T, name) \
  T* const name = static_cast<T*>(::cuda_emulator::dynamic_shared())
#else
#define FEDKERN_LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
  kernel<<<dim3(grid), dim3(block), shared_bytes, stream>>>(__VA_ARGS__)
// The array's name and type are the same in every kernel: nvcc refuses one name with two types.
#define FEDKERN_DYNAMIC_SHARED(T, name)                                   \
  extern __shared__ __align__(16) unsigned char fedkern_dynamic_shared[]; \
  T* const name = reinterpret_cast<T*>(fedkern_dynamic_shared)
#endif

namespace fedkern {

// Enough blocks to fill any GPU; kernels loop over what is left.
inline unsigned grid_size(int64_t blocks_wanted) {
  constexpr int64_t kMost = 1 << 16;
  return static_cast<unsigned>(blocks_wanted < 1       ? 1
                               : blocks_wanted < kMost ? blocks_wanted
                                                       : kMost);
}

}  // namespace fedkern
