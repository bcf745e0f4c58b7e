#include "ops/calibrated_ce.h"

#include <ATen/TensorSubclassLikeUtils.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/where.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/basic_ops.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/graph_task.h>
#include <torch/csrc/autograd/saved_variable.h>
#include <torch/library.h>

#include <memory>
#include <tuple>
#include <type_traits>

namespace fedkern {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

// ---- the operators, called through the dispatcher ----------------------------------------------

std::tuple<Tensor, Tensor> call_forward(const Tensor& input, const Tensor& target,
                                        const OptionalTensor& weight,
                                        const OptionalTensor& class_counts,
                                        std::string_view calibration, int64_t ignore_index,
                                        std::string_view reduction, double label_smoothing,
                                        bool compute_gradient) {
  static const auto op =
      c10::Dispatcher::singleton()
          .findSchemaOrThrow("fedkern::calibrated_ce_forward", "")
          .typed<std::tuple<Tensor, Tensor>(const Tensor&, const Tensor&, const OptionalTensor&,
                                            const OptionalTensor&, c10::string_view, int64_t,
                                            c10::string_view, double, bool)>();
  return op.call(input, target, weight, class_counts, calibration, ignore_index, reduction,
                 label_smoothing, compute_gradient);
}

Tensor call_backward(const Tensor& grad_loss, const Tensor& gradient, const Tensor& target,
                     int64_t ignore_index) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("fedkern::calibrated_ce_backward", "")
                             .typed<Tensor(const Tensor&, const Tensor&, const Tensor&, int64_t)>();
  return op.call(grad_loss, gradient, target, ignore_index);
}

// ---- without autograd: any device --------------------------------------------------------------

Tensor calibrated_ce(const Tensor& input, const Tensor& target, const OptionalTensor& weight,
                     const OptionalTensor& class_counts, c10::string_view calibration,
                     int64_t ignore_index, c10::string_view reduction, double label_smoothing) {
  return std::get<0>(call_forward(input, target, weight, class_counts, calibration, ignore_index,
                                  reduction, label_smoothing, /*compute_gradient=*/false));
}

// The upstream gradient, one factor a row. Rows that are ignored have none: an upstream infinity or
// nan, as a mean over no sample gives it, does not reach them.
Tensor row_factors(const Tensor& grad_loss, const Tensor& gradient, const Tensor& target,
                   int64_t ignore_index) {
  const Tensor ignored = target.to(at::kLong).eq(ignore_index);
  return at::where(ignored, 0, grad_loss.to(gradient.scalar_type())).unsqueeze(class_dim(gradient));
}

Tensor calibrated_ce_backward(const Tensor& grad_loss, const Tensor& gradient, const Tensor& target,
                              int64_t ignore_index) {
  return gradient.mul(row_factors(grad_loss, gradient, target, ignore_index));
}

std::tuple<Tensor, Tensor> calibrated_ce_forward_meta(
    const Tensor& input, const Tensor& target, const OptionalTensor& weight,
    const OptionalTensor& class_counts, c10::string_view calibration, int64_t,
    c10::string_view reduction, double label_smoothing, bool compute_gradient) {
  const auto options = check_calibrated_ce(input, target, weight, class_counts, calibration,
                                           reduction, label_smoothing);
  Tensor loss = options.reduction == Reduction::kNone
                    ? at::empty_symint(target.sym_sizes(), input.options())
                    : at::empty({}, input.options());
  return {loss, compute_gradient ? at::empty_like(input) : at::empty({0}, input.options())};
}

// ---- autograd: a hand-written node, since it costs least and all of torch.func sees it ---------

namespace ag = torch::autograd;

// Edge::function is a std::shared_ptr in older torch, a c10::intrusive_ptr in newer.
template <class Node, class... Args>
auto make_node(Args&&... args) {
  if constexpr (std::is_same_v<decltype(ag::Edge::function), std::shared_ptr<ag::Node>>) {
    return std::make_shared<Node>(std::forward<Args>(args)...);
  } else {
    return c10::make_intrusive<Node>(std::forward<Args>(args)...);
  }
}

// Whether `t`, an ordinary tensor, is a scalar 1 that can be read without waiting for a device.
bool is_readable_one(const Tensor& t) {
  if (t.dim() != 0 || !t.device().is_cpu()) return false;
  switch (t.scalar_type()) {
    case at::kFloat:
      return *t.const_data_ptr<float>() == 1;
    case at::kDouble:
      return *t.const_data_ptr<double>() == 1;
    case at::kBFloat16:
      return *t.const_data_ptr<c10::BFloat16>() == 1;
    case at::kHalf:
      return *t.const_data_ptr<c10::Half>() == 1;
    default:
      return false;
  }
}

struct CalibratedCEBackward : ag::Node {
  ag::SavedVariable gradient_, target_;
  int64_t ignore_index_ = 0;

  std::string name() const override { return "CalibratedCEBackward"; }

  void release_variables() override {
    const std::lock_guard<std::mutex> lock(mutex_);
    gradient_.reset_data();
    target_.reset_data();
  }

  ag::variable_list apply(ag::variable_list&& grads) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!grads[0].defined() || !task_should_compute_output(0)) return {Tensor()};
    Tensor gradient = gradient_.unpack();
    const Tensor target = target_.unpack();
    const bool create_graph = c10::GradMode::is_enabled();
    const at::AutoDispatchBelowADInplaceOrView below_autograd;

    // The saved gradient is given away, or scaled where it lies, only by the last backward through
    // here, and only if nobody else holds it.
    if (!create_graph && !ag::get_current_graph_task_keep_graph() &&
        !at::isTensorSubclassLike(gradient) && !at::isTensorSubclassLike(grads[0])) {
      gradient_.reset_data();
      if (gradient.use_count() == 1) {
        if (!is_readable_one(grads[0])) {
          gradient.mul_(row_factors(grads[0], gradient, target, ignore_index_));
        }
        return {std::move(gradient)};
      }
    }
    Tensor result = call_backward(grads[0], gradient, target, ignore_index_);
    if (!create_graph) return {std::move(result)};
    ag::set_history(result,
                    make_node<ag::Error>("calibrated_ce: second derivatives are not implemented",
                                         ag::edge_list{next_edge(0)}));
    return {std::move(result)};
  }
};

Tensor calibrated_ce_autograd(const Tensor& input, const Tensor& target,
                              const OptionalTensor& weight, const OptionalTensor& class_counts,
                              c10::string_view calibration, int64_t ignore_index,
                              c10::string_view reduction, double label_smoothing) {
  for (const OptionalTensor* constant : {&weight, &class_counts}) {
    TORCH_CHECK_VALUE(!*constant || !ag::compute_requires_grad(**constant),
                      "calibrated_ce: ", constant == &weight ? "weight" : "class_counts",
                      " must not require grad: the loss has no derivative by it");
  }
  TORCH_CHECK_NOT_IMPLEMENTED(!input._fw_grad(/*level=*/0).defined(),
                              "calibrated_ce: forward-mode derivatives are not implemented");
  const bool requires_grad = ag::compute_requires_grad(input);
  Tensor loss, gradient;
  {
    const at::AutoDispatchBelowADInplaceOrView below_autograd;
    std::tie(loss, gradient) =
        call_forward(input, target, weight, class_counts, calibration, ignore_index, reduction,
                     label_smoothing, /*compute_gradient=*/requires_grad);
  }
  if (requires_grad) {
    auto node = make_node<CalibratedCEBackward>();
    node->set_next_edges(ag::collect_next_edges(input));
    node->gradient_ = ag::SavedVariable(gradient, /*is_output=*/false);
    node->target_ = ag::SavedVariable(target, /*is_output=*/false);
    node->ignore_index_ = ignore_index;
    ag::set_history(loss, node);
  }
  return loss;
}

// ---- autocast: float32, as cross_entropy -------------------------------------------------------

Tensor to_float32(const Tensor& t) {
  return t.is_floating_point() && t.scalar_type() != at::kDouble ? t.to(at::kFloat) : t;
}

template <c10::DispatchKey kAutocast>
Tensor calibrated_ce_autocast(const Tensor& input, const Tensor& target,
                              const OptionalTensor& weight, const OptionalTensor& class_counts,
                              c10::string_view calibration, int64_t ignore_index,
                              c10::string_view reduction, double label_smoothing) {
  static const auto op =
      c10::Dispatcher::singleton()
          .findSchemaOrThrow("fedkern::calibrated_ce", "")
          .typed<Tensor(const Tensor&, const Tensor&, const OptionalTensor&, const OptionalTensor&,
                        c10::string_view, int64_t, c10::string_view, double)>();
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(kAutocast);
  return op.call(to_float32(input), target, weight, class_counts, calibration, ignore_index,
                 reduction, label_smoothing);
}

}  // namespace
}  // namespace fedkern

TORCH_LIBRARY_IMPL(fedkern, CompositeExplicitAutograd, m) {
  m.impl("calibrated_ce", TORCH_FN(fedkern::calibrated_ce));
  m.impl("calibrated_ce_backward", TORCH_FN(fedkern::calibrated_ce_backward));
}
TORCH_LIBRARY_IMPL(fedkern, Meta, m) {
  m.impl("calibrated_ce_forward", TORCH_FN(fedkern::calibrated_ce_forward_meta));
}
TORCH_LIBRARY_IMPL(fedkern, Autograd, m) {
  m.impl("calibrated_ce", TORCH_FN(fedkern::calibrated_ce_autograd));
}
TORCH_LIBRARY_IMPL(fedkern, AutocastCPU, m) {
  m.impl("calibrated_ce", TORCH_FN(fedkern::calibrated_ce_autocast<c10::DispatchKey::AutocastCPU>));
}
TORCH_LIBRARY_IMPL(fedkern, AutocastCUDA, m) {
  m.impl("calibrated_ce",
         TORCH_FN(fedkern::calibrated_ce_autocast<c10::DispatchKey::AutocastCUDA>));
}
