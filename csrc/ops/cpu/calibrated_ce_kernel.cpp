// Compiled once per CPU capability: at::vec and raw pointers only, in an anonymous namespace or
// always inlined, so that no code for a newer CPU is merged into what an older one runs.
//
// Rows are worked on in tiles that fit the L1 cache (a long row is a tile of its own, in L2), in
// four phases:
//
//   load          logits, adjusted -> scratch, maxima
//   exponentiate  scratch -> exponentials in scratch, row sums
//   finish        row sums -> losses, gradient coefficients
//   store         scratch -> gradient
//
// Exponentials of long rows of float wait in the gradient; unless they are adjusted, such rows are
// read where they lie.

#include "ops/cpu/calibrated_ce_kernel.h"

#include <array>
#include <limits>
#include <type_traits>

#include "common/vector.h"
#include "common/vector_chunk.h"
#include "common/vector_exp.h"
#include "common/vector_reduce.h"

namespace fedkern {
namespace {

// The maximum without the price of passing nan on: a nan spoils the sums anyway.
template <typename V>
inline V larger(const V& a, const V& b) {
  return clamp_min(a, b);
}

// ---- a tile ------------------------------------------------------------------------------------

constexpr int64_t kIgnored = -1;

// What is known of a tile's rows beside their scratch.
template <typename T>
struct Tile {
  int64_t first, rows;
  int64_t label[kMostTileRows];  // or kIgnored
  alignas(64) T n_y[kMostTileRows];
  T w_y[kMostTileRows];
  T maximum[kMostTileRows];
  T d_y[kMostTileRows];
  RowSums<std::array<double, kMostTileRows>> sums;
  GradientCoefficients<std::array<T, kMostTileRows>> k;
};

template <bool kWeighted, typename scalar_t, typename T>
inline void read_labels(const CalibratedCEArguments<scalar_t>& arguments,
                        const CalibratedCEGroup<T>& group, Tile<T>& tile) {
  for (int64_t i = 0; i < tile.rows; ++i) {
    const int64_t label = arguments.target[tile.first + i];
    const bool ignored = label == arguments.ignore_index;
    tile.label[i] = ignored ? kIgnored : label;
    tile.n_y[i] = ignored ? T(1) : group.n[label];
    tile.w_y[i] = ignored || !kWeighted ? T(1) : group.w[label];
  }
}

// A vector's terms of the row sums; s has the exponentials.
template <typename scalar_t, bool kWeighted, typename V>
inline RowSums<V> terms_of(V z, V m, V n_y, V n, V w) {
  using T = typename V::value_type;
  const V d = z - m;
  // So low a logit's exponential is 0, and so are its products: not nan, as of 0 and infinity.
  const V bounded_d = larger(d, V(kExpLowest<T>));
  const V e = exp_nonpositive<sizeof(scalar_t) == 2>(bounded_d);
  const V weighted_e = kWeighted ? w * (e * (n - n_y)) : e * (n - n_y);
  return {e, weighted_e, weighted_e * bounded_d,
          kWeighted ? V::blendv(w * d, V(0), w == V(0)) : V(0)};
}

// Losses and gradient coefficients; returns the sum of the losses. The loop over the formulas has
// no call and no branch in it, so that the compiler makes vectors of it.
template <Calibration kCalibration, typename scalar_t, typename T>
inline double finish(const CalibratedCEArguments<scalar_t>& arguments,
                     const CalibratedCEGroup<T>& group, Tile<T>& tile) {
  double log_s[kMostTileRows], losses[kMostTileRows];
  for (int64_t i = 0; i < tile.rows; ++i) log_s[i] = std::log(tile.sums.s[i]);
  const LabelSmoothing smoothing = group.smoothing;
  const double factor = group.factor;
  for (int64_t i = 0; i < tile.rows; ++i) {
    const RowSums<double> sums{tile.sums.s[i], tile.sums.a[i], tile.sums.b[i], tile.sums.v[i]};
    const T n_y = tile.n_y[i], w_y = tile.w_y[i];
    losses[i] = row_loss(sums, log_s[i], tile.d_y[i], n_y, w_y, smoothing);
    const auto k =
        rounded<T>(gradient_coefficients(kCalibration, sums, n_y, w_y, smoothing, factor));
    tile.k.alpha[i] = k.alpha;
    tile.k.beta[i] = k.beta;
    tile.k.gamma[i] = k.gamma;
    tile.k.center[i] = k.center;
    tile.k.smoothing[i] = k.smoothing;
    tile.k.label[i] = k.label;
  }
  double sum = 0;
  for (int64_t i = 0; i < tile.rows; ++i) {
    if (tile.label[i] == kIgnored) {  // its sums mean nothing
      losses[i] = 0;
      tile.k.alpha[i] = tile.k.beta[i] = tile.k.gamma[i] = tile.k.smoothing[i] = 0;
      tile.k.center[i] = 1;
    }
    sum += losses[i];
    if (arguments.row_loss) arguments.row_loss[tile.first + i] = static_cast<scalar_t>(losses[i]);
  }
  return sum;
}

// The coefficients of row i, as scalars or in every lane.
template <typename V, typename T>
inline GradientCoefficients<V> coefficients_of_row(const Tile<T>& tile, int64_t i) {
  return {V(tile.k.alpha[i]),  V(tile.k.beta[i]),      V(tile.k.gamma[i]),
          V(tile.k.center[i]), V(tile.k.smoothing[i]), V(tile.k.label[i])};
}

// The coefficients of the rows from i on, one a lane.
template <typename T>
inline GradientCoefficients<Vector<T>> coefficients_of_rows(const Tile<T>& tile, int64_t i) {
  const auto load = [i](const auto& of_rows) { return Vector<T>::loadu(&of_rows[i]); };
  return {load(tile.k.alpha),  load(tile.k.beta),      load(tile.k.gamma),
          load(tile.k.center), load(tile.k.smoothing), load(tile.k.label)};
}

// The gradient by the label's logit.
template <Calibration kCalibration, bool kWeighted, typename T>
inline T label_gradient(const Tile<T>& tile, int64_t i, T e_y) {
  const auto k = coefficients_of_row<T>(tile, i);
  return class_gradient<kCalibration, kWeighted>(e_y, tile.n_y[i], tile.w_y[i], k) - k.label;
}

// ---- lanes are classes -------------------------------------------------------------------------

// The exponentials of long rows of logits that are T already, next to each other, wait in the
// gradient, and without an adjustment the logits are used where they lie; scratch holds all else,
// [row, class], in whole vectors.

constexpr int64_t kLongRow = 512;

// The maximum of the row, to which `adjustment` is added unless it is null; the row itself goes to
// `to`, unless that is null.
template <typename scalar_t, typename T>
inline T load_row(const scalar_t* from, int64_t class_stride, int64_t num_classes,
                  const T* adjustment, T* to) {
  using V = Vector<T>;
  using Chunk = Chunk<scalar_t>;
  const V lowest(-std::numeric_limits<T>::infinity());
  V m[Chunk::kParts];
  for (V& part : m) part = lowest;
  if (class_stride != 1) {
    for (int64_t c = 0; c < num_classes; ++c) to[c] = static_cast<T>(from[c * class_stride]);
  }
  for_each_chunk<Chunk::kSize>(num_classes, [&](int64_t j, int64_t count) {
    Chunk z;
    if (class_stride == 1) z = Chunk::load(from + j, count);
    for (int64_t q = 0; q < Chunk::kParts; ++q) {
      const int64_t c = j + q * V::size(), left = count - q * V::size();
      if (class_stride != 1) z.part[q] = V::loadu(to + c);
      if (adjustment) z.part[q] = z.part[q] + V::loadu(adjustment + c);
      if (left < V::size()) z.part[q] = V::set(lowest, z.part[q], left < 0 ? 0 : left);
      m[q] = larger(z.part[q], m[q]);
      if (to) z.part[q].store(to + c);
    }
  });
  for (int64_t q = 1; q < Chunk::kParts; ++q) m[0] = larger(m[q], m[0]);
  return max_of_lanes(m[0]);
}

// Row i's sums; with a gradient its exponentials go to e. Meanwhile `next`, the row that is loaded
// one tile later, and the gradient from here on come into the L2 cache.
template <bool kWeighted, bool kGradient, typename scalar_t, typename T>
inline RowSums<double> exponentiate_row(const CalibratedCEGroup<T>& group, const Tile<T>& tile,
                                        int64_t i, int64_t num_classes, const T* z, T* e,
                                        const scalar_t* next, const scalar_t* gradient) {
  using V = Vector<T>;
  // A gradient's exponentials may be stored right behind: enough elements for memory to answer.
  constexpr int64_t kAhead = 2048;
  // Sums of sums: a chain of additions as long as a row would lose digits.
  constexpr int64_t kPart = 16 * V::size();
  const V m(tile.maximum[i]), n_y(tile.n_y[i]), lowest(-std::numeric_limits<T>::infinity());
  RowSums<V> row{V(0), V(0), V(0), V(0)};
  for (int64_t begin = 0; begin < num_classes; begin += kPart) {
    const int64_t size = num_classes - begin < kPart ? num_classes - begin : kPart;
    RowSums<V> part{V(0), V(0), V(0), V(0)};
    for_each_chunk<V::size()>(size, [&](int64_t k, int64_t count) {
      const int64_t j = begin + k;
      V z_j = V::loadu(z + j, count);
      if (count < V::size()) z_j = V::set(lowest, z_j, count);
      const V w_j = kWeighted ? V::loadu(group.w + j) : V(1);
      const auto terms = terms_of<scalar_t, kWeighted>(z_j, m, n_y, V::loadu(group.n + j), w_j);
      part = added(part, terms);
      __builtin_prefetch(next + j, /*rw=*/0, /*locality=*/2);
      if constexpr (kGradient) {
        terms.s.store(e + j, count);
        __builtin_prefetch(gradient + j + kAhead, /*rw=*/1, /*locality=*/2);
      }
    });
    row = added(row, part);
  }
  return {sum_of_lanes(row.s), sum_of_lanes(row.a), sum_of_lanes(row.b),
          kWeighted ? sum_of_lanes(row.v) : 0};
}

// Row i's gradient; e may be `to`, and changes where classes are not next to each other.
template <Calibration kCalibration, bool kWeighted, typename scalar_t, typename T>
inline void store_row(const CalibratedCEGroup<T>& group, const Tile<T>& tile, int64_t i,
                      int64_t num_classes, T* e, int64_t class_stride, scalar_t* to) {
  using V = Vector<T>;
  using Chunk = Chunk<scalar_t>;
  const int64_t label = tile.label[i];
  if (label == kIgnored) {
    for (int64_t c = 0; c < num_classes; ++c) to[c * class_stride] = scalar_t(0);
    return;
  }
  const bool in_place = static_cast<const void*>(e) == to;
  const auto k = coefficients_of_row<V>(tile, i);
  const T of_label = label_gradient<kCalibration, kWeighted>(tile, i, e[label]);
  for_each_chunk<Chunk::kSize>(num_classes, [&](int64_t j, int64_t count) {
    Chunk g;
    for (int64_t q = 0; q < Chunk::kParts; ++q) {
      const int64_t c = j + q * V::size(), left = count - q * V::size();
      const V e_c = in_place ? V::loadu(e + c, left < 0 ? 0 : left) : V::loadu(e + c);
      const V w_c = kWeighted ? V::loadu(group.w + c) : V(1);
      g.part[q] = class_gradient<kCalibration, kWeighted>(e_c, V::loadu(group.n + c), w_c, k);
      if (class_stride != 1) g.part[q].store(e + c);
    }
    if (class_stride == 1) g.store(to + j, count);
  });
  for (int64_t c = 0; class_stride != 1 && c < num_classes; ++c) {
    to[c * class_stride] = static_cast<scalar_t>(e[c]);
  }
  to[label * class_stride] = static_cast<scalar_t>(of_label);
}

// The rows of a tile: returns the sum of their losses.
template <Calibration kCalibration, bool kWeighted, bool kGradient, typename scalar_t, typename T>
inline double run_rows(const CalibratedCEArguments<scalar_t>& arguments,
                       const CalibratedCEGroup<T>& group, Tile<T>& tile, T* scratch) {
  const int64_t num_classes = arguments.num_classes, stride = padded(num_classes);
  const RowLayout &from = arguments.logits_layout, &to = arguments.gradient_layout;
  const scalar_t* logits = arguments.logits + from.offset(tile.first);
  scalar_t* gradient = kGradient ? arguments.gradient + to.offset(tile.first) : nullptr;
  const bool in_place = std::is_same_v<scalar_t, T> && num_classes >= kLongRow &&
                        from.class_stride == 1 && (!kGradient || to.class_stride == 1);
  const bool read_in_place = in_place && !group.adjustment;
  constexpr int64_t kWidth = Vector<T>::size();
  const int64_t size = in_place ? num_classes : (num_classes + kWidth - 1) / kWidth * kWidth;
  const auto z_of = [&](int64_t i) {
    return read_in_place ? reinterpret_cast<const T*>(logits + i * from.position_stride)
                         : scratch + i * stride;
  };
  const auto e_of = [&](int64_t i) {
    return in_place ? reinterpret_cast<T*>(gradient + i * to.position_stride)
                    : scratch + i * stride;
  };

  for (int64_t i = 0; i < tile.rows; ++i) {
    if (tile.label[i] == kIgnored) continue;
    tile.maximum[i] = load_row(logits + i * from.position_stride, from.class_stride, num_classes,
                               group.adjustment, read_in_place ? nullptr : scratch + i * stride);
    tile.d_y[i] = z_of(i)[tile.label[i]] - tile.maximum[i];
  }
  for (int64_t i = 0; i < tile.rows; ++i) {
    if (tile.label[i] == kIgnored) continue;
    const auto sums = exponentiate_row<kWeighted, kGradient>(
        group, tile, i, size, z_of(i), e_of(i), logits + (i + tile.rows) * from.position_stride,
        gradient + i * to.position_stride);
    tile.sums.s[i] = sums.s;
    tile.sums.a[i] = sums.a;
    tile.sums.b[i] = sums.b;
    tile.sums.v[i] = sums.v;
  }
  const double loss = finish<kCalibration>(arguments, group, tile);
  for (int64_t i = 0; kGradient && i < tile.rows; ++i) {
    store_row<kCalibration, kWeighted>(group, tile, i, num_classes, e_of(i), to.class_stride,
                                       gradient + i * to.position_stride);
  }
  return loss;
}

// ---- lanes are rows: scratch holds [class, row] ------------------------------------------------

template <typename scalar_t, typename T>
inline void load_columns(const scalar_t* from, int64_t class_stride, int64_t num_classes,
                         const T* adjustment, Tile<T>& tile, T* to) {
  using V = Vector<T>;
  using Chunk = Chunk<scalar_t>;
  const int64_t stride = padded(tile.rows);
  for (int64_t i = 0; i < stride; ++i) {
    tile.maximum[i] = -std::numeric_limits<T>::infinity();
  }
  for (int64_t c = 0; c < num_classes; ++c) {
    for_each_chunk<Chunk::kSize>(tile.rows, [&](int64_t i, int64_t count) {
      Chunk z = Chunk::load(from + c * class_stride + i, count);
      for (int64_t q = 0; q < Chunk::kParts; ++q) {
        const int64_t row = i + q * V::size();
        if (adjustment) z.part[q] = z.part[q] + V(adjustment[c]);
        larger(z.part[q], V::loadu(tile.maximum + row)).store(tile.maximum + row);
        z.part[q].store(to + c * stride + row);
      }
    });
  }
}

// As exponentiate_row for all rows; next is the next tile.
template <bool kWeighted, bool kGradient, typename scalar_t, typename T>
inline void exponentiate_columns(const CalibratedCEGroup<T>& group, Tile<T>& tile,
                                 int64_t num_classes, T* z, const scalar_t* next,
                                 int64_t next_stride, const scalar_t* gradient,
                                 int64_t gradient_stride) {
  using V = Vector<T>;
  const int64_t stride = padded(tile.rows);
  for (int64_t i = 0; i < tile.rows; i += V::size()) {
    const V m = V::loadu(tile.maximum + i), n_y = V::loadu(tile.n_y + i);
    // In double: a row's sums are in one lane each, so no other lanes' errors average theirs out.
    const Wide<T> zero = widen(V(0));
    RowSums<Wide<T>> sums{zero, zero, zero, zero};
    for (int64_t c = 0; c < num_classes; ++c) {
      T* p = z + c * stride + i;
      const V w_c(kWeighted ? group.w[c] : T(1));
      const auto terms = terms_of<scalar_t, kWeighted>(V::loadu(p), m, n_y, V(group.n[c]), w_c);
      sums = added(
          sums, RowSums<Wide<T>>{widen(terms.s), widen(terms.a), widen(terms.b), widen(terms.v)});
      __builtin_prefetch(next + c * next_stride + i, /*rw=*/0, /*locality=*/2);
      if constexpr (kGradient) {
        terms.s.store(p);
        __builtin_prefetch(gradient + c * gradient_stride + i, /*rw=*/1, /*locality=*/2);
      }
    }
    store(sums.s, &tile.sums.s[i]);
    store(sums.a, &tile.sums.a[i]);
    store(sums.b, &tile.sums.b[i]);
    store(kWeighted ? sums.v : zero, &tile.sums.v[i]);
  }
}

template <Calibration kCalibration, bool kWeighted, typename scalar_t, typename T>
inline void store_columns(const CalibratedCEGroup<T>& group, const Tile<T>& tile,
                          int64_t num_classes, const T* e, int64_t class_stride, scalar_t* to) {
  using V = Vector<T>;
  using Chunk = Chunk<scalar_t>;
  const int64_t stride = padded(tile.rows);
  for (int64_t c = 0; c < num_classes; ++c) {
    const V n_c(group.n[c]), w_c(kWeighted ? group.w[c] : T(1));
    for_each_chunk<Chunk::kSize>(tile.rows, [&](int64_t i, int64_t count) {
      Chunk g;
      for (int64_t q = 0; q < Chunk::kParts; ++q) {
        const int64_t row = i + q * V::size();
        g.part[q] = class_gradient<kCalibration, kWeighted>(V::loadu(e + c * stride + row), n_c,
                                                            w_c, coefficients_of_rows(tile, row));
      }
      g.store(to + c * class_stride + i, count);
    });
  }
  for (int64_t i = 0; i < tile.rows; ++i) {
    const int64_t label = tile.label[i];
    if (label == kIgnored) continue;
    to[label * class_stride + i] = static_cast<scalar_t>(
        label_gradient<kCalibration, kWeighted>(tile, i, e[label * stride + i]));
  }
}

// As run_rows, for rows of one sample.
template <Calibration kCalibration, bool kWeighted, bool kGradient, typename scalar_t, typename T>
inline double run_columns(const CalibratedCEArguments<scalar_t>& arguments,
                          const CalibratedCEGroup<T>& group, Tile<T>& tile, T* scratch) {
  const int64_t num_classes = arguments.num_classes, stride = padded(tile.rows);
  const RowLayout &from = arguments.logits_layout, &to = arguments.gradient_layout;
  const scalar_t* logits = arguments.logits + from.offset(tile.first);
  scalar_t* gradient = kGradient ? arguments.gradient + to.offset(tile.first) : nullptr;
  load_columns(logits, from.class_stride, num_classes, group.adjustment, tile, scratch);
  for (int64_t i = 0; i < tile.rows; ++i) {
    if (tile.label[i] == kIgnored) {  // whatever its logits are, no nan may come of them
      for (int64_t c = 0; c < num_classes; ++c) scratch[c * stride + i] = T(0);
      tile.maximum[i] = T(0);
    } else {
      tile.d_y[i] = scratch[tile.label[i] * stride + i] - tile.maximum[i];
    }
  }
  exponentiate_columns<kWeighted, kGradient>(
      group, tile, num_classes, scratch, logits + tile.rows, from.class_stride,
      static_cast<const scalar_t*>(gradient), to.class_stride);
  const double loss = finish<kCalibration>(arguments, group, tile);
  if constexpr (kGradient) {
    store_columns<kCalibration, kWeighted>(group, tile, num_classes, scratch, to.class_stride,
                                           gradient);
  }
  return loss;
}

// ---- all rows ----------------------------------------------------------------------------------

template <Calibration kCalibration, bool kWeighted, bool kGradient, typename scalar_t, typename T>
inline double run_tiles(const CalibratedCEArguments<scalar_t>& arguments,
                        const CalibratedCEGroup<T>& group, int64_t begin, int64_t end, T* scratch) {
  const bool columns = lanes_are_rows(arguments);
  const int64_t most_rows = tile_rows(arguments), positions = arguments.logits_layout.positions;
  Tile<T> tile;
  double sum = 0;
  for (tile.first = begin; tile.first < end; tile.first += tile.rows) {
    // A tile ends where the block or the sample ends.
    tile.rows = positions - tile.first % positions;
    if (tile.rows > most_rows) tile.rows = most_rows;
    if (tile.rows > end - tile.first) tile.rows = end - tile.first;
    read_labels<kWeighted>(arguments, group, tile);
    sum += columns
               ? run_columns<kCalibration, kWeighted, kGradient>(arguments, group, tile, scratch)
               : run_rows<kCalibration, kWeighted, kGradient>(arguments, group, tile, scratch);
  }
  return sum;
}

template <bool kWeighted, typename scalar_t, typename T>
inline double run_weighted(const CalibratedCEArguments<scalar_t>& arguments,
                           const CalibratedCEGroup<T>& group, int64_t begin, int64_t end,
                           T* scratch) {
  constexpr auto kLabel = Calibration::kLabel, kAligned = Calibration::kGradient;
  if (!arguments.gradient) {
    return run_tiles<kLabel, kWeighted, false>(arguments, group, begin, end, scratch);
  }
  return arguments.calibration == kLabel
             ? run_tiles<kLabel, kWeighted, true>(arguments, group, begin, end, scratch)
             : run_tiles<kAligned, kWeighted, true>(arguments, group, begin, end, scratch);
}

template <typename scalar_t>
double run(const CalibratedCEArguments<scalar_t>& arguments,
           const CalibratedCEGroup<accumulate_t<scalar_t>>& group, int64_t begin, int64_t end,
           accumulate_t<scalar_t>* scratch) {
  return group.w ? run_weighted<true>(arguments, group, begin, end, scratch)
                 : run_weighted<false>(arguments, group, begin, end, scratch);
}

}  // namespace

FEDKERN_DEFINE_VARIANT(CalibratedCEKernels, calibrated_ce_kernels) = {
    &run<float>, &run<double>, &run<c10::BFloat16>, &run<c10::Half>};

}  // namespace fedkern
