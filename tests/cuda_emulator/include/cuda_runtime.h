#pragma once

// Stands in for CUDA's header of this name when g++ compiles kernels for the emulator.

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>

#include "cuda_emulator/arithmetic.h"
#include "cuda_emulator/collectives.h"
#include "cuda_emulator/emulator.h"
#include "cuda_emulator/memory.h"
#include "cuda_runtime_api.h"
#include "vector_types.h"

// ---- qualifiers --------------------------------------------------------------------------------

#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(bytes) __attribute__((aligned(bytes)))

// Blocks run one at a time, so one copy of a shared variable does. As the only thread-local
// variables of this library they lie together, and the emulator can fill them before each block.
// With AddressSanitizer they are not filled: it guards the ends of plain static variables only.
// `alignas(16) __shared__ T x` and `__shared__ __align__(16) T x` compile; C++ wants no alignas
// behind the first word.
#if defined(__SANITIZE_ADDRESS__)
#define __shared__ static
#else
#define __shared__ static thread_local
#endif

// ---- where a thread is -------------------------------------------------------------------------

extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;
constexpr int warpSize = cuda_emulator::kWarpLanes;
