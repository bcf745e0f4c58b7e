#pragma once

#include "cuda_emulator/half.h"
#include "cuda_runtime.h"

using __half = cuda_emulator::SmallFloat<5, 10>;
CUDA_EMULATOR_HALF_FUNCTIONS(__half, __half2, half, half2)

using half = __half;
using half2 = __half2;
