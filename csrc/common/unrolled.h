#pragma once

#include <type_traits>
#include <utility>

#include "common/macros.h"

namespace fedkern {

namespace detail {

template <typename Body, int... kIndex>
FEDKERN_ALWAYS_INLINE void unrolled(const Body& body, std::integer_sequence<int, kIndex...>) {
  (body(std::integral_constant<int, kIndex>()), ...);
}

}  // namespace detail

// body(0), ..., body(kCount - 1), each index known to the compiler: arrays that are accessed in no
// other way stay in registers.
template <int kCount, typename Body>
FEDKERN_ALWAYS_INLINE void unrolled(const Body& body) {
  detail::unrolled(body, std::make_integer_sequence<int, kCount>());
}

}  // namespace fedkern
