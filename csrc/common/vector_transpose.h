#pragma once

// As many rows as a vector has lanes, one vector each: turned into columns, or each summed up.
//
// Both are rounds of interleaving rows whose numbers differ in the highest bit. With the element's
// place written as the bits of its row and then of its lane, a round rotates the place by one bit,
// and as many rounds as a lane's number has bits exchange rows and lanes.
//
// For files that are compiled once per CPU capability (common/cpu_capability.h).

#include "common/macros.h"
#include "common/unrolled.h"
#include "common/vector.h"

namespace fedkern {

namespace detail {

// low = a0 b0 a1 b1 ..., high: the same of the upper halves.
template <typename T>
FEDKERN_ALWAYS_INLINE void interleave(const Vector<T>& a, const Vector<T>& b, Vector<T>& low,
                                      Vector<T>& high) {
#if defined(CPU_CAPABILITY_AVX2) || defined(CPU_CAPABILITY_AVX512)
  const auto both = at::vec::interleave2(a, b);
  low = both.first;
  high = both.second;
#else
  for (int i = 0; i < a.size(); ++i) {
    (i < a.size() / 2 ? low : high).lanes[2 * i % a.size()] = a.lanes[i];
    (i < a.size() / 2 ? low : high).lanes[2 * i % a.size() + 1] = b.lanes[i];
  }
#endif
}

}  // namespace detail

// row[i] lane j <-> row[j] lane i.
template <typename T, int kLanes = Vector<T>::size()>
FEDKERN_ALWAYS_INLINE void transpose(Vector<T> (&row)[kLanes]) {
  constexpr int kRounds = __builtin_ctz(kLanes);
  unrolled<kRounds>([&](auto) {
    Vector<T> next[kLanes];
    unrolled<kLanes / 2>([&](auto i) {
      detail::interleave(row[i], row[i + kLanes / 2], next[2 * i], next[2 * i + 1]);
    });
    unrolled<kLanes>([&](auto i) { row[i] = next[i]; });
  });
}

// Lane i: the sum of row[i]'s lanes. What is in the rows afterwards is of no use.
template <typename T, int kLanes = Vector<T>::size()>
FEDKERN_ALWAYS_INLINE Vector<T> sums_of_rows(Vector<T> (&row)[kLanes]) {
  constexpr int kRounds = __builtin_ctz(kLanes);
  unrolled<kRounds>([&](auto round) {
    constexpr int kLeft = kLanes >> (round() + 1);
    unrolled<kLeft>([&](auto i) {
      Vector<T> low, high;
      detail::interleave(row[i], row[i + kLeft], low, high);
      row[i] = low + high;
    });
  });
  return row[0];
}

}  // namespace fedkern
