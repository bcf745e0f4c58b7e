// Compiled once per CPU capability: raw pointers only, in an anonymous namespace or always inlined,
// so that no code for a newer CPU is merged into what an older one runs.
//
// Rows of up to 32: as many as a vector has lanes at once, a row a lane. Turned into columns, they
// are sorted by a network, so that the time does not depend on the data.
//
// Longer rows: one after the other, in four steps, with x read three times at most (from the
// caches) and the result written once.
//
//   maximum     and the maximum of each lane: some elements of the row, and large ones
//   candidates  what lies above the threshold of those few, as bits of the support; their d wait
//               next to each other in the result
//   threshold   Michelot's rounds over the candidates
//   write       the result, looking only where candidates are, and the support's final bits

#include "ops/cpu/simplex_project_kernel.h"

#include <cstring>
#include <limits>

#include "common/sorting_network.h"
#include "common/unrolled.h"
#include "common/vector.h"
#include "common/vector_bits.h"
#include "common/vector_reduce.h"
#include "common/vector_transpose.h"
#include "ops/cpu/simplex_project_rows.h"

namespace fedkern {
namespace {

template <typename T>
constexpr T kInfinity = std::numeric_limits<T>::infinity();
template <typename T>
constexpr T kNan = std::numeric_limits<T>::quiet_NaN();

// ---- rows of up to 32: a row a lane ------------------------------------------------------------

// The larger one to the front. Of a number and a nan both stay, in either order.
struct Descending {
  template <typename V>
  FEDKERN_ALWAYS_INLINE void operator()(V& a, V& b) const {
    const V larger = clamp_min(b, a);
    b = clamp_max(a, b);
    a = larger;
  }
};

// Each lane's maximum, and tau. A nan, and what comes of an infinite maximum, is in the sum of all,
// so tau is nan. Not inlined by force: together with the transposition it would spill registers.
template <int kLength, typename V>
inline void thresholds(V* column, const V& z, V& maximum, V& tau) {
  using T = typename V::value_type;
  if constexpr (kLength > 1) sort<kLength>(column, Descending{});
  maximum = column[0];
  V sum = maximum - maximum;
  tau = sum - z;
  unrolled<kLength - 1>([&](auto i) {
    constexpr int kNext = i() + 1;
    sum = sum + (column[kNext] - maximum);
    tau = clamp_min((sum - z) * V(1 / static_cast<T>(kNext + 1)), tau);
  });
}

// As many rows as lanes.
template <int kLength, typename T>
inline void project_batch(const T* x, const RowZ<T>& z, T* w, uint8_t* support) {
  using V = Vector<T>;
  constexpr int kLanes = V::size();
  constexpr int kTiles = (kLength + kLanes - 1) / kLanes;
  V column[kTiles * kLanes];
  unrolled<kTiles>([&](auto tile) {
    V row[kLanes];
    unrolled<kLanes>([&](auto i) {
      row[i] = V::loadu(x + i * kLength + tile * kLanes, width<V>(kLength - tile * kLanes));
    });
    transpose(row);
    unrolled<kLanes>([&](auto i) { column[tile * kLanes + i] = row[i]; });
  });
  V maximum_of_lanes, tau_of_lanes;
  thresholds<kLength>(column, z.each && z.stride ? V::loadu(z.each) : V(z[0]), maximum_of_lanes,
                      tau_of_lanes);

  alignas(64) T maxima[kLanes], taus[kLanes];
  maximum_of_lanes.store(maxima);
  tau_of_lanes.store(taus);
#pragma GCC unroll 2
  for (int i = 0; i < kLanes; ++i) {
    const V maximum(maxima[i]), tau(taus[i]);
    uint32_t bits = 0;
    unrolled<kTiles>([&](auto tile) {
      constexpr int64_t kWidth = width<V>(kLength - tile * kLanes);
      const V d = V::loadu(x + i * kLength + tile * kLanes, kWidth) - maximum;
      bits |= (greater(d, tau) & first_bits(kWidth)) << tile * kLanes;
      clamp_min(d - tau, V(0)).store(w + i * kLength + tile * kLanes, kWidth);
    });
    constexpr int kBytes = support_bytes(kLength);
    std::memcpy(support + i * kBytes, &bits, kBytes);
  }
}

template <int kLength, typename T>
void project_short(const T* x, const RowZ<T>& z, int64_t rows, T* w, uint8_t* support) {
  constexpr int kBatch = Vector<T>::size(), kBytes = support_bytes(kLength);
  int64_t first = 0;
  for (; first + kBatch <= rows; first += kBatch) {
    project_batch<kLength>(x + first * kLength, z.from(first), w + first * kLength,
                           support + first * kBytes);
  }
  if (first == rows) return;
  // The last few rows, and more that count for nothing.
  alignas(64) T x_of_batch[kBatch * kLength] = {}, w_of_batch[kBatch * kLength];
  alignas(64) T z_of_batch[kBatch] = {};
  uint8_t support_of_batch[kBatch * kBytes];
  const int64_t left = rows - first;
  std::memcpy(x_of_batch, x + first * kLength, left * kLength * sizeof(T));
  for (int64_t i = 0; i < left; ++i) z_of_batch[i] = z[first + i];
  project_batch<kLength>(x_of_batch, RowZ<T>{T(0), z_of_batch, 1}, w_of_batch, support_of_batch);
  std::memcpy(w + first * kLength, w_of_batch, left * kLength * sizeof(T));
  std::memcpy(support + first * kBytes, support_of_batch, left * kBytes);
}

// ---- longer rows -------------------------------------------------------------------------------

// Some of the row's elements, the largest among them.
template <typename T>
struct Largest {
  Vector<T> lanes[4];

  inline T maximum() const {
    return max_of_lanes(clamp_min(clamp_min(lanes[0], lanes[1]), clamp_min(lanes[2], lanes[3])));
  }
};

template <typename T>
inline Largest<T> largest(const T* x, int64_t length) {
  using V = Vector<T>;
  const V none(-kInfinity<T>);
  Largest<T> largest{{none, none, none, none}};
  for_each_chunk<kBlock>(length, [&](int64_t i, int64_t count) {
    for (int k = 0; k < kBlock / V::size(); ++k) {
      const int64_t lanes = width<V>(count - k * V::size());
      const V v = V::loadu(x + i + k * V::size(), lanes);
      // a nan gives way here, and shows among the candidates
      largest.lanes[k % 4] =
          clamp_min(lanes == V::size() ? v : V::set(none, v, lanes), largest.lanes[k % 4]);
    }
  });
  return largest;
}

// A lower bound of tau.
template <typename T>
inline T lower_bound_of(const Largest<T>& largest, T maximum, T z) {
  constexpr int kRounds = 4;  // more gain nothing on the whole
  T bound = -z;
  for (int round = 0; round < kRounds; ++round) {
    Vector<T> sum(T(0));
    int64_t count = 0;
    for (const Vector<T>& lanes : largest.lanes) {
      const Vector<T> d = lanes - Vector<T>(maximum);
      const uint32_t bits = greater(d, Vector<T>(bound));
      sum = sum + select(bits, d);
      count += __builtin_popcount(bits);
    }
    const T next = static_cast<T>(lower_bound(sum_of_lanes(sum), z, count));
    if (!(next > bound)) break;
    bound = next;
  }
  return bound;
}

// Writes the candidates' d to `candidates` and their bits to `support`; returns how many.
template <typename T>
inline int64_t find_candidates(const T* x, int64_t length, T maximum, T bound, T* candidates,
                               uint8_t* support) {
  using V = Vector<T>;
  int64_t found = 0;
  for_each_chunk<kBlock>(length, [&](int64_t i, int64_t count) {
    V d[kBlock / V::size()];
    uint64_t word = 0;
    for (int k = 0; k < kBlock / V::size(); ++k) {
      const int64_t lanes = width<V>(count - k * V::size());
      d[k] = V::loadu(x + i + k * V::size(), lanes) - V(maximum);
      word |= uint64_t{above(d[k], V(bound)) & first_bits(lanes)} << k * V::size();
    }
    std::memcpy(support + i / 8, &word, support_bytes(count));
    if (word == 0) return;
    for (int k = 0; k < kBlock / V::size(); ++k) {
      const uint32_t bits = word >> k * V::size() & first_bits(V::size());
      if (bits) found += append(bits, d[k], candidates + found);
    }
  });
  return found;
}

// tau, or nan if a candidate is. The candidates are overwritten.
template <typename T>
inline T threshold_of(T* candidates, int64_t size, T z) {
  using V = Vector<T>;
  T tau = -kInfinity<T>;
  for (;;) {
    Wide<T> sum = widen(V(T(0)));
    int64_t kept = 0;
    for (int64_t i = 0; i < size; i += V::size()) {
      const int64_t lanes = size - i < V::size() ? size - i : V::size();
      const V d = V::loadu(candidates + i, lanes);
      const uint32_t bits = above(d, V(tau)) & first_bits(lanes);
      sum = sum + widen(select(bits, d));
      kept += append(bits, d, candidates + kept);
    }
    if (kept == size && tau > -kInfinity<T>) return tau;
    size = kept;
    tau = static_cast<T>(threshold(sum_of_lanes(sum), z, size));
    if (tau != tau) return tau;
  }
}

// The result, and the support's final bits in the place of the candidates'.
template <typename T>
inline void write_row(const T* x, int64_t length, T maximum, T tau, T* w, uint8_t* support) {
  using V = Vector<T>;
  for_each_chunk<kBlock>(length, [&](int64_t i, int64_t count) {
    uint64_t word = 0;
    std::memcpy(&word, support + i / 8, support_bytes(count));
    if (word == 0) {
      for (int k = 0; k < kBlock / V::size(); ++k) {
        V(T(0)).store(w + i + k * V::size(), width<V>(count - k * V::size()));
      }
      return;
    }
    word = 0;
    for (int k = 0; k < kBlock / V::size(); ++k) {
      const int64_t lanes = width<V>(count - k * V::size());
      const V d = V::loadu(x + i + k * V::size(), lanes) - V(maximum);
      word |= uint64_t{greater(d, V(tau)) & first_bits(lanes)} << k * V::size();
      clamp_min(d - V(tau), V(T(0))).store(w + i + k * V::size(), lanes);
    }
    std::memcpy(support + i / 8, &word, support_bytes(count));
  });
}

template <typename T>
inline void project_long(const T* x, int64_t length, T z, T* w, uint8_t* support) {
  const Largest<T> some = largest(x, length);
  const T maximum = some.maximum();
  T tau = kNan<T>;
  if (is_finite(maximum)) {
    const T bound = lower_bound_of(some, maximum, z);
    tau = threshold_of(w, find_candidates(x, length, maximum, bound, w, support), z);
  }
  if (tau == tau) {
    write_row(x, length, maximum, tau, w, support);
  } else {
    for (int64_t i = 0; i < length; ++i) w[i] = tau;
    std::memset(support, 0, support_bytes(length));
  }
}

// ---- any rows ----------------------------------------------------------------------------------

template <typename T>
void project(const T* x, int64_t length, const RowZ<T>& z, int64_t rows, T* w, uint8_t* support) {
  if (length <= kMostSorted) {
    return call_with_length(length,
                            [&](auto known) { project_short<known()>(x, z, rows, w, support); });
  }
  for (int64_t row = 0; row < rows; ++row) {
    project_long(x + row * length, length, z[row], w + row * length,
                 support + row * support_bytes(length));
  }
}

template <typename scalar_t>
void run(const SimplexProjectArguments<scalar_t>& arguments, int64_t begin, int64_t end,
         accumulate_t<scalar_t>* scratch) {
  using T = accumulate_t<scalar_t>;
  const int64_t length = arguments.length;
  project_in_accumulating_type(arguments.x, arguments.result, length, begin, end, scratch,
                               [&](const T* x, int64_t first, int64_t rows, T* w) {
                                 project(x, length, arguments.z.from(first), rows, w,
                                         arguments.support + first * support_bytes(length));
                               });
}

}  // namespace

FEDKERN_DEFINE_VARIANT(SimplexProjectKernels, simplex_project_kernels) = {
    &run<float>, &run<double>, &run<c10::BFloat16>, &run<c10::Half>};

}  // namespace fedkern
