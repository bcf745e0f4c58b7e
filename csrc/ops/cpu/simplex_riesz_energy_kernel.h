#pragma once

#include <cstdint>

#include "common/ceil_div.h"
#include "common/cpu_capability.h"

namespace fedkern {

// K points are places padding(K) to the end of the tiles' places, whose number is a multiple of the
// longest vector's lanes. So the vectors of places k > i have no gap at their end. Coordinate d of
// place i % kTilePlaces of tile t = i / kTilePlaces is tiles[(t * M + d) * kTilePlaces + i]: a tile
// fits the L1 cache.
constexpr int64_t kMostLanes = 16, kTilePlaces = 256;

inline int64_t padding(int64_t num_points) {
  return (kMostLanes - num_points % kMostLanes) % kMostLanes;
}

inline int64_t num_places(int64_t num_points) { return padding(num_points) + num_points; }

inline int64_t num_tiles(int64_t num_points) {
  return ceil_div(num_places(num_points), kTilePlaces);
}

inline int64_t tiles_size(int64_t num_points, int64_t dimensions) {
  return num_tiles(num_points) * kTilePlaces * dimensions;
}

inline int64_t tiles_index(int64_t place, int64_t d, int64_t dimensions) {
  return (place / kTilePlaces * dimensions + d) * kTilePlaces + place % kTilePlaces;
}

// Scores by dimension in vectors: dimension d of place i is scores[scores_index(i, d, M)].
inline int64_t scores_size(int64_t num_points, int64_t dimensions) {
  return num_places(num_points) * dimensions;
}

inline int64_t scores_index(int64_t place, int64_t d, int64_t dimensions) {
  return (place / kMostLanes * dimensions + d) * kMostLanes + place % kMostLanes;
}

// In that order: scores, each point's greatest subtracted from it, and the means of its d + 1
// greatest ones. That is all it takes to project it onto a simplex of any size.
struct SortedScores {
  const double* scores;
  const double* means;
  const double* inverse_counts;  // 1 / (d + 1)
  int64_t num_points;
  int64_t dimensions;
};

// Points x of a simplex with M endpoints lie in a space of M - 1 dimensions: with x_M / (1 +
// sqrt(M)) subtracted from them, the other coordinates have the same distances.
inline int64_t num_coordinates(int64_t dimensions) { return dimensions < 2 ? 1 : dimensions - 1; }

template <typename T>
struct SubregionKernels {
  // Projects all points onto the simplex of `size`, divides by it and writes num_coordinates of
  // each. What it writes to the places before them has no meaning.
  void (*project)(const SortedScores& scores, double size, T* tiles);
  // The sum of 1 / max(d^2, least) over all pairs i < k with k in the tile, d their distances, of
  // points that `project` wrote.
  double (*sum_of_reciprocals)(const T* tiles, int64_t num_points, int64_t dimensions, int64_t tile,
                               T least);
};

struct SimplexRieszEnergyKernels {
  SubregionKernels<float> in_float;
  SubregionKernels<double> in_double;
  // The sum of max(d^2, least)^exponent over the same pairs, of any points.
  double (*sum_of_powers)(const double* tiles, int64_t num_points, int64_t dimensions, int64_t tile,
                          double least, double exponent);
};
FEDKERN_DECLARE_VARIANTS(SimplexRieszEnergyKernels, simplex_riesz_energy_kernels)

}  // namespace fedkern
