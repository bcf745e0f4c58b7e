#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace fedkern {

// Device pointers throughout. Points are given as they are (sums is null), or as scores: then each
// set is their projection onto the simplex of its size, divided by that.
struct SimplexRieszEnergyArguments {
  const double* points;  // [num_points, dimensions]; of scores, each row's greatest is subtracted
  const double* sums;    // the sums of a row's d + 1 greatest scores; or null
  int64_t num_points;
  int64_t dimensions;
  const double* sizes;  // [num_sets]; or null
  const bool* wanted;   // [num_sets]; or null: all are
  int64_t num_sets;
  double exponent;   // of squared distances
  double least;      // squared distances are at least so large
  bool screen;       // in float
  double* parts;     // [num_sets, simplex_riesz_energy_parts(num_points)], for partial sums
  double* energies;  // [num_sets]
};

int64_t simplex_riesz_energy_parts(int64_t num_points);

// Two launches.
cudaError_t simplex_riesz_energy_cuda(const SimplexRieszEnergyArguments& arguments,
                                      cudaStream_t stream);

}  // namespace fedkern
