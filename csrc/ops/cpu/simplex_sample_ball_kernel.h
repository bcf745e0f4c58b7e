#pragma once

#include <cstdint>
#include <tuple>

#include "common/cpu_capability.h"
#include "ops/simplex_sample_ball_math.h"

namespace fedkern {

template <typename T>
struct SimplexSampleBallArguments {
  uint64_t key;
  BallMethod method;
  const T* center;       // [centres, M]
  const double* radius;  // one for all centres, or one each
  bool radius_each;
  int64_t size;         // M
  int64_t num_samples;  // of a centre
  T* result;            // [centres, num_samples, M]
};

// Points [begin, end) of the result.
template <typename T>
using SimplexSampleBallRun = void (*)(const SimplexSampleBallArguments<T>&, int64_t begin,
                                      int64_t end);

using SimplexSampleBallKernels =
    std::tuple<SimplexSampleBallRun<float>, SimplexSampleBallRun<double>>;
FEDKERN_DECLARE_VARIANTS(SimplexSampleBallKernels, simplex_sample_ball_kernels)

}  // namespace fedkern
