// Compiled once per CPU capability (common/cpu_capability.h). K points have K (K - 1) / 2 pairs; a
// pair costs M subtractions and multiply-adds, and a reciprocal. Two points i meet two vectors of
// points k at a time (a quad), so that coordinates are loaded once for two uses and four
// reciprocals take one division. The points k are those of a tile, which stays in the L1 cache.

#include "ops/cpu/simplex_riesz_energy_kernel.h"

#include <cmath>

#include "common/macros.h"
#include "common/vector.h"
#include "common/vector_reduce.h"

namespace fedkern {
namespace {

// ---- projection --------------------------------------------------------------------------------

// Where the points beyond the last one are: far enough for their energy to be nothing beside a
// pair's, near enough for the product of four squared distances to be finite.
template <typename T>
constexpr T kFar = sizeof(T) == 4 ? 3e4 : 1e30;

// Plain loops over a tile's points, which the compiler vectorises.
// Points k that are worked on at a time, at most.
constexpr int64_t kMostStep = 32;

template <typename T>
void project(const SortedScores& scores, double size, T* tiles) {
  const double inverse = 1 / size;
  for (int64_t tile = 0; tile < num_tiles(scores.num_points); ++tile) {
    const int64_t begin = tile * kTilePoints, offset = begin * scores.dimensions;
    const int64_t left = (scores.num_points - begin + kMostStep - 1) / kMostStep * kMostStep;
    const int64_t count = left < kTilePoints ? left : kTilePoints;
    double tau[kTilePoints];  // of all supports, the true one gives the greatest
    for (int64_t i = 0; i < count; ++i) tau[i] = scores.sums[offset + i] - size;
    for (int64_t d = 1; d < scores.dimensions; ++d) {
      const double* const sums = scores.sums + offset + d * kTilePoints;
      const double share = 1 / static_cast<double>(d + 1);
      for (int64_t i = 0; i < count; ++i) {
        const double candidate = (sums[i] - size) * share;
        tau[i] = candidate > tau[i] ? candidate : tau[i];
      }
    }
    for (int64_t d = 0; d < scores.dimensions; ++d) {
      const double* const from = scores.scores + offset + d * kTilePoints;
      T* const to = tiles + offset + d * kTilePoints;
      for (int64_t i = 0; i < count; ++i) {
        const double above = from[i] - tau[i];
        to[i] = static_cast<T>((above < 0 ? 0 : above) * inverse);
      }
    }
    for (int64_t i = scores.num_points - begin; i < count; ++i) tiles[offset + i] = kFar<T>;
  }
}

// ---- pairs -------------------------------------------------------------------------------------

// Squared distances of two points i (rows) from two vectors of points k (halves).
template <typename T>
struct Quad {
  Vector<T> square[2][2];
};

// rows, columns: coordinate 0 of the first point i and of the first point k.
template <typename T>
FEDKERN_ALWAYS_INLINE Quad<T> quad(const T* rows, const T* columns, int64_t dimensions) {
  using V = Vector<T>;
  V a(T(0)), b(T(0)), c(T(0)), d(T(0));
  for (int64_t n = 0; n < dimensions * kTilePoints; n += kTilePoints) {
    const V x(rows[n]), y(rows[n + 1]);
    const V u = V::loadu(columns + n), v = V::loadu(columns + n + V::size());
    const V xu = x - u, xv = x - v, yu = y - u, yv = y - v;
    a = fmadd(xu, xu, a);
    b = fmadd(xv, xv, b);
    c = fmadd(yu, yu, c);
    d = fmadd(yv, yv, d);
  }
  return {{{a, b}, {c, d}}};
}

// The sum of sum_of(quad, i, k) over a tile's quads, from points i and k on. Lanes where k is not
// greater than i, or no point, are no pairs: the former are only in quads with k <= i + 1.
template <typename T, typename SumOf>
FEDKERN_ALWAYS_INLINE double sum_over_quads(const T* tiles, int64_t num_points, int64_t dimensions,
                                            int64_t tile, const SumOf& sum_of) {
  constexpr int64_t kStep = 2 * Vector<T>::size();
  static_assert(kMostStep % kStep == 0 && kTilePoints % kMostStep == 0);
  const int64_t begin = tile * kTilePoints;
  const int64_t end = begin + kTilePoints < num_points ? begin + kTilePoints : num_points;
  Wide<T> total = widen(Vector<T>(T(0)));
  for (int64_t i = 0; i < end && i + 1 < num_points; i += 2) {  // the last point has no k
    const T* const rows = tiles + tiles_index(i, 0, dimensions);
    Vector<T> sum(T(0));
    for (int64_t k = i < begin ? begin : i / kStep * kStep; k < end; k += kStep) {
      sum = sum + sum_of(quad(rows, tiles + tiles_index(k, 0, dimensions), dimensions), i, k);
    }
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
        for (int row = 0; row < 2; ++row) {
          for (int half = 0; half < 2; ++half) {
            V& square = quad.square[row][half];
            square = clamp_min(square, floor);
            if (k > i + 1) continue;
            const V first(static_cast<T>(i + row - (k + half * V::size())));
            square = V::blendv(far, square, lanes > first);
          }
        }
        const auto& [first, second] = quad.square;
        const V ab = first[0] * first[1], cd = second[0] * second[1];
        return fmadd(first[0] + first[1], cd, (second[0] + second[1]) * ab) / (ab * cd);
      });
}

double sum_of_powers(const double* tiles, int64_t num_points, int64_t dimensions, int64_t tile,
                     double least, double exponent) {
  using V = Vector<double>;
  return sum_over_quads(tiles, num_points, dimensions, tile,
                        [&](const Quad<double>& quad, int64_t i, int64_t k) {
                          double sums[V::size()] = {};
                          for (int row = 0; row < 2; ++row) {
                            for (int half = 0; half < 2; ++half) {
                              double squares[V::size()];
                              quad.square[row][half].store(squares);
                              for (int l = 0; l < V::size(); ++l) {
                                const int64_t point = k + half * V::size() + l;
                                if (point <= i + row || point >= num_points) continue;
                                const double square = squares[l] < least ? least : squares[l];
                                sums[l] += exponent == -1 ? 1 / square : std::pow(square, exponent);
                              }
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
