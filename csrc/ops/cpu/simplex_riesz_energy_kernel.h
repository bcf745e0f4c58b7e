#pragma once

#include <cstdint>

#include "common/cpu_capability.h"

namespace fedkern {

// Points lie in tiles of so many, coordinate by coordinate: coordinate d of point i of tile t is
// tiles[(t * M + d) * kTilePoints + i]. A tile fits the L1 cache.
constexpr int64_t kTilePoints = 256;

inline int64_t num_tiles(int64_t num_points) {
  return (num_points + kTilePoints - 1) / kTilePoints;
}

inline int64_t tiles_size(int64_t num_points, int64_t dimensions) {
  return num_tiles(num_points) * kTilePoints * dimensions;
}

inline int64_t tiles_index(int64_t point, int64_t d, int64_t dimensions) {
  return (point / kTilePoints * dimensions + d) * kTilePoints + point % kTilePoints;
}

// In tiles: scores, each point's greatest subtracted from it, and the sums of its d + 1 greatest
// ones. That is all it takes to project it onto a simplex of any size.
struct SortedScores {
  const double* scores;
  const double* sums;
  int64_t num_points;
  int64_t dimensions;
};

template <typename T>
struct SubregionKernels {
  // Projects all points onto the simplex of `size` and divides by it. The rest of the last tile is
  // filled with points so far away that their energy is nothing.
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
