#pragma once

// The autograd nodes of losses whose forward operator computes the gradient, too. Hand-written,
// since they cost least and all of torch.func sees them.
//
// Saved is what an operator keeps of a call for its derivatives:
//
//   using Call                            the call's arguments
//   static constexpr const char* kName    what the nodes' names begin with
//   explicit Saved(Call), unpack(), release()
//   target(), ignore_index(), grouped()   for the first derivative, which does not look at the
//                                         input: it may have been overwritten
//   second_derivative(v, Call)            the product of the Hessian by input and v

#include <ATen/TensorSubclassLikeUtils.h>
#include <ATen/core/Tensor.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/graph_task.h>
#include <torch/csrc/autograd/saved_variable.h>

#include <mutex>
#include <string>
#include <utility>

#include "common/autograd_node.h"
#include "ops/calibrated_ce_backward.h"

namespace fedkern {

// Of the gradient, which the forward operator returns beside the loss.
template <typename Saved>
struct GradientNode : torch::autograd::Node {
  Saved call_;

  std::string name() const override { return std::string(Saved::kName) + "GradientBackward"; }

  void release_variables() override {
    const std::lock_guard<std::mutex> lock(mutex_);
    call_.release();
  }

  torch::autograd::variable_list apply(torch::autograd::variable_list&& grads) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!grads[0].defined() || !task_should_compute_output(0)) return {at::Tensor()};
    return {Saved::second_derivative(grads[0], call_.unpack())};
  }
};

// The gradient as a function of the input, whose edge is `input`.
template <typename Saved>
at::Tensor with_history(const at::Tensor& gradient, typename Saved::Call call,
                        torch::autograd::Edge input) {
  // Not detach(): under nested transforms that would cut the outer ones' histories, too.
  at::Tensor result = gradient.tensor_data();
  auto node = make_node<GradientNode<Saved>>();
  node->add_next_edge(std::move(input));
  node->call_ = Saved(std::move(call));
  torch::autograd::set_history(result, node);
  return result;
}

// Of the loss.
template <typename Saved>
struct LossNode : torch::autograd::Node {
  torch::autograd::SavedVariable gradient_;
  Saved call_;

  std::string name() const override { return std::string(Saved::kName) + "Backward"; }

  void release_variables() override {
    const std::lock_guard<std::mutex> lock(mutex_);
    gradient_.reset_data();
    call_.release();
  }

  torch::autograd::variable_list apply(torch::autograd::variable_list&& grads) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    const at::Tensor& grad_loss = grads[0];
    if (!grad_loss.defined() || !task_should_compute_output(0)) return {at::Tensor()};
    at::Tensor gradient = gradient_.unpack();
    const at::Tensor target = call_.target();
    const int64_t ignore_index = call_.ignore_index();
    const bool grouped = call_.grouped();
    if (c10::GradMode::is_enabled()) {
      gradient = with_history<Saved>(gradient, call_.unpack(), next_edge(0));
      return {call_backward(grad_loss, gradient, target, ignore_index, grouped)};
    }
    const at::AutoDispatchBelowADInplaceOrView below_autograd;
    // The saved gradient is given away, scaled where it lies, only by the last backward through
    // here, and only if nobody else holds it.
    if (!torch::autograd::get_current_graph_task_keep_graph() &&
        !at::isTensorSubclassLike(gradient) && !at::isTensorSubclassLike(grad_loss)) {
      gradient_.reset_data();
      if (gradient.use_count() == 1 && gradient.storage().use_count() == 1) {
        call_backward_(gradient, grad_loss, target, ignore_index, grouped);
        return {std::move(gradient)};
      }
    }
    return {call_backward(grad_loss, gradient, target, ignore_index, grouped)};
  }
};

// Makes loss and gradient functions of the input; the gradient only if it is returned, too.
template <typename Saved>
void set_histories(const at::Tensor& input, const typename Saved::Call& call, at::Tensor& loss,
                   at::Tensor& gradient, bool return_gradient) {
  auto node = make_node<LossNode<Saved>>();
  node->set_next_edges(torch::autograd::collect_next_edges(input));
  node->gradient_ = torch::autograd::SavedVariable(gradient, /*is_output=*/false);
  node->call_ = Saved(call);
  if (return_gradient) gradient = with_history<Saved>(gradient, call, node->next_edge(0));
  torch::autograd::set_history(loss, node);
}

}  // namespace fedkern
