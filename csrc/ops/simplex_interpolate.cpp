#include "ops/simplex_interpolate.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/saved_variable.h>
#include <torch/library.h>

#include "common/autograd_node.h"
#include "ops/simplex_interpolate_backward.h"
#include "ops/simplex_interpolate_vmap.h"

namespace fedkern {

using at::Tensor;
using at::TensorList;

std::vector<Tensor> call_simplex_interpolate(TensorList endpoints, const Tensor& alpha,
                                             bool grouped) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("fedkern::simplex_interpolate", "")
                             .typed<std::vector<Tensor>(TensorList, const Tensor&, bool)>();
  return op.call(endpoints, alpha, grouped);
}

std::vector<Tensor> simplex_endpoint_grads(TensorList grads, const Tensor& alpha, bool grouped) {
  if (alpha.dim() == 2 + grouped) {
    return call_simplex_interpolate(grads, alpha.transpose(-2, -1), grouped);
  }
  std::vector<Tensor> of_one_point;
  for (const Tensor& grad : grads) of_one_point.push_back(grad.unsqueeze(grouped));
  return call_simplex_interpolate(of_one_point, alpha.unsqueeze(-1), grouped);
}

namespace {

std::vector<Tensor> simplex_interpolate_meta(TensorList endpoints, const Tensor& alpha,
                                             bool grouped) {
  check_simplex_interpolate(endpoints, alpha, grouped);
  return empty_simplex_points(endpoints, alpha, grouped);
}

// ---- autograd ----------------------------------------------------------------------------------

namespace ag = torch::autograd;

struct SimplexInterpolateBackward : ag::Node {
  SavedList endpoints_;      // kept only if alpha has a gradient
  ag::SavedVariable alpha_;  // kept only if endpoints have one
  at::ScalarType alpha_dtype_ = at::kFloat;
  bool grouped_ = false;

  std::string name() const override { return "SimplexInterpolateBackward"; }

  void release_variables() override {
    const std::lock_guard<std::mutex> lock(mutex_);
    endpoints_.release();
    alpha_.reset_data();
  }

  // Tensors of the list that nothing was computed from have no upstream gradient: they are left
  // out.
  ag::variable_list apply(ag::variable_list&& grads) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    const size_t size = grads.size(), alpha = size;
    ag::variable_list result(size + 1);
    compute_wanted(
        result, 0, grads,
        [&](size_t i) { return grads[i].defined() && task_should_compute_output(i); },
        [&](TensorList upstream) {
          return simplex_endpoint_grads(upstream, alpha_.unpack(), grouped_);
        });
    if (task_should_compute_output(alpha)) {
      const std::vector<Tensor> endpoints = endpoints_.unpack();
      std::vector<Tensor> defined, their_endpoints;
      for (size_t i = 0; i < size; ++i) {
        if (!grads[i].defined()) continue;
        defined.push_back(grads[i]);
        their_endpoints.push_back(endpoints[i]);
      }
      if (!defined.empty()) {
        result[alpha] =
            call_simplex_interpolate_backward(defined, their_endpoints, grouped_, alpha_dtype_);
      }
    }
    return result;
  }
};

std::vector<Tensor> simplex_interpolate_autograd(TensorList endpoints, const Tensor& alpha,
                                                 bool grouped) {
  TORCH_CHECK_NOT_IMPLEMENTED(
      !ag::isFwGradDefined(alpha) && !ag::isFwGradDefinedTensorList(endpoints),
      "simplex_interpolate: forward-mode derivatives are not implemented");
  std::vector<Tensor> results;
  {
    const at::AutoDispatchBelowADInplaceOrView below_autograd;
    results = call_simplex_interpolate(endpoints, alpha, grouped);
  }
  if (ag::compute_requires_grad(endpoints, alpha)) {
    auto node = make_node<SimplexInterpolateBackward>();
    node->set_next_edges(ag::collect_next_edges(endpoints, alpha));
    if (ag::compute_requires_grad(alpha)) node->endpoints_ = SavedList(endpoints);
    if (ag::compute_requires_grad(endpoints)) {
      node->alpha_ = ag::SavedVariable(alpha, /*is_output=*/false);
    }
    node->alpha_dtype_ = alpha.scalar_type();
    node->grouped_ = grouped;
    ag::set_history(results, node);
  }
  return results;
}

// ---- vmap --------------------------------------------------------------------------------------

std::vector<Tensor> simplex_interpolate_vmap(TensorList endpoints, const Tensor& alpha,
                                             bool grouped) {
  const SimplexVmap vmap(endpoints, alpha, grouped, alpha.dim() == 2 + grouped);
  if (!vmap.maps()) return call_simplex_interpolate(endpoints, alpha, grouped);
  return vmap.mapped(
      call_simplex_interpolate(vmap.endpoints(endpoints), vmap.points(alpha), vmap.grouped()));
}

}  // namespace
}  // namespace fedkern

TORCH_LIBRARY_IMPL(fedkern, Meta, m) {
  m.impl("simplex_interpolate", TORCH_FN(fedkern::simplex_interpolate_meta));
}
TORCH_LIBRARY_IMPL(fedkern, Autograd, m) {
  m.impl("simplex_interpolate", TORCH_FN(fedkern::simplex_interpolate_autograd));
}
TORCH_LIBRARY_IMPL(fedkern, FuncTorchBatched, m) {
  m.impl("simplex_interpolate", TORCH_FN(fedkern::simplex_interpolate_vmap));
}
