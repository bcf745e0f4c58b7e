#include "ops/simplex_riesz_energy.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>

#include "common/cpu_buffer.h"
#include "ops/cpu/simplex_riesz_energy_kernel.h"

namespace fedkern {
namespace {

using Buffer = CpuBuffer<double, 1024>;

double log_mean(double sum, int64_t num_points) {
  const auto n = static_cast<double>(num_points);
  return std::log(sum / (n * (n - 1) / 2));
}

at::Tensor simplex_riesz_energy(const at::Tensor& points, double s, double min_distance) {
  check_simplex_riesz_energy(points, s, min_distance);
  const at::Tensor rows = points.to(at::kDouble);
  const auto from = rows.accessor<double, 2>();
  const int64_t num_points = rows.size(0), dimensions = rows.size(1);
  const int64_t size = tiles_size(num_points, dimensions);
  Buffer tiles(size);
  std::fill_n(tiles.data(), size, 0);
  for (int64_t i = 0; i < num_points; ++i) {
    const int64_t place = padding(num_points) + i;
    for (int64_t d = 0; d < dimensions; ++d) tiles[tiles_index(place, d, dimensions)] = from[i][d];
  }

  const auto run = simplex_riesz_energy_kernels().sum_of_powers;
  const int64_t count = num_tiles(num_points);
  CpuBuffer<double, 64> sums(count);
  at::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      // A tile meets all before it: in this order each thread's share is as much work.
      const int64_t tile = task % 2 == 0 ? task / 2 : count - 1 - task / 2;
      sums[tile] =
          run(tiles.data(), num_points, dimensions, tile, min_distance * min_distance, -s / 2);
    }
  });
  double sum = 0;
  for (int64_t tile = 0; tile < count; ++tile) sum += sums[tile];
  at::Tensor energy = at::empty({}, rows.options());
  *energy.mutable_data_ptr<double>() = log_mean(sum, num_points);
  return energy;
}

// ---- by size -----------------------------------------------------------------------------------

// Writes what SortedScores holds.
void sort_scores(const at::Tensor& scores, double* shifted, double* means, double* inverse_counts) {
  const auto from = scores.accessor<double, 2>();
  const int64_t num_points = scores.size(0), dimensions = scores.size(1);
  std::fill_n(shifted, scores_size(num_points, dimensions), 0);
  std::fill_n(means, scores_size(num_points, dimensions), 0);
  for (int64_t d = 0; d < dimensions; ++d) inverse_counts[d] = 1 / static_cast<double>(d + 1);
  CpuBuffer<double, 64> row(dimensions);
  double* const begin = row.data();
  double* const end = begin + dimensions;
  for (int64_t i = 0; i < num_points; ++i) {
    const int64_t place = padding(num_points) + i;
    for (int64_t d = 0; d < dimensions; ++d) row[d] = from[i][d];
    const double greatest = *std::max_element(begin, end);
    for (int64_t d = 0; d < dimensions; ++d) {
      row[d] -= greatest;
      shifted[scores_index(place, d, dimensions)] = row[d];
    }
    // nan, and inf less inf, has no order and no energy. -inf has: it is never in a support.
    const bool ordered = std::none_of(begin, end, [](double x) { return std::isnan(x); });
    if (ordered) std::sort(begin, end, std::greater<>());
    double sum = ordered ? 0 : std::numeric_limits<double>::quiet_NaN();
    for (int64_t d = 0; d < dimensions; ++d) {
      sum += row[d];
      means[scores_index(place, d, dimensions)] = sum * inverse_counts[d];
    }
  }
}

template <typename T>
void energies_by_size(const SubregionKernels<T>& kernels, const SortedScores& scores,
                      const at::Tensor& sizes, const bool* wanted, at::Tensor& energies) {
  constexpr T kLeast = kSubregionMinDistance * kSubregionMinDistance;
  const at::Tensor dense = sizes.contiguous();
  const double* const size = dense.const_data_ptr<double>();
  double* const energy = energies.mutable_data_ptr<double>();
  at::parallel_for(0, sizes.numel(), 1, [&](int64_t begin, int64_t end) {
    const int64_t coordinates = num_coordinates(scores.dimensions);
    CpuBuffer<T, 1024> tiles(tiles_size(scores.num_points, coordinates));
    for (int64_t z = begin; z < end; ++z) {
      energy[z] = std::numeric_limits<double>::infinity();
      if (wanted && !wanted[z]) continue;
      kernels.project(scores, size[z], tiles.data());
      double sum = 0;
      for (int64_t tile = 0; tile < num_tiles(scores.num_points); ++tile) {
        sum +=
            kernels.sum_of_reciprocals(tiles.data(), scores.num_points, coordinates, tile, kLeast);
      }
      energy[z] = log_mean(sum, scores.num_points);
    }
  });
}

at::Tensor simplex_riesz_energy_by_size(const at::Tensor& scores, const at::Tensor& sizes,
                                        const std::optional<at::Tensor>& wanted, bool screen) {
  check_simplex_riesz_energy_by_size(scores, sizes, wanted);
  const int64_t num_points = scores.size(0), dimensions = scores.size(1);
  const int64_t size = scores_size(num_points, dimensions);
  Buffer shifted(size), means(size), inverse_counts(dimensions);
  sort_scores(scores, shifted.data(), means.data(), inverse_counts.data());
  const SortedScores sorted{shifted.data(), means.data(), inverse_counts.data(), num_points,
                            dimensions};
  const at::Tensor flags = wanted ? wanted->contiguous() : at::Tensor();
  const bool* const flag_data = wanted ? flags.const_data_ptr<bool>() : nullptr;
  at::Tensor energies = at::empty(sizes.sizes(), sizes.options());
  const auto& kernels = simplex_riesz_energy_kernels();
  if (screen) {
    energies_by_size(kernels.in_float, sorted, sizes, flag_data, energies);
  } else {
    energies_by_size(kernels.in_double, sorted, sizes, flag_data, energies);
  }
  return energies;
}

}  // namespace
}  // namespace fedkern

TORCH_LIBRARY_IMPL(fedkern, CPU, m) {
  m.impl("simplex_riesz_energy", TORCH_FN(fedkern::simplex_riesz_energy));
  m.impl("simplex_riesz_energy_by_size", TORCH_FN(fedkern::simplex_riesz_energy_by_size));
}
