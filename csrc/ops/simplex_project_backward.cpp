#include "ops/simplex_project_backward.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty_like.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/saved_variable.h>
#include <torch/library.h>

#include "common/autograd_node.h"
#include "common/vmap.h"

namespace fedkern {

using at::Tensor;

Tensor call_simplex_project_backward(const Tensor& grad, const Tensor& support, int64_t dim) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("fedkern::simplex_project_backward", "")
                             .typed<Tensor(const Tensor&, const Tensor&, int64_t)>();
  return op.call(grad, support, dim);
}

namespace {

Tensor simplex_project_backward_meta(const Tensor& grad, const Tensor& support, int64_t dim) {
  check_simplex_project_backward(grad, support, dim);
  return at::empty_like(grad);
}

// ---- autograd ----------------------------------------------------------------------------------

namespace ag = torch::autograd;

// Of simplex_project, and of simplex_project_backward: it is linear and symmetric in grad, so its
// derivative is itself.
struct SimplexProjectBackward : ag::Node {
  ag::SavedVariable support_;
  int64_t dim_ = 0;

  std::string name() const override { return "SimplexProjectBackward"; }

  void release_variables() override {
    const std::lock_guard<std::mutex> lock(mutex_);
    support_.reset_data();
  }

  ag::variable_list apply(ag::variable_list&& grads) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!grads[0].defined() || !task_should_compute_output(0)) return {Tensor()};
    return {call_simplex_project_backward(grads[0], support_.unpack(), dim_)};
  }
};

Tensor simplex_project_backward_autograd(const Tensor& grad, const Tensor& support, int64_t dim) {
  Tensor result;
  {
    const at::AutoDispatchBelowADInplaceOrView below_autograd;
    result = call_simplex_project_backward(grad, support, dim);
  }
  set_projection_history(result, grad, support, dim);
  return result;
}

// ---- vmap: more rows ---------------------------------------------------------------------------

Tensor simplex_project_backward_vmap(const Tensor& grad, const Tensor& support, int64_t dim) {
  if (dim >= 0 && dim < grad.dim()) dim -= grad.dim();  // from the end
  const VmapLevel vmap({grad, support});
  if (!vmap.maps()) return call_simplex_project_backward(grad, support, dim);
  return vmap.mapped(call_simplex_project_backward(vmap.stacked(grad), vmap.stacked(support), dim),
                     0);
}

}  // namespace

void set_projection_history(const Tensor& result, const Tensor& source, const Tensor& support,
                            int64_t dim) {
  if (!ag::compute_requires_grad(source)) return;
  auto node = make_node<SimplexProjectBackward>();
  node->set_next_edges(ag::collect_next_edges(source));
  node->support_ = ag::SavedVariable(support, /*is_output=*/false);
  node->dim_ = dim;
  ag::set_history(result, node);
}

}  // namespace fedkern

TORCH_LIBRARY_IMPL(fedkern, Meta, m) {
  m.impl("simplex_project_backward", TORCH_FN(fedkern::simplex_project_backward_meta));
}
TORCH_LIBRARY_IMPL(fedkern, Autograd, m) {
  m.impl("simplex_project_backward", TORCH_FN(fedkern::simplex_project_backward_autograd));
}
TORCH_LIBRARY_IMPL(fedkern, FuncTorchBatched, m) {
  m.impl("simplex_project_backward", TORCH_FN(fedkern::simplex_project_backward_vmap));
}
