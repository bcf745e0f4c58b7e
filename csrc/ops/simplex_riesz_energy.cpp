#include "ops/simplex_riesz_energy.h"

#include <ATen/ops/empty.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/library.h>

namespace fedkern {
namespace {

at::Tensor simplex_riesz_energy_meta(const at::Tensor& points, double s, double min_distance) {
  check_simplex_riesz_energy(points, s, min_distance);
  return at::empty({}, points.options().dtype(at::kDouble));
}

at::Tensor simplex_riesz_energy_by_size_meta(const at::Tensor& scores, const at::Tensor& sizes,
                                             const std::optional<at::Tensor>& wanted, bool) {
  check_simplex_riesz_energy_by_size(scores, sizes, wanted);
  return at::empty_symint(sizes.sym_sizes(), sizes.options());
}

}  // namespace
}  // namespace fedkern

TORCH_LIBRARY_IMPL(fedkern, Meta, m) {
  m.impl("simplex_riesz_energy", TORCH_FN(fedkern::simplex_riesz_energy_meta));
  m.impl("simplex_riesz_energy_by_size", TORCH_FN(fedkern::simplex_riesz_energy_by_size_meta));
}
TORCH_LIBRARY_IMPL(fedkern, Autograd, m) {
  m.impl("simplex_riesz_energy", torch::autograd::autogradNotImplementedFallback());
  m.impl("simplex_riesz_energy_by_size", torch::autograd::autogradNotImplementedFallback());
}
