#pragma once

// The gradient that a loss's forward has computed, kept by its autograd node to be sent back.

#include <ATen/TensorSubclassLikeUtils.h>
#include <ATen/core/Tensor.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/csrc/autograd/graph_task.h>
#include <torch/csrc/autograd/saved_variable.h>

#include <utility>

#include "ops/calibrated_ce_backward.h"

namespace fedkern {

// What is sent back where no derivative of it is wanted: `gradient`, which `saved` has unpacked to,
// times the upstream gradient. It is given away, scaled where it lies, only by the last backward
// through here, and only if nobody else holds it.
inline at::Tensor send_back(torch::autograd::SavedVariable& saved, at::Tensor gradient,
                            const at::Tensor& grad_loss, const at::Tensor& target,
                            int64_t ignore_index, bool grouped) {
  const at::AutoDispatchBelowADInplaceOrView below_autograd;
  if (!torch::autograd::get_current_graph_task_keep_graph() &&
      !at::isTensorSubclassLike(gradient) && !at::isTensorSubclassLike(grad_loss)) {
    saved.reset_data();
    if (gradient.use_count() == 1 && gradient.storage().use_count() == 1) {
      call_backward_(gradient, grad_loss, target, ignore_index, grouped);
      return gradient;
    }
  }
  return call_backward(grad_loss, gradient, target, ignore_index, grouped);
}

}  // namespace fedkern
