// Compiled once per CPU capability (common/cpu_capability.h). K points have K (K - 1) / 2 pairs; a
// pair costs M subtractions and multiply-adds, and a reciprocal. Four points i (rows) meet a vector
// of points k at a time, so that a coordinate is loaded once for four uses and four reciprocals
// take one division. The points k are those of a tile, which stays in the L1 cache. Among
// themselves, the points of a vector meet those one, two, ... places on, round the vector: no pair
// comes twice.

#include "ops/cpu/simplex_riesz_energy_kernel.h"

#include <cmath>
#include <limits>
#include <type_traits>

#include "common/macros.h"
#include "common/unrolled.h"
#include "common/vector.h"
#include "common/vector_reduce.h"
#include "common/vector_rotate.h"

namespace fedkern {
namespace {

// ---- projection --------------------------------------------------------------------------------

template <typename T>
void project(const SortedScores& scores, double size, T* tiles) {
  using V = Vector<double>;
  constexpr int kParts = Wide<T>::kParts;
  const int64_t dimensions = scores.dimensions, coordinates = num_coordinates(dimensions);
  const V inverse(1 / size), negative_size(-size), zero(0.0);
  const V share(1 / (1 + std::sqrt(static_cast<double>(dimensions))));
  for (int64_t place = 0; place < num_places(scores.num_points); place += Vector<T>::size()) {
    const int64_t offset = scores_index(place, 0, dimensions);
    const auto load = [&](const double* from, int64_t d, int part) {
      return V::loadu(from + offset + d * kMostLanes + part * V::size());
    };
    V tau[kParts];  // of all supports, the true one gives the greatest
    for (int part = 0; part < kParts; ++part) tau[part] = load(scores.means, 0, part) - V(size);
    for (int64_t d = 1; d < dimensions; ++d) {
      const V count(scores.inverse_counts[d]);
      for (int part = 0; part < kParts; ++part) {
        tau[part] = clamp_min(fmadd(negative_size, count, load(scores.means, d, part)), tau[part]);
      }
    }
    for (V& t : tau) t = t * inverse;
    const auto point = [&](int64_t d, int part) {
      return clamp_min(load(scores.scores, d, part) * inverse - tau[part], zero);
    };
    V shared[kParts];
    for (int part = 0; part < kParts; ++part) shared[part] = point(dimensions - 1, part) * share;
    T* const to = tiles + tiles_index(place, 0, coordinates);
    for (int64_t d = 0; d < coordinates; ++d) {
      Wide<T> coordinate;
      for (int part = 0; part < kParts; ++part) {
        coordinate.part[part] = point(d, part) - shared[part];
      }
      narrow(coordinate).store(to + d * kTilePlaces);
    }
  }
}

// ---- pairs -------------------------------------------------------------------------------------

template <typename T>
constexpr int kRows = Vector<T>::size() < 4 ? Vector<T>::size() : 4;

// Squared distances of vectors of pairs; their sum is taken at once.
template <typename T>
using Squares = Vector<T>[kRows<T>];

// Of rows next to each other and kVectors vectors next to each other, squares[vector][row]. rows,
// columns: coordinate 0 of the first points i and k.
template <int kVectors, typename T>
FEDKERN_ALWAYS_INLINE void find_squares(const T* rows, const T* columns, int64_t dimensions,
                                        Squares<T> (&squares)[kVectors]) {
  using V = Vector<T>;
  for (auto& of_vector : squares) {
    for (V& square : of_vector) square = V(T(0));
  }
  for (int64_t n = 0; n < dimensions * kTilePlaces; n += kTilePlaces) {
    V column[kVectors];
    for (int v = 0; v < kVectors; ++v) column[v] = V::loadu(columns + n + v * V::size());
    for (int row = 0; row < kRows<T>; ++row) {
      const V x(rows[n + row]);
      for (int v = 0; v < kVectors; ++v) {
        const V difference = x - column[v];
        squares[v][row] = fmadd(difference, difference, squares[v][row]);
      }
    }
  }
}

// How many places on, at most, a vector's points meet each other, and how many Squares that takes.
template <typename T>
constexpr int kMostTurns = Vector<T>::size() / 2;
template <typename T>
constexpr int kTurns = (kMostTurns<T> + kRows<T> - 1) / kRows<T>;

// Of the points of a vector with each other: of each with that t + 1 places on in square t,
// counted through.
template <typename T>
FEDKERN_ALWAYS_INLINE void find_squares_within(const T* columns, int64_t dimensions,
                                               Squares<T> (&squares)[kTurns<T>]) {
  for (auto& of_turn : squares) {
    for (auto& square : of_turn) square = Vector<T>(T(0));
  }
  for (int64_t n = 0; n < dimensions * kTilePlaces; n += kTilePlaces) {
    const auto column = Vector<T>::loadu(columns + n);
    unrolled<kMostTurns<T>>([&](auto t) {
      const auto difference = column - rotated<t + 1>(column);
      auto& square = squares[t / kRows<T>][t % kRows<T>];
      square = fmadd(difference, difference, square);
    });
  }
}

// The sum of sum_of(squares) over the pairs i < k with k in the tile. Lanes that are no pair get
// the squared distance `far`.
template <typename T, typename SumOf>
FEDKERN_ALWAYS_INLINE double sum_over_pairs(const T* tiles, int64_t num_points, int64_t dimensions,
                                            int64_t tile, T far, const SumOf& sum_of) {
  using V = Vector<T>;
  constexpr int64_t kStep = V::size();
  static_assert(kMostLanes % kStep == 0 && kTilePlaces % kMostLanes == 0);
  const int64_t begin = tile * kTilePlaces;
  const int64_t places = num_places(num_points), first = padding(num_points);
  const int64_t end = begin + kTilePlaces < places ? begin + kTilePlaces : places;
  const T* const columns = tiles + tiles_index(begin, 0, dimensions) - begin;
  Wide<T> total = widen(V(T(0)));

  // Of the rows from i on with the vectors after theirs. Only the first rows may be no points: what
  // writes to single squares keeps all of them out of the registers.
  const auto sum_of_rows = [&](int64_t i, auto may_be_no_points) {
    const T* const rows = tiles + tiles_index(i, 0, dimensions);
    V sum(T(0));
    const auto add = [&](int64_t k, auto vectors) {
      Squares<T> squares[vectors];
      find_squares(rows, columns + k, dimensions, squares);
      for (auto& of_vector : squares) {
        if constexpr (may_be_no_points) {
          for (int row = 0; row < first - i; ++row) of_vector[row] = V(far);
        }
        sum = sum + sum_of(of_vector);
      }
    };
    const int64_t next = i / kStep * kStep + kStep;
    int64_t k = next < begin ? begin : next;
    for (; k + kStep < end; k += 2 * kStep) add(k, std::integral_constant<int, 2>());
    if (k < end) add(k, std::integral_constant<int, 1>());
    return widen(sum);
  };
  int64_t i = first / kRows<T> * kRows<T>;
  if (i < end) total = total + sum_of_rows(i, std::true_type());
  for (i += kRows<T>; i < end; i += kRows<T>) total = total + sum_of_rows(i, std::false_type());

  T lane[kStep];
  for (int l = 0; l < kStep; ++l) lane[l] = static_cast<T>(l);
  const V lanes = V::loadu(lane);
  for (int64_t k = begin < first ? first / kStep * kStep : begin; k < end; k += kStep) {
    Squares<T> squares[kTurns<T>];
    find_squares_within(columns + k, dimensions, squares);
    unrolled<kTurns<T> * kRows<T>>([&](auto t) {
      V& square = squares[t / kRows<T>][t % kRows<T>];
      if constexpr (t >= kMostTurns<T>) square = V(far);
      // Half the vector on, each pair comes twice.
      if constexpr (t == kMostTurns<T> - 1) {
        square = V::blendv(square, V(far), lanes > V(kMostTurns<T> - T(0.5)));
      }
      if (k < first) {
        const V last(static_cast<T>(first - k) - T(0.5));
        square = V::blendv(V(far), square, lanes > last);
        square = V::blendv(V(far), square, rotated<(t + 1) % kStep>(lanes) > last);
      }
    });
    V sum(T(0));
    for (const auto& of_turn : squares) sum = sum + sum_of(of_turn);
    total = total + widen(sum);
  }
  double result = 0;
  for (const auto& part : total.part) result += sum_of_lanes(part);
  return result;
}

// All reciprocals for one division. `far` is so far that a pair's energy is nothing beside a real
// one's, and so near that the product of all squares is finite.
template <typename T>
double sum_of_reciprocals(const T* tiles, int64_t num_points, int64_t dimensions, int64_t tile,
                          T least) {
  constexpr T kFar = sizeof(T) == 4 ? 1e9 : 1e60;
  return sum_over_pairs(tiles, num_points, dimensions, tile, kFar,
                        [least](const Squares<T>& squares) {
                          const Vector<T> floor(least), first = clamp_min(squares[0], floor),
                                                        second = clamp_min(squares[1], floor);
                          Vector<T> numerator = first + second, denominator = first * second;
                          for (int row = 2; row < kRows<T>; ++row) {
                            const auto square = clamp_min(squares[row], floor);
                            numerator = fmadd(numerator, square, denominator);
                            denominator = denominator * square;
                          }
                          return numerator / denominator;
                        });
}

double sum_of_powers(const double* tiles, int64_t num_points, int64_t dimensions, int64_t tile,
                     double least, double exponent) {
  using V = Vector<double>;
  constexpr double kFar = std::numeric_limits<double>::infinity();
  const V one(1.0), floor(least);
  if (exponent == -1) {
    return sum_over_pairs(tiles, num_points, dimensions, tile, kFar,
                          [&](const Squares<double>& squares) {
                            V sum(0.0);
                            for (const V& square : squares) {
                              sum = sum + one / clamp_min(square, floor);
                            }
                            return sum;
                          });
  }
  return sum_over_pairs(tiles, num_points, dimensions, tile, kFar,
                        [&](const Squares<double>& squares) {
                          double sums[V::size()] = {};
                          for (const V& vector : squares) {
                            double lanes[V::size()];
                            clamp_min(vector, floor).store(lanes);
                            for (int l = 0; l < V::size(); ++l) {
                              sums[l] += std::pow(lanes[l], exponent);
                            }
                          }
                          return V::loadu(sums);
                        });
}

}  // namespace

FEDKERN_DEFINE_VARIANT(SimplexRieszEnergyKernels, simplex_riesz_energy_kernels) = {
    {&project<float>, &sum_of_reciprocals<float>},
    {&project<double>, &sum_of_reciprocals<double>},
    &sum_of_powers};

}  // namespace fedkern
