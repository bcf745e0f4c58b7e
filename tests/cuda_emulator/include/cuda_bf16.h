#pragma once

#include "cuda_emulator/half.h"
#include "cuda_runtime.h"

using __nv_bfloat16 = cuda_emulator::SmallFloat<8, 7>;
CUDA_EMULATOR_HALF_FUNCTIONS(__nv_bfloat16, __nv_bfloat162, bfloat16, bfloat162)

using nv_bfloat16 = __nv_bfloat16;
using nv_bfloat162 = __nv_bfloat162;
