#pragma once

#include <cstdint>
#include <tuple>

#include "common/cpu_capability.h"

namespace fedkern {

template <typename T>
struct SimplexSampleArguments {
  uint64_t key;
  int64_t size;  // M
  T* result;     // [points, M]
};

// Points [begin, end).
template <typename T>
using SimplexSampleRun = void (*)(const SimplexSampleArguments<T>&, int64_t begin, int64_t end);

using SimplexSampleKernels = std::tuple<SimplexSampleRun<float>, SimplexSampleRun<double>>;
FEDKERN_DECLARE_VARIANTS(SimplexSampleKernels, simplex_sample_kernels)

}  // namespace fedkern
