#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "ops/simplex_sample_ball_math.h"

namespace fedkern {

template <typename T>
struct SimplexSampleBallCudaArguments {
  const int64_t* key;
  BallMethod method;
  const T* center;        // [centers, size]
  const double* radii;    // one for each centre, or null
  double radius;          // else
  int64_t centers, size;  // K, M
  int64_t num_samples;
  T* result;  // [centers, num_samples, size]
};

// Bytes of device memory that a launch needs, aligned to 8: 0 unless M is large.
int64_t simplex_sample_ball_scratch(int64_t size, int64_t centers, int64_t num_samples,
                                    int64_t element_bytes);

// One launch. Asserts that centres and radii are what they should be.
template <typename T>
cudaError_t simplex_sample_ball_cuda(const SimplexSampleBallCudaArguments<T>& arguments,
                                     void* scratch, cudaStream_t stream);

}  // namespace fedkern
