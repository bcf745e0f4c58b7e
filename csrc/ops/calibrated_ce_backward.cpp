#include "ops/calibrated_ce_backward.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/where.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/saved_variable.h>
#include <torch/library.h>

#include "common/autograd_node.h"
#include "common/vmap.h"

namespace fedkern {

using at::Tensor;

// ---- the operators, called through the dispatcher ----------------------------------------------

Tensor call_backward(const Tensor& grad_loss, const Tensor& gradient, const Tensor& target,
                     int64_t ignore_index, bool grouped) {
  static const auto op =
      c10::Dispatcher::singleton()
          .findSchemaOrThrow("fedkern::calibrated_ce_backward", "")
          .typed<Tensor(const Tensor&, const Tensor&, const Tensor&, int64_t, bool)>();
  return op.call(grad_loss, gradient, target, ignore_index, grouped);
}

void call_backward_(Tensor& gradient, const Tensor& grad_loss, const Tensor& target,
                    int64_t ignore_index, bool grouped) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("fedkern::calibrated_ce_backward_", "")
                             .typed<void(Tensor&, const Tensor&, const Tensor&, int64_t, bool)>();
  op.call(gradient, grad_loss, target, ignore_index, grouped);
}

namespace {

Tensor calibrated_ce_backward_meta(const Tensor& grad_loss, const Tensor& gradient,
                                   const Tensor& target, int64_t, bool grouped) {
  check_calibrated_ce_backward(grad_loss, gradient, target, grouped);
  return at::empty_like(gradient);
}

void calibrated_ce_backward_meta_(Tensor& gradient, const Tensor& grad_loss, const Tensor& target,
                                  int64_t, bool grouped) {
  check_calibrated_ce_backward(grad_loss, gradient, target, grouped);
}

// ---- autograd: a product, linear in both factors -----------------------------------------------

namespace ag = torch::autograd;

struct CalibratedCEBackwardBackward : ag::Node {
  ag::SavedVariable grad_loss_, gradient_, target_;
  int64_t ignore_index_ = 0;
  bool grouped_ = false;

  std::string name() const override { return "CalibratedCEBackwardBackward"; }

  void release_variables() override {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (auto* saved : {&grad_loss_, &gradient_, &target_}) saved->reset_data();
  }

  ag::variable_list apply(ag::variable_list&& grads) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    ag::variable_list result(2);
    const Tensor& v = grads[0];
    if (!v.defined()) return result;
    const Tensor grad_loss = grad_loss_.unpack(), target = target_.unpack();
    if (task_should_compute_output(0)) result[0] = by_grad_loss(v, grad_loss, target);
    if (task_should_compute_output(1)) {
      result[1] = call_backward(grad_loss, v, target, ignore_index_, grouped_);
    }
    return result;
  }

 private:
  Tensor by_grad_loss(const Tensor& v, const Tensor& grad_loss, const Tensor& target) {
    const Tensor gradient = gradient_.unpack();
    const auto dtype = gradient.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
    Tensor of_rows = (v.to(dtype) * gradient.to(dtype)).sum(class_dim(gradient, grouped_));
    of_rows = at::where(target.to(at::kLong).eq(ignore_index_), 0, of_rows);
    // a factor of a whole call is all its rows'
    if (grad_loss.dim() < of_rows.dim()) of_rows = of_rows.flatten(grouped_).sum(-1);
    return of_rows.to(grad_loss.scalar_type());
  }
};

Tensor calibrated_ce_backward_autograd(const Tensor& grad_loss, const Tensor& gradient,
                                       const Tensor& target, int64_t ignore_index, bool grouped) {
  Tensor result;
  {
    const at::AutoDispatchBelowADInplaceOrView below_autograd;
    result = call_backward(grad_loss, gradient, target, ignore_index, grouped);
  }
  if (ag::compute_requires_grad(grad_loss, gradient)) {
    auto node = make_node<CalibratedCEBackwardBackward>();
    node->set_next_edges(ag::collect_next_edges(grad_loss, gradient));
    node->grad_loss_ = ag::SavedVariable(grad_loss, /*is_output=*/false);
    node->gradient_ = ag::SavedVariable(gradient, false);
    node->target_ = ag::SavedVariable(target, false);
    node->ignore_index_ = ignore_index;
    node->grouped_ = grouped;
    ag::set_history(result, node);
  }
  return result;
}

// ---- vmap --------------------------------------------------------------------------------------

Tensor calibrated_ce_backward_vmap(const Tensor& grad_loss, const Tensor& gradient,
                                   const Tensor& target, int64_t ignore_index, bool grouped) {
  const VmapCall vmap(grouped, {gradient, grad_loss, target});
  if (!vmap.maps()) return call_backward(grad_loss, gradient, target, ignore_index, grouped);
  return vmap.mapped(call_backward(vmap.grouped(grad_loss), vmap.grouped(gradient),
                                   vmap.grouped(target), ignore_index, /*grouped=*/true));
}

}  // namespace
}  // namespace fedkern

TORCH_LIBRARY_IMPL(fedkern, Meta, m) {
  m.impl("calibrated_ce_backward", TORCH_FN(fedkern::calibrated_ce_backward_meta));
  m.impl("calibrated_ce_backward_", TORCH_FN(fedkern::calibrated_ce_backward_meta_));
}
TORCH_LIBRARY_IMPL(fedkern, Autograd, m) {
  m.impl("calibrated_ce_backward", TORCH_FN(fedkern::calibrated_ce_backward_autograd));
}
TORCH_LIBRARY_IMPL(fedkern, FuncTorchBatched, m) {
  m.impl("calibrated_ce_backward", TORCH_FN(fedkern::calibrated_ce_backward_vmap));
}
