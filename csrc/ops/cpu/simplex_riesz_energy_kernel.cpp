// Compiled once per CPU capability (common/cpu_capability.h). K points have K (K - 1) / 2 pairs; a
// pair costs M subtractions and multiply-adds, and a reciprocal. Four points i meet a vector of
// points k at a time (a quad), so that a coordinate is loaded once for four uses and four
// reciprocals take one division. The points k are those of a tile, which stays in the L1 cache.

#include "ops/cpu/simplex_riesz_energy_kernel.h"

#include <cmath>

#include "common/macros.h"
#include "common/vector.h"
#include "common/vector_reduce.h"

namespace fedkern {
namespace {

// ---- projection --------------------------------------------------------------------------------

// Where the points at the places before the first one are: far enough for their energy to be
// nothing beside a pair's, near enough for the product of four squared distances to be finite.
template <typename T>
constexpr T kFar = sizeof(T) == 4 ? 3e4 : 1e30;

// Plain loops over a tile's points, which the compiler vectorises.
template <typename T>
void project(const SortedScores& scores, double size, T* tiles) {
  const double inverse = 1 / size;
  for (int64_t tile = 0; tile < num_tiles(scores.num_points); ++tile) {
    const int64_t begin = tile * kTilePlaces, offset = begin * scores.dimensions;
    const int64_t left = num_places(scores.num_points) - begin;
    const int64_t count = left < kTilePlaces ? left : kTilePlaces;
    double tau[kTilePlaces];  // of all supports, the true one gives the greatest
    for (int64_t i = 0; i < count; ++i) tau[i] = scores.sums[offset + i] - size;
    for (int64_t d = 1; d < scores.dimensions; ++d) {
      const double* const sums = scores.sums + offset + d * kTilePlaces;
      const double share = 1 / static_cast<double>(d + 1);
      for (int64_t i = 0; i < count; ++i) {
        const double candidate = (sums[i] - size) * share;
        tau[i] = candidate > tau[i] ? candidate : tau[i];
      }
    }
    for (int64_t d = 0; d < scores.dimensions; ++d) {
      const double* const from = scores.scores + offset + d * kTilePlaces;
      T* const to = tiles + offset + d * kTilePlaces;
      for (int64_t i = 0; i < count; ++i) {
        const double above = from[i] - tau[i];
        to[i] = static_cast<T>((above < 0 ? 0 : above) * inverse);
      }
    }
  }
  for (int64_t i = 0; i < padding(scores.num_points); ++i) tiles[i] = kFar<T>;
}

// ---- pairs -------------------------------------------------------------------------------------

constexpr int kRows = 4;

// The squared distances of kRows points i, next to each other, from a vector of points k.
template <typename T>
struct Quad {
  Vector<T> square[kRows];
};

// Of kVectors vectors next to each other. rows, columns: coordinate 0 of the first points i and k.
template <int kVectors, typename T>
FEDKERN_ALWAYS_INLINE void make_quads(const T* rows, const T* columns, int64_t dimensions,
                                      Quad<T> (&quads)[kVectors]) {
  using V = Vector<T>;
  V squares[kVectors][kRows];
  for (auto& of_vector : squares) {
    for (V& square : of_vector) square = V(T(0));
  }
  for (int64_t n = 0; n < dimensions * kTilePlaces; n += kTilePlaces) {
    V column[kVectors];
    for (int v = 0; v < kVectors; ++v) column[v] = V::loadu(columns + n + v * V::size());
    for (int row = 0; row < kRows; ++row) {
      const V x(rows[n + row]);
      for (int v = 0; v < kVectors; ++v) {
        const V difference = x - column[v];
        squares[v][row] = fmadd(difference, difference, squares[v][row]);
      }
    }
  }
  for (int v = 0; v < kVectors; ++v) {
    for (int row = 0; row < kRows; ++row) quads[v].square[row] = squares[v][row];
  }
}

// The sum of sum_of(quad, i, k) over a tile's quads, from places i and k on. Lanes where k is not
// greater than i, or i is before the first point, are no pairs; the former are only where k < i
// + 4.
template <typename T, typename SumOf>
FEDKERN_ALWAYS_INLINE double sum_over_quads(const T* tiles, int64_t num_points, int64_t dimensions,
                                            int64_t tile, const SumOf& sum_of) {
  constexpr int64_t kStep = Vector<T>::size();
  static_assert(kMostLanes % kStep == 0 && kTilePlaces % kMostLanes == 0);
  const int64_t begin = tile * kTilePlaces;
  const int64_t places = num_places(num_points);
  const int64_t end = begin + kTilePlaces < places ? begin + kTilePlaces : places;
  Wide<T> total = widen(Vector<T>(T(0)));
  for (int64_t i = padding(num_points) / kRows * kRows; i < end; i += kRows) {
    const T* const rows = tiles + tiles_index(i, 0, dimensions);
    Vector<T> sum(T(0));
    const auto add = [&](auto&& quads, int64_t k) {
      make_quads(rows, tiles + tiles_index(k, 0, dimensions), dimensions, quads);
      for (const auto& quad : quads) {
        sum = sum + sum_of(quad, i, k);
        k += kStep;
      }
    };
    Quad<T> one[1], two[2];
    int64_t k = i < begin ? begin : i / kStep * kStep;
    if (i >= begin) add(one, k), k += kStep;
    for (; k + kStep < end; k += 2 * kStep) add(two, k);
    if (k < end) add(one, k);
    total = total + widen(sum);
  }
  double result = 0;
  for (const auto& part : total.part) result += sum_of_lanes(part);
  return result;
}

// Four reciprocals for one division.
template <typename T>
double sum_of_reciprocals(const T* tiles, int64_t num_points, int64_t dimensions, int64_t tile,
                          T least) {
  using V = Vector<T>;
  T lane[V::size()];
  for (int l = 0; l < V::size(); ++l) lane[l] = static_cast<T>(l);
  const V lanes = V::loadu(lane), far(kFar<T> * kFar<T>), floor(least);
  return sum_over_quads(
      tiles, num_points, dimensions, tile, [&](Quad<T> quad, int64_t i, int64_t k) {
        for (int row = 0; row < kRows; ++row) {
          V& square = quad.square[row];
          square = clamp_min(square, floor);
          if (k > i + kRows - 1) continue;
          const int64_t first = i + row < padding(num_points) ? V::size() : i + row - k;
          square = V::blendv(far, square, lanes > V(static_cast<T>(first)));
        }
        const V &a = quad.square[0], &b = quad.square[1], &c = quad.square[2], &d = quad.square[3];
        const V ab = a * b, cd = c * d;
        return fmadd(a + b, cd, (c + d) * ab) / (ab * cd);
      });
}

double sum_of_powers(const double* tiles, int64_t num_points, int64_t dimensions, int64_t tile,
                     double least, double exponent) {
  using V = Vector<double>;
  return sum_over_quads(tiles, num_points, dimensions, tile,
                        [&](const Quad<double>& quad, int64_t i, int64_t k) {
                          double sums[V::size()] = {};
                          for (int row = 0; row < kRows; ++row) {
                            double squares[V::size()];
                            quad.square[row].store(squares);
                            for (int l = 0; l < V::size(); ++l) {
                              if (k + l <= i + row || i + row < padding(num_points)) continue;
                              const double square = squares[l] < least ? least : squares[l];
                              sums[l] += exponent == -1 ? 1 / square : std::pow(square, exponent);
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
