// Compiled once per CPU capability: at::vec and raw pointers only, in an anonymous namespace or
// always inlined, so that no code for a newer CPU is merged into what an older one runs.
//
// A row is read twice (maximum; exponentials and sums) and its gradient written twice
// (exponentials, then times a class's coefficient), all but the first from the L1 or L2 cache. Per
// element: one exp, about ten other operations.

#include "ops/cpu/calibrated_ce_kernel.h"

#include <ATen/cpu/vec/functional.h>
#include <ATen/cpu/vec/vec.h>

#include <limits>

namespace fedkern {
namespace {

using at::vec::Vectorized;

// Calls body(j, count) for count classes from j on: whole vectors first, the rest last.
template <typename T, typename Body>
inline void for_each_vector(int64_t num_classes, const Body& body) {
  constexpr int64_t kWidth = Vectorized<T>::size();
  int64_t j = 0;
  for (; j + kWidth <= num_classes; j += kWidth) body(j, kWidth);
  if (j < num_classes) body(j, num_classes - j);
}

// ---- rows in memory <-> rows of T --------------------------------------------------------------

template <typename scalar_t, typename T = accumulate_t<scalar_t>>
inline void load_row(const scalar_t* from, T* to, int64_t num_classes) {
  constexpr int64_t kHalf = Vectorized<T>::size();
  for_each_vector<scalar_t>(num_classes, [&](int64_t j, int64_t count) {
    const auto [low, high] =
        at::vec::convert_to_float<scalar_t>(Vectorized<scalar_t>::loadu(from + j, count));
    low.store(to + j, count < kHalf ? count : kHalf);
    if (count > kHalf) high.store(to + j + kHalf, count - kHalf);
  });
}

template <typename scalar_t, typename T = accumulate_t<scalar_t>>
inline void store_row(const T* from, scalar_t* to, int64_t num_classes) {
  constexpr int64_t kHalf = Vectorized<T>::size();
  for_each_vector<scalar_t>(num_classes, [&](int64_t j, int64_t count) {
    const auto low = Vectorized<T>::loadu(from + j, count < kHalf ? count : kHalf);
    const auto high =
        count > kHalf ? Vectorized<T>::loadu(from + j + kHalf, count - kHalf) : Vectorized<T>(0);
    at::vec::convert_from_float<scalar_t>(low, high).store(to + j, count);
  });
}

// A tile: `rows` rows of one sample, next to each other in memory.
template <typename scalar_t, typename T>
inline void gather(const scalar_t* from, const RowLayout& layout, int64_t rows, int64_t num_classes,
                   T* to) {
  for (int64_t c = 0; c < num_classes; ++c) {
    const scalar_t* p = from + c * layout.class_stride;
    for (int64_t i = 0; i < rows; ++i) {
      to[i * num_classes + c] = static_cast<T>(p[i * layout.position_stride]);
    }
  }
}

template <typename scalar_t, typename T>
inline void scatter(const T* from, int64_t rows, int64_t num_classes, const RowLayout& layout,
                    scalar_t* to) {
  for (int64_t c = 0; c < num_classes; ++c) {
    scalar_t* p = to + c * layout.class_stride;
    for (int64_t i = 0; i < rows; ++i) {
      p[i * layout.position_stride] = static_cast<scalar_t>(from[i * num_classes + c]);
    }
  }
}

// ---- one row -----------------------------------------------------------------------------------

template <typename T>
inline T row_maximum(const T* z, int64_t num_classes) {
  using V = Vectorized<T>;
  constexpr int64_t kWidth = V::size();
  const V lowest(-std::numeric_limits<T>::infinity());
  // Four chains, since one would wait for itself. clamp_min(a, b) is the maximum without the price
  // of passing nan on: a nan spoils the sums anyway.
  V m0 = lowest, m1 = lowest, m2 = lowest, m3 = lowest;
  int64_t j = 0;
  for (; j + 4 * kWidth <= num_classes; j += 4 * kWidth) {
    m0 = at::vec::clamp_min(V::loadu(z + j), m0);
    m1 = at::vec::clamp_min(V::loadu(z + j + kWidth), m1);
    m2 = at::vec::clamp_min(V::loadu(z + j + 2 * kWidth), m2);
    m3 = at::vec::clamp_min(V::loadu(z + j + 3 * kWidth), m3);
  }
  for_each_vector<T>(num_classes - j, [&](int64_t i, int64_t count) {
    m0 = at::vec::clamp_min(V::set(lowest, V::loadu(z + j + i, count), count), m0);
  });
  T lanes[kWidth];
  at::vec::clamp_min(at::vec::clamp_min(m0, m1), at::vec::clamp_min(m2, m3)).store(lanes);
  T m = lanes[0];
  for (int64_t i = 1; i < kWidth; ++i) m = lanes[i] > m ? lanes[i] : m;
  return m;
}

template <typename T>
inline double sum_lanes(const Vectorized<T>& v) {
  T lanes[Vectorized<T>::size()];
  v.store(lanes);
  double sum = 0;
  for (const T lane : lanes) sum += static_cast<double>(lane);
  return sum;
}

// The sums over `num_classes` classes; their exponentials go to `e`, which may be z, unless it is
// null.
template <bool kWeighted, typename T>
inline RowSums<Vectorized<T>> exponentiate(const T* z, T* e, T maximum, T n_y, const T* n,
                                           const T* w, int64_t num_classes) {
  using V = Vectorized<T>;
  const V m(maximum), ny(n_y), zero(0);
  const V minus_infinity(-std::numeric_limits<T>::infinity());
  const V lowest(std::numeric_limits<T>::lowest());  // 0 * lowest is 0, 0 * -inf is not
  RowSums<V> sums{zero, zero, zero, zero};
  for_each_vector<T>(num_classes, [&](int64_t j, int64_t count) {
    V d = V::loadu(z + j, count) - m;
    if (count < V::size()) d = V::set(minus_infinity, d, count);
    const V e_c = d.exp();
    V weighted_e = e_c * (V::loadu(n + j, count) - ny);
    if constexpr (kWeighted) {
      const V w_c = V::loadu(w + j, count);
      weighted_e = w_c * weighted_e;
      sums.v = sums.v + V::blendv(w_c * d, zero, w_c == zero);
    }
    sums.s = sums.s + e_c;
    sums.a = sums.a + weighted_e;
    sums.b = sums.b + weighted_e * at::vec::clamp_min(d, lowest);
    if (e) e_c.store(e + j, count);
  });
  return sums;
}

template <bool kWeighted, typename T>
inline RowSums<double> exponentiate_row(const T* z, T* e, T maximum, T n_y, const T* n, const T* w,
                                        int64_t num_classes) {
  using V = Vectorized<T>;
  // Sums of sums: a chain of additions as long as a row would lose digits.
  constexpr int64_t kPart = 16 * V::size();
  RowSums<V> row{V(0), V(0), V(0), V(0)};
  for (int64_t j = 0; j < num_classes; j += kPart) {
    const int64_t size = num_classes - j < kPart ? num_classes - j : kPart;
    const RowSums<V> part = exponentiate<kWeighted>(z + j, e ? e + j : e, maximum, n_y, n + j,
                                                    kWeighted ? w + j : w, size);
    row = {row.s + part.s, row.a + part.a, row.b + part.b, row.v + part.v};
  }
  return {sum_lanes(row.s), sum_lanes(row.a), sum_lanes(row.b), sum_lanes(row.v)};
}

template <typename T>
inline GradientCoefficients<Vectorized<T>> broadcast(const GradientCoefficients<T>& k) {
  return {Vectorized<T>(k.alpha),  Vectorized<T>(k.beta),      Vectorized<T>(k.gamma),
          Vectorized<T>(k.center), Vectorized<T>(k.smoothing), Vectorized<T>(k.label)};
}

// Turns the exponentials in `e` into the gradient.
template <Calibration kCalibration, bool kWeighted, typename T>
inline void finish_gradient(T* e, int64_t label, const GradientCoefficients<T>& coefficients,
                            const T* n, const T* w, int64_t num_classes) {
  using V = Vectorized<T>;
  const GradientCoefficients<V> k = broadcast(coefficients);
  for_each_vector<T>(num_classes, [&](int64_t j, int64_t count) {
    const V w_j = kWeighted ? V::loadu(w + j, count) : V(1);
    class_gradient<kCalibration, kWeighted>(V::loadu(e + j, count), V::loadu(n + j, count), w_j, k)
        .store(e + j, count);
  });
  e[label] -= coefficients.label;
}

// Returns the row's unreduced loss; leaves its gradient in `g` (which may be z) unless `g` is null.
template <bool kWeighted, typename scalar_t, typename T = accumulate_t<scalar_t>>
inline double run_row(const CalibratedCEArguments<scalar_t>& arguments,
                      const CalibratedCEGroup<T>& group, int64_t label, const T* z, T* g) {
  const int64_t num_classes = arguments.num_classes;
  if (label == arguments.ignore_index) {
    for (int64_t c = 0; g && c < num_classes; ++c) g[c] = T(0);
    return 0;
  }
  const T n_y = group.n[label];
  const T w_y = kWeighted ? group.w[label] : T(1);
  const T maximum = row_maximum(z, num_classes);
  const T d_y = z[label] - maximum;  // read before g, which may be z, is written
  const RowSums<double> sums =
      exponentiate_row<kWeighted>(z, g, maximum, n_y, group.n, group.w, num_classes);
  if (g) {
    const auto k = rounded<T>(gradient_coefficients(arguments.calibration, sums, n_y, w_y,
                                                    group.smoothing, group.factor));
    if (arguments.calibration == Calibration::kLabel) {
      finish_gradient<Calibration::kLabel, kWeighted>(g, label, k, group.n, group.w, num_classes);
    } else {
      finish_gradient<Calibration::kGradient, kWeighted>(g, label, k, group.n, group.w,
                                                         num_classes);
    }
  }
  return row_loss(sums, d_y, n_y, w_y, group.smoothing);
}

// ---- all rows ----------------------------------------------------------------------------------

template <bool kWeighted, typename scalar_t, typename T = accumulate_t<scalar_t>>
inline double run_rows(const CalibratedCEArguments<scalar_t>& arguments,
                       const CalibratedCEGroup<T>& group, int64_t begin, int64_t end, T* scratch) {
  const int64_t num_classes = arguments.num_classes;
  const RowLayout& from = arguments.logits_layout;
  const RowLayout& to = arguments.gradient_layout;
  const bool contiguous = from.class_stride == 1 && (!arguments.gradient || to.class_stride == 1);
  double sum = 0;
  const auto finish = [&](int64_t row, double loss) {
    sum += loss;
    if (arguments.row_loss) arguments.row_loss[row] = static_cast<scalar_t>(loss);
  };

  if (contiguous) {
    for (int64_t row = begin; row < end; ++row) {
      const scalar_t* z = arguments.logits + from.offset(row);
      scalar_t* g = arguments.gradient ? arguments.gradient + to.offset(row) : nullptr;
      if constexpr (std::is_same_v<scalar_t, T>) {
        finish(row, run_row<kWeighted>(arguments, group, arguments.target[row], z, g));
      } else {
        load_row(z, scratch, num_classes);
        finish(row, run_row<kWeighted>(arguments, group, arguments.target[row], scratch,
                                       g ? scratch : nullptr));
        if (g) store_row(scratch, g, num_classes);
      }
    }
    return sum;
  }

  const int64_t tile_rows = calibrated_ce_scratch_rows(arguments);
  for (int64_t row = begin; row < end;) {
    // A tile ends where the block or the sample ends.
    int64_t rows = from.positions - row % from.positions;
    if (rows > tile_rows) rows = tile_rows;
    if (rows > end - row) rows = end - row;
    gather(arguments.logits + from.offset(row), from, rows, num_classes, scratch);
    for (int64_t i = 0; i < rows; ++i) {
      T* z = scratch + i * num_classes;
      finish(row + i,
             run_row<kWeighted>(arguments, group, arguments.target[row + i],
                                static_cast<const T*>(z), arguments.gradient ? z : nullptr));
    }
    if (arguments.gradient) {
      scatter(scratch, rows, num_classes, to, arguments.gradient + to.offset(row));
    }
    row += rows;
  }
  return sum;
}

template <typename scalar_t>
double run(const CalibratedCEArguments<scalar_t>& arguments,
           const CalibratedCEGroup<accumulate_t<scalar_t>>& group, int64_t begin, int64_t end,
           accumulate_t<scalar_t>* scratch) {
  return group.w ? run_rows<true>(arguments, group, begin, end, scratch)
                 : run_rows<false>(arguments, group, begin, end, scratch);
}

}  // namespace

FEDKERN_DEFINE_VARIANT(CalibratedCEKernels, calibrated_ce_kernels) = {
    &run<float>, &run<double>, &run<c10::BFloat16>, &run<c10::Half>};

}  // namespace fedkern
