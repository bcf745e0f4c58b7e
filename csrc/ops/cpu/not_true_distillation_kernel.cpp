// Compiled once per CPU capability: at::vec and raw pointers only, in an anonymous namespace or
// always inlined, so that no code for a newer CPU is merged into what an older one runs.
//
// Rows are worked on in tiles that fit the L1 cache (a long row is a tile of its own, in L2), in
// four phases:
//
//   load          logits -> scratch, the true class masked
//   exponentiate  scratch -> exponentials in scratch, row sums
//   finish        row sums -> losses, gradient coefficients
//   store         scratch -> gradient
//
// Long rows of float are read where they lie, on both sides of the true class.

#include "ops/cpu/not_true_distillation_kernel.h"

#include <cmath>
#include <limits>
#include <type_traits>

#include "common/vector.h"
#include "common/vector_chunk.h"
#include "common/vector_exp.h"
#include "common/vector_reduce.h"
#include "ops/not_true_distillation_math.h"

namespace fedkern {
namespace {

template <typename T>
constexpr T kMinusInfinity = -std::numeric_limits<T>::infinity();

// The maximum without the price of passing nan on: a nan spoils the sums anyway.
template <typename V>
inline V larger(const V& a, const V& b) {
  return clamp_min(a, b);
}

// ---- a tile ------------------------------------------------------------------------------------

constexpr int64_t kNone = -1;  // for label: the row has no loss

// What is known of a tile's rows beside their scratch.
template <typename T>
struct Tile {
  int64_t first, rows;
  int64_t label[kMostTileRows];  // or kNone
  NotTrueSums<double> sums[kMostTileRows];
  NotTrueCoefficients<T> coefficients[kMostTileRows];
};

template <typename scalar_t, typename T>
inline void read_labels(const NotTrueDistillationArguments<scalar_t>& arguments, Tile<T>& tile) {
  for (int64_t i = 0; i < tile.rows; ++i) {
    const int64_t label = arguments.target[tile.first + i];
    const bool has_loss = label != arguments.ignore_index && arguments.num_classes > 1;
    tile.label[i] = has_loss ? label : kNone;
  }
}

// Losses and gradient coefficients; returns the sum of the losses.
template <typename scalar_t, typename T>
inline double finish(const NotTrueDistillationArguments<scalar_t>& arguments, double factor,
                     Tile<T>& tile) {
  const double step = arguments.tau * factor;
  double sum = 0;
  for (int64_t i = 0; i < tile.rows; ++i) {
    double loss = 0;
    if (tile.label[i] != kNone) {
      const NotTrueSums<double>& sums = tile.sums[i];
      loss = not_true_loss(sums, std::log(sums.student / sums.teacher), arguments.tau);
      tile.coefficients[i] = not_true_coefficients<T>(sums, step);
    }
    sum += loss;
    if (arguments.row_loss) arguments.row_loss[tile.first + i] = static_cast<scalar_t>(loss);
  }
  return sum;
}

// ---- a row -------------------------------------------------------------------------------------

// Into scratch, with the true class, and what fills the last vector, at -inf.
template <typename scalar_t, typename T>
inline void load_row(const scalar_t* from, int64_t class_stride, int64_t num_classes, int64_t label,
                     T* to) {
  using Chunk = Chunk<scalar_t>;
  constexpr int64_t kWidth = Vector<T>::size();
  if (class_stride == 1) {
    for_each_chunk<Chunk::kSize>(num_classes, [&](int64_t j, int64_t count) {
      const Chunk z = Chunk::load(from + j, count);
      for (int64_t q = 0; q < Chunk::kParts; ++q) z.part[q].store(to + j + q * kWidth);
    });
  } else {
    for (int64_t c = 0; c < num_classes; ++c) to[c] = static_cast<T>(from[c * class_stride]);
  }
  for (int64_t c = num_classes; c % kWidth != 0; ++c) to[c] = kMinusInfinity<T>;
  to[label] = kMinusInfinity<T>;
}

template <typename T>
inline Vector<T> load_vector(const T* from, int64_t count) {
  using V = Vector<T>;
  if (count == V::size()) return V::loadu(from);
  return V::set(V(kMinusInfinity<T>), V::loadu(from, count), count);
}

// Over the classes [begin, end), and m.
template <typename T>
inline Vector<T> lane_maxima(const T* z, int64_t begin, int64_t end, Vector<T> m) {
  for_each_chunk<Vector<T>::size()>(end - begin, [&](int64_t j, int64_t count) {
    m = larger(load_vector(z + begin + j, count), m);
  });
  return m;
}

// What comes into the L2 cache while a row's exponentials are computed: the row that is loaded one
// tile later, and the gradient.
template <typename scalar_t>
struct Ahead {
  const scalar_t *z, *g, *gradient;
};

// The sums over the classes [begin, end); with a gradient their exponentials go to e_z and e_g,
// which may be z and g.
template <bool kGradient, typename scalar_t, typename T>
inline NotTrueSums<Vector<T>> exponentiate(const T* z, const T* g, int64_t begin, int64_t end,
                                           Vector<T> z_max, Vector<T> g_max, Vector<T> inverse_tau,
                                           T* e_z, T* e_g, const Ahead<scalar_t>& ahead) {
  using V = Vector<T>;
  constexpr bool kShort = sizeof(scalar_t) == 2;
  // Sums of sums: a chain of additions as long as a row would lose digits.
  constexpr int64_t kPart = 16 * V::size();
  const V lowest(kExpLowest<T>);
  NotTrueSums<V> sums{V(0), V(0), V(0)};
  for (int64_t first = begin; first < end; first += kPart) {
    NotTrueSums<V> part{V(0), V(0), V(0)};
    for_each_chunk<V::size()>(
        end - first < kPart ? end - first : kPart, [&](int64_t k, int64_t count) {
          const int64_t j = first + k;
          const V u = (load_vector(z + j, count) - z_max) * inverse_tau;
          const V v = (load_vector(g + j, count) - g_max) * inverse_tau;
          const V student = exp_nonpositive<kShort>(larger(u, lowest));
          const V teacher = exp_nonpositive<kShort>(larger(v, lowest));
          // not nan, as of 0 and infinity
          const V distance = V::blendv(teacher * (v - u), V(0), teacher == V(0));
          part = added(part, NotTrueSums<V>{student, teacher, distance});
          __builtin_prefetch(ahead.z + j, /*rw=*/0, /*locality=*/2);
          __builtin_prefetch(ahead.g + j, /*rw=*/0, /*locality=*/2);
          if constexpr (kGradient) {
            // The exponentials may be stored right behind: enough elements for memory to answer.
            constexpr int64_t kDistance = 2048;
            student.store(e_z + j, count);
            teacher.store(e_g + j, count);
            __builtin_prefetch(ahead.gradient + j + kDistance, /*rw=*/1, /*locality=*/2);
          }
        });
    sums = added(sums, part);
  }
  return sums;
}

// e_z may be `to`, and changes where classes are not next to each other.
template <typename scalar_t, typename T>
inline void store_row(const NotTrueCoefficients<T>& coefficients, int64_t num_classes,
                      int64_t label, T* e_z, const T* e_g, int64_t class_stride, scalar_t* to) {
  using V = Vector<T>;
  using Chunk = Chunk<scalar_t>;
  const bool in_place = static_cast<const void*>(e_z) == to;
  const V scale(coefficients.scale), ratio(coefficients.ratio);
  for_each_chunk<Chunk::kSize>(num_classes, [&](int64_t j, int64_t count) {
    Chunk gradient;
    for (int64_t q = 0; q < Chunk::kParts; ++q) {
      const int64_t c = j + q * V::size();
      const V e = in_place ? V::loadu(e_z + c, count) : V::loadu(e_z + c);
      gradient.part[q] = (e - V::loadu(e_g + c) * ratio) * scale;
      if (class_stride != 1) gradient.part[q].store(e_z + c);
    }
    if (class_stride == 1) gradient.store(to + j, count);
  });
  for (int64_t c = 0; class_stride != 1 && c < num_classes; ++c) {
    to[c * class_stride] = static_cast<scalar_t>(e_z[c]);
  }
  to[label * class_stride] = scalar_t(0);
}

// ---- the rows of a tile ------------------------------------------------------------------------

// Shorter rows gain more from tiles of several.
constexpr int64_t kLongRow = 512;

// Returns the sum of their losses.
template <bool kGradient, typename scalar_t, typename T>
inline double run_tile(const NotTrueDistillationArguments<scalar_t>& arguments, double factor,
                       Tile<T>& tile, T* scratch) {
  using V = Vector<T>;
  const int64_t num_classes = arguments.num_classes, stride = padded(num_classes);
  const RowLayout &from_z = arguments.student_layout, &from_g = arguments.teacher_layout;
  const RowLayout& to = arguments.gradient_layout;
  const scalar_t* student = arguments.student + from_z.offset(tile.first);
  const scalar_t* teacher = arguments.teacher + from_g.offset(tile.first);
  scalar_t* gradient = kGradient ? arguments.gradient + to.offset(tile.first) : nullptr;
  const bool in_place = std::is_same_v<scalar_t, T> && num_classes >= kLongRow &&
                        from_z.class_stride == 1 && from_g.class_stride == 1 &&
                        (!kGradient || to.class_stride == 1);
  const auto scratch_z = [&](int64_t i) { return scratch + 2 * i * stride; };
  const auto scratch_g = [&](int64_t i) { return scratch + (2 * i + 1) * stride; };
  const auto e_z = [&](int64_t i) {
    return kGradient && in_place ? reinterpret_cast<T*>(gradient + i * to.position_stride)
                                 : scratch_z(i);
  };

  for (int64_t i = 0; !in_place && i < tile.rows; ++i) {
    if (tile.label[i] == kNone) continue;
    load_row(student + i * from_z.position_stride, from_z.class_stride, num_classes, tile.label[i],
             scratch_z(i));
    load_row(teacher + i * from_g.position_stride, from_g.class_stride, num_classes, tile.label[i],
             scratch_g(i));
  }

  const V inverse_tau(static_cast<T>(1 / arguments.tau));
  for (int64_t i = 0; i < tile.rows; ++i) {
    const int64_t label = tile.label[i];
    if (label == kNone) continue;
    const Ahead<scalar_t> ahead{student + (i + tile.rows) * from_z.position_stride,
                                teacher + (i + tile.rows) * from_g.position_stride,
                                gradient + i * to.position_stride};
    const T *z = scratch_z(i), *g = scratch_g(i);
    if (in_place) {
      z = reinterpret_cast<const T*>(student + i * from_z.position_stride);
      g = reinterpret_cast<const T*>(teacher + i * from_g.position_stride);
    }
    // Scratch has whole vectors, the true class among them; in place it is left out.
    const int64_t end =
        in_place ? num_classes : (num_classes + V::size() - 1) / V::size() * V::size();
    const int64_t split = in_place ? label : end, next = in_place ? label + 1 : end;
    const auto maximum = [&](const T* row) {
      const V m = lane_maxima(row, 0, split, V(kMinusInfinity<T>));
      return V(max_of_lanes(lane_maxima(row, next, end, m)));
    };
    const V z_max = maximum(z), g_max = maximum(g);
    const auto sums_of = [&](int64_t first, int64_t last) {
      return exponentiate<kGradient>(z, g, first, last, z_max, g_max, inverse_tau, e_z(i),
                                     scratch_g(i), ahead);
    };
    const NotTrueSums<V> sums = added(sums_of(0, split), sums_of(next, end));
    if (kGradient && in_place) e_z(i)[label] = scratch_g(i)[label] = T(0);
    tile.sums[i] = {sum_of_lanes(sums.student), sum_of_lanes(sums.teacher),
                    sum_of_lanes(sums.distance)};
  }

  const double loss = finish(arguments, factor, tile);
  for (int64_t i = 0; kGradient && i < tile.rows; ++i) {
    scalar_t* row = gradient + i * to.position_stride;
    if (tile.label[i] == kNone) {
      for (int64_t c = 0; c < num_classes; ++c) row[c * to.class_stride] = scalar_t(0);
    } else {
      store_row(tile.coefficients[i], num_classes, tile.label[i], e_z(i), scratch_g(i),
                to.class_stride, row);
    }
  }
  return loss;
}

template <bool kGradient, typename scalar_t, typename T>
inline double run_tiles(const NotTrueDistillationArguments<scalar_t>& arguments, double factor,
                        int64_t begin, int64_t end, T* scratch) {
  const int64_t most_rows = not_true_tile_rows(arguments);
  const int64_t positions = arguments.student_layout.positions;
  Tile<T> tile;
  double sum = 0;
  for (tile.first = begin; tile.first < end; tile.first += tile.rows) {
    // A tile ends where the block or the sample ends.
    tile.rows = positions - tile.first % positions;
    if (tile.rows > most_rows) tile.rows = most_rows;
    if (tile.rows > end - tile.first) tile.rows = end - tile.first;
    read_labels(arguments, tile);
    sum += run_tile<kGradient>(arguments, factor, tile, scratch);
  }
  return sum;
}

template <typename scalar_t>
double run(const NotTrueDistillationArguments<scalar_t>& arguments, double factor, int64_t begin,
           int64_t end, accumulate_t<scalar_t>* scratch) {
  return arguments.gradient ? run_tiles<true>(arguments, factor, begin, end, scratch)
                            : run_tiles<false>(arguments, factor, begin, end, scratch);
}

}  // namespace

FEDKERN_DEFINE_VARIANT(NotTrueDistillationKernels, not_true_distillation_kernels) = {
    &run<float>, &run<double>, &run<c10::BFloat16>, &run<c10::Half>};

}  // namespace fedkern
