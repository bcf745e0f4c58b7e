#pragma once

#include <c10/util/Exception.h>

#include "cuda_emulator/emulator.h"
#include "cuda_runtime_api.h"

// Like c10's: the error is cleared, if it can be, and thrown. The emulator knows more about it.
#define C10_CUDA_CHECK(expression)                                                      \
  do {                                                                                  \
    const cudaError_t cuda_emulator_error = (expression);                               \
    if (cuda_emulator_error != cudaSuccess) {                                           \
      static_cast<void>(cudaGetLastError());                                            \
      TORCH_CHECK(false, "CUDA error: ", cudaGetErrorString(cuda_emulator_error), "\n", \
                  ::cuda_emulator::last_message());                                     \
    }                                                                                   \
  } while (false)

#define C10_CUDA_KERNEL_LAUNCH_CHECK() C10_CUDA_CHECK(cudaGetLastError())
