#include "ops/simplex_interpolate_backward.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/library.h>

#include "common/autograd_node.h"
#include "ops/simplex_interpolate_vmap.h"

namespace fedkern {

using at::Tensor;
using at::TensorList;

Tensor call_simplex_interpolate_backward(TensorList grads, TensorList endpoints, bool grouped,
                                         at::ScalarType dtype) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("fedkern::simplex_interpolate_backward", "")
                             .typed<Tensor(TensorList, TensorList, bool, at::ScalarType)>();
  return op.call(grads, endpoints, grouped, dtype);
}

namespace {

Tensor simplex_interpolate_backward_meta(TensorList grads, TensorList endpoints, bool grouped,
                                         at::ScalarType dtype) {
  check_simplex_interpolate_backward(grads, endpoints, grouped, dtype);
  return at::empty_symint(simplex_alpha_shape(grads, endpoints, grouped),
                          endpoints[0].options().dtype(dtype));
}

// ---- autograd: inner products are bilinear, both derivatives are interpolations ----------------

namespace ag = torch::autograd;

struct SimplexInterpolateBackwardBackward : ag::Node {
  SavedList grads_;      // kept only if endpoints have gradients
  SavedList endpoints_;  // kept only if grads have some
  size_t size_ = 0;      // of each list
  bool grouped_ = false;

  std::string name() const override { return "SimplexInterpolateBackwardBackward"; }

  void release_variables() override {
    const std::lock_guard<std::mutex> lock(mutex_);
    grads_.release();
    endpoints_.release();
  }

  // The edges are those of grads, then those of endpoints.
  ag::variable_list apply(ag::variable_list&& upstream) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    ag::variable_list result(2 * size_);
    const Tensor& v = upstream[0];  // of alpha's shape
    if (!v.defined()) return result;
    // The lists that are not kept are empty: nothing is wanted from them.
    compute_wanted(
        result, 0, endpoints_.unpack(), [&](size_t i) { return task_should_compute_output(i); },
        [&](TensorList endpoints) { return call_simplex_interpolate(endpoints, v, grouped_); });
    compute_wanted(
        result, size_, grads_.unpack(),
        [&](size_t i) { return task_should_compute_output(size_ + i); },
        [&](TensorList grads) { return simplex_endpoint_grads(grads, v, grouped_); });
    return result;
  }
};

Tensor simplex_interpolate_backward_autograd(TensorList grads, TensorList endpoints, bool grouped,
                                             at::ScalarType dtype) {
  Tensor result;
  {
    const at::AutoDispatchBelowADInplaceOrView below_autograd;
    result = call_simplex_interpolate_backward(grads, endpoints, grouped, dtype);
  }
  if (ag::compute_requires_grad(grads, endpoints)) {
    auto node = make_node<SimplexInterpolateBackwardBackward>();
    node->set_next_edges(ag::collect_next_edges(grads, endpoints));
    if (ag::compute_requires_grad(endpoints)) node->grads_ = SavedList(grads);
    if (ag::compute_requires_grad(grads)) node->endpoints_ = SavedList(endpoints);
    node->size_ = grads.size();
    node->grouped_ = grouped;
    ag::set_history(result, node);
  }
  return result;
}

// ---- vmap --------------------------------------------------------------------------------------

Tensor simplex_interpolate_backward_vmap(TensorList grads, TensorList endpoints, bool grouped,
                                         at::ScalarType dtype) {
  const SimplexVmap vmap(endpoints, grads, grouped, several_points(grads, endpoints));
  if (!vmap.maps()) return call_simplex_interpolate_backward(grads, endpoints, grouped, dtype);
  return vmap.mapped(call_simplex_interpolate_backward(
      vmap.points(grads), vmap.endpoints(endpoints), vmap.grouped(), dtype));
}

}  // namespace
}  // namespace fedkern

TORCH_LIBRARY_IMPL(fedkern, Meta, m) {
  m.impl("simplex_interpolate_backward", TORCH_FN(fedkern::simplex_interpolate_backward_meta));
}
TORCH_LIBRARY_IMPL(fedkern, Autograd, m) {
  m.impl("simplex_interpolate_backward", TORCH_FN(fedkern::simplex_interpolate_backward_autograd));
}
TORCH_LIBRARY_IMPL(fedkern, FuncTorchBatched, m) {
  m.impl("simplex_interpolate_backward", TORCH_FN(fedkern::simplex_interpolate_backward_vmap));
}
