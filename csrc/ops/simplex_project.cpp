#include "ops/simplex_project.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/scalar_tensor.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/library.h>

#include <tuple>

#include "common/vmap.h"
#include "ops/simplex_project_backward.h"

namespace fedkern {

using at::Tensor;

namespace {

// ---- the operator, called through the dispatcher -----------------------------------------------

std::tuple<Tensor, Tensor> call(const Tensor& x, const Tensor& z, int64_t dim) {
  static const auto op =
      c10::Dispatcher::singleton()
          .findSchemaOrThrow("fedkern::simplex_project", "")
          .typed<std::tuple<Tensor, Tensor>(const Tensor&, const Tensor&, int64_t)>();
  return op.call(x, z, dim);
}

std::tuple<Tensor, Tensor> simplex_project_meta(const Tensor& x, const Tensor& z, int64_t dim) {
  dim = check_simplex_project(x, z, dim);
  return {at::empty_like(x), at::empty_symint(support_shape(x, dim), x.options().dtype(at::kByte))};
}

// ---- autograd ----------------------------------------------------------------------------------

std::tuple<Tensor, Tensor> simplex_project_autograd(const Tensor& x, const Tensor& z, int64_t dim) {
  TORCH_CHECK_VALUE(!torch::autograd::compute_requires_grad(z),
                    "simplex_project: z must not require grad: it gets no derivative");
  TORCH_CHECK_NOT_IMPLEMENTED(!x._fw_grad(/*level=*/0).defined(),
                              "simplex_project: forward-mode derivatives are not implemented");
  Tensor result, support;
  {
    const at::AutoDispatchBelowADInplaceOrView below_autograd;
    std::tie(result, support) = call(x, z, dim);
  }
  set_projection_history(result, x, support, dim);
  return {result, support};
}

// ---- vmap: more rows ---------------------------------------------------------------------------

std::tuple<Tensor, Tensor> simplex_project_vmap(const Tensor& x, const Tensor& z, int64_t dim) {
  const int64_t rank = x.dim(), z_rank = z.dim();
  if (dim >= 0 && dim < rank) dim -= rank;  // from the end: the mapped dimension goes in front
  const VmapLevel vmap({x, z});
  if (!vmap.maps()) return call(x, z, dim);
  // A stack of z needs as many dimensions as a stack of rows.
  Tensor stacked_z = z;
  if (vmap.maps(z)) {
    stacked_z = vmap.stacked(z);
    for (int64_t d = z_rank; d < rank - 1; ++d) stacked_z = stacked_z.unsqueeze(1);
  }
  const auto [result, support] = call(vmap.stacked(x), stacked_z, dim);
  return {vmap.mapped(result, 0), vmap.mapped(support, 0)};
}

}  // namespace

Tensor call_simplex_project(const Tensor& x, const Tensor& z, int64_t dim) {
  return std::get<0>(call(x, z, dim));
}

Tensor call_simplex_project_onto(const Tensor& x, double z, int64_t dim) {
  return call_simplex_project(x, at::scalar_tensor(z, at::kDouble), dim);
}

}  // namespace fedkern

TORCH_LIBRARY_IMPL(fedkern, Meta, m) {
  m.impl("simplex_project", TORCH_FN(fedkern::simplex_project_meta));
}
TORCH_LIBRARY_IMPL(fedkern, Autograd, m) {
  m.impl("simplex_project", TORCH_FN(fedkern::simplex_project_autograd));
}
TORCH_LIBRARY_IMPL(fedkern, FuncTorchBatched, m) {
  m.impl("simplex_project", TORCH_FN(fedkern::simplex_project_vmap));
}
