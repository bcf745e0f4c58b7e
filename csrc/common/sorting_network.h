#pragma once

// Sorting without a branch: a fixed sequence of comparators, all known to the compiler, so that the
// elements stay in registers. An element may be a vector, which sorts as many sequences at once.

#include <cstddef>
#include <type_traits>
#include <utility>

#include "common/macros.h"

namespace fedkern {

namespace detail {

struct Comparators {
  int count = 0;
  int low[192] = {}, high[192] = {};  // of 32 elements there are 191
};

// Batcher's merge exchange for any number of elements: Knuth, The Art of Computer Programming 3,
// algorithm 5.2.2M.
constexpr Comparators merge_exchange(int size) {
  Comparators network;
  int top = 1;
  while (2 * top < size) top *= 2;
  for (int p = top; p > 0; p /= 2) {
    for (int q = top, r = 0, d = p;; d = q - p, q /= 2, r = p) {
      for (int i = 0; i + d < size; ++i) {
        if ((i & p) != r) continue;
        network.low[network.count] = i;
        network.high[network.count] = i + d;
        ++network.count;
      }
      if (q == p) break;
    }
  }
  return network;
}

template <int kSize>
struct SortingNetwork {
  static constexpr Comparators kComparators = merge_exchange(kSize);
};

template <int kSize, typename T, typename Exchange, std::size_t... kIndex>
FEDKERN_HOST_DEVICE void sort(T* values, const Exchange& exchange, std::index_sequence<kIndex...>) {
  using Network = SortingNetwork<kSize>;
  (exchange(values[std::integral_constant<int, Network::kComparators.low[kIndex]>::value],
            values[std::integral_constant<int, Network::kComparators.high[kIndex]>::value]),
   ...);
}

}  // namespace detail

// Sorts values[0..kSize), 2 to 32 of them. exchange(a, b) puts in order what comes first and what
// comes later.
template <int kSize, typename T, typename Exchange>
FEDKERN_HOST_DEVICE void sort(T* values, const Exchange& exchange) {
  static_assert(kSize >= 2 && kSize <= 32, "the room for comparators");
  constexpr int kCount = detail::SortingNetwork<kSize>::kComparators.count;
  detail::sort<kSize>(values, exchange, std::make_index_sequence<kCount>());
}

}  // namespace fedkern
