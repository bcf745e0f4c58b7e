#pragma once

// Chunk<scalar_t>: a register of any floating type, as one or two vectors of what it accumulates
// in.
//
// For files that are compiled once per CPU capability (common/cpu_capability.h).

#include <cstdint>
#include <type_traits>

#include "common/accumulate.h"
#include "common/macros.h"
#include "common/vector.h"

namespace fedkern {

template <typename scalar_t>
struct Chunk {
  using T = accumulate_t<scalar_t>;
  using V = Vector<T>;
#if defined(CPU_CAPABILITY_DEFAULT)
  static constexpr int64_t kParts = 1;
#else
  static constexpr int64_t kParts = sizeof(T) / sizeof(scalar_t);
#endif
  static constexpr int64_t kSize = kParts * V::size();
  V part[kParts];

  // The elements behind `count` are 0.
  static FEDKERN_ALWAYS_INLINE Chunk load(const scalar_t* from, int64_t count) {
    if constexpr (std::is_same_v<scalar_t, T>) {
      return {V::loadu(from, count)};
    } else if constexpr (kParts == 2) {
      const auto [low, high] =
          at::vec::convert_to_float<scalar_t>(at::vec::Vectorized<scalar_t>::loadu(from, count));
      return {low, high};
    } else {
      T lanes[kSize] = {};
      for (int64_t i = 0; i < count; ++i) lanes[i] = static_cast<T>(from[i]);
      return {V::loadu(lanes)};
    }
  }

  FEDKERN_ALWAYS_INLINE void store(scalar_t* to, int64_t count) const {
    if constexpr (std::is_same_v<scalar_t, T>) {
      part[0].store(to, count);
    } else if constexpr (kParts == 2) {
      at::vec::convert_from_float<scalar_t>(part[0], part[1]).store(to, count);
    } else {
      T lanes[kSize];
      part[0].store(lanes);
      for (int64_t i = 0; i < count; ++i) to[i] = static_cast<scalar_t>(lanes[i]);
    }
  }
};

// Calls body(j, count) for `size` elements in chunks of kSize: whole ones first, the rest last.
template <int64_t kSize, typename Body>
FEDKERN_ALWAYS_INLINE void for_each_chunk(int64_t size, const Body& body) {
  int64_t j = 0;
  for (; j + kSize <= size; j += kSize) body(j, kSize);
  if (j < size) body(j, size - j);
}

}  // namespace fedkern
