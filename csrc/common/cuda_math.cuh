#pragma once

#include <cuda_runtime.h>

#include <cmath>

namespace fedkern {

// exp(x). In float one multiplication and one instruction of the special function unit: 2 ulp and
// |x| / 2 ulp more, as much as the rounding of a logit's distance from the maximum has cost
// already. Results below the least normal number are 0.
__device__ inline float exponential(float x) {
#if defined(FEDKERN_CUDA_EMULATOR)
  return std::exp(x);
#else
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x * 1.4426950408889634f));
  return y;
#endif
}

__device__ inline double exponential(double x) { return std::exp(x); }

}  // namespace fedkern
