#pragma once

// How the kernels of simplex_project and of its backward walk over rows.
//
// For files that are compiled once per CPU capability (common/cpu_capability.h).

#include <cstdint>
#include <type_traits>
#include <utility>

#include "common/accumulate.h"
#include "common/macros.h"
#include "common/vector.h"
#include "common/vector_chunk.h"
#include "ops/cpu/simplex_project_scratch.h"
#include "ops/simplex_project_math.h"

namespace fedkern {

namespace detail {

template <typename Call, int... kBelow>
FEDKERN_ALWAYS_INLINE void call_with_length(int64_t length, const Call& call,
                                            std::integer_sequence<int, kBelow...>) {
  ((length == kBelow + 1 ? (call(std::integral_constant<int, kBelow + 1>()), true) : false) || ...);
}

}  // namespace detail

// call(length), known to the compiler, for 1 <= length <= kMostSorted.
template <typename Call>
FEDKERN_ALWAYS_INLINE void call_with_length(int64_t length, const Call& call) {
  detail::call_with_length(length, call, std::make_integer_sequence<int, kMostSorted>());
}

// How many of `left` elements, if any are left, a vector has.
template <typename V>
FEDKERN_ALWAYS_INLINE constexpr int64_t width(int64_t left) {
  return left < 0 ? 0 : left < V::size() ? left : V::size();
}

// Elements of a half type to float, and back. The capability is in the names of their lambdas,
// which a compiler need not inline: Chunk differs, and the linker would keep one lambda for all.
inline namespace CPU_CAPABILITY {

template <typename scalar_t>
FEDKERN_ALWAYS_INLINE void to_float(const scalar_t* from, float* to, int64_t size) {
  using C = Chunk<scalar_t>;
  for_each_chunk<C::kSize>(size, [&](int64_t j, int64_t count) {
    const C chunk = C::load(from + j, count);
    for (int64_t i = 0, first = 0; i < C::kParts; ++i, first += C::V::size()) {
      chunk.part[i].store(to + j + first, width<typename C::V>(count - first));
    }
  });
}

template <typename scalar_t>
FEDKERN_ALWAYS_INLINE void from_float(const float* from, scalar_t* to, int64_t size) {
  using C = Chunk<scalar_t>;
  for_each_chunk<C::kSize>(size, [&](int64_t j, int64_t count) {
    C chunk;
    for (int64_t i = 0, first = 0; i < C::kParts; ++i, first += C::V::size()) {
      chunk.part[i] = C::V::loadu(from + j + first, width<typename C::V>(count - first));
    }
    chunk.store(to + j, count);
  });
}

}  // namespace CPU_CAPABILITY

// Calls project(from, first, rows, to) for the rows [begin, end): for all of them where they lie,
// but for rows of a half type in scratch, some at a time, that are converted from and to them.
template <typename scalar_t, typename Project, typename T = accumulate_t<scalar_t>>
FEDKERN_ALWAYS_INLINE void project_in_accumulating_type(const scalar_t* from, scalar_t* to,
                                                        int64_t length, int64_t begin, int64_t end,
                                                        T* scratch, const Project& project) {
  if constexpr (std::is_same_v<scalar_t, T>) {
    project(from + begin * length, begin, end - begin, to + begin * length);
  } else {
    const int64_t most = rows_in_scratch(length);
    T* const results = scratch + most * length;
    for (int64_t first = begin; first < end; first += most) {
      const int64_t rows = end - first < most ? end - first : most;
      to_float(from + first * length, scratch, rows * length);
      project(scratch, first, rows, results);
      from_float(results, to + first * length, rows * length);
    }
  }
}

// Elements whose bits are one word of the support.
constexpr int kBlock = 64;

}  // namespace fedkern
