#include "ops/simplex_riesz_energy.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/amax.h>
#include <ATen/ops/cumsum.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/sort.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include "ops/cuda/simplex_riesz_energy_kernel.h"

namespace fedkern {
namespace {

// Adds workspace and result to the arguments, and runs.
at::Tensor run(SimplexRieszEnergyArguments& arguments, const at::Tensor& points,
               at::IntArrayRef shape) {
  arguments.points = points.const_data_ptr<double>();
  arguments.num_points = points.size(0);
  arguments.dimensions = points.size(1);
  const int64_t parts = simplex_riesz_energy_parts(arguments.num_points);
  const at::Tensor workspace = at::empty({arguments.num_sets, parts}, points.options());
  at::Tensor energies = at::empty(shape, points.options());
  arguments.parts = workspace.mutable_data_ptr<double>();
  arguments.energies = energies.mutable_data_ptr<double>();
  C10_CUDA_CHECK(simplex_riesz_energy_cuda(arguments, c10::cuda::getCurrentCUDAStream()));
  return energies;
}

at::Tensor simplex_riesz_energy(const at::Tensor& points, double s, double min_distance) {
  check_simplex_riesz_energy(points, s, min_distance);
  const c10::cuda::CUDAGuard guard(points.device());
  SimplexRieszEnergyArguments arguments{};
  arguments.num_sets = 1;
  arguments.exponent = -s / 2;
  arguments.least = min_distance * min_distance;
  return run(arguments, points.to(at::kDouble).contiguous(), {});
}

at::Tensor simplex_riesz_energy_by_size(const at::Tensor& scores, const at::Tensor& sizes,
                                        const std::optional<at::Tensor>& wanted, bool screen) {
  check_simplex_riesz_energy_by_size(scores, sizes, wanted);
  const c10::cuda::CUDAGuard guard(scores.device());
  const at::Tensor shifted = (scores - at::amax(scores, 1, /*keepdim=*/true)).contiguous();
  const at::Tensor sums =
      at::cumsum(std::get<0>(at::sort(shifted, 1, /*descending=*/true)), 1).contiguous();
  const at::Tensor dense = sizes.contiguous();
  const at::Tensor flags = wanted ? wanted->contiguous() : at::Tensor();
  SimplexRieszEnergyArguments arguments{};
  arguments.sums = sums.const_data_ptr<double>();
  arguments.sizes = dense.const_data_ptr<double>();
  if (wanted) arguments.wanted = flags.const_data_ptr<bool>();
  arguments.num_sets = sizes.numel();
  arguments.exponent = -1;
  arguments.least = kSubregionMinDistance * kSubregionMinDistance;
  arguments.screen = screen;
  return run(arguments, shifted, sizes.sizes());
}

}  // namespace
}  // namespace fedkern

TORCH_LIBRARY_IMPL(fedkern, CUDA, m) {
  m.impl("simplex_riesz_energy", TORCH_FN(fedkern::simplex_riesz_energy));
  m.impl("simplex_riesz_energy_by_size", TORCH_FN(fedkern::simplex_riesz_energy_by_size));
}
