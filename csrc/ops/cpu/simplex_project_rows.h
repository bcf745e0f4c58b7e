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
#include "common/vector_half.h"
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

// Calls body(i, count) for blocks of `size` elements: whole ones first, the rest last.
template <typename Body>
FEDKERN_ALWAYS_INLINE void for_each_block(int64_t size, const Body& body) {
  int64_t i = 0;
  for (; i + kBlock <= size; i += kBlock) body(i, int64_t{kBlock});
  if (i < size) body(i, size - i);
}

// How many of `left` elements, if any are left, a vector has.
template <typename V>
FEDKERN_ALWAYS_INLINE constexpr int64_t width(int64_t left) {
  return left < 0 ? 0 : left < V::size() ? left : V::size();
}

}  // namespace fedkern
