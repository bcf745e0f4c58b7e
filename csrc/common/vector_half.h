#pragma once

// Rows of half types to float and back.
//
// For files that are compiled once per CPU capability (common/cpu_capability.h).

#include <ATen/cpu/vec/functional.h>
#include <ATen/cpu/vec/vec.h>

#include <cstdint>

#include "common/macros.h"

namespace fedkern {

// scalar_t is c10::BFloat16 or c10::Half.
template <typename scalar_t>
FEDKERN_ALWAYS_INLINE void to_float(const scalar_t* from, float* to, int64_t size) {
  int64_t i = 0;
#if defined(CPU_CAPABILITY_AVX2) || defined(CPU_CAPABILITY_AVX512)
  using Half = at::vec::Vectorized<scalar_t>;
  using Float = at::vec::Vectorized<float>;
  for (; i + Half::size() <= size; i += Half::size()) {
    const auto [low, high] = at::vec::convert_to_float<scalar_t>(Half::loadu(from + i));
    low.store(to + i);
    high.store(to + i + Float::size());
  }
#endif
  for (; i < size; ++i) to[i] = static_cast<float>(from[i]);
}

template <typename scalar_t>
FEDKERN_ALWAYS_INLINE void from_float(const float* from, scalar_t* to, int64_t size) {
  int64_t i = 0;
#if defined(CPU_CAPABILITY_AVX2) || defined(CPU_CAPABILITY_AVX512)
  using Half = at::vec::Vectorized<scalar_t>;
  using Float = at::vec::Vectorized<float>;
  for (; i + Half::size() <= size; i += Half::size()) {
    at::vec::convert_from_float<scalar_t>(Float::loadu(from + i),
                                          Float::loadu(from + i + Float::size()))
        .store(to + i);
  }
#endif
  for (; i < size; ++i) to[i] = static_cast<scalar_t>(from[i]);
}

}  // namespace fedkern
