#pragma once

// calibrated_ce_backward: what calibrated_ce sends back, gradient times the upstream gradient.
//
//   grad_loss  the upstream gradient: the loss's shape, any strides
//   gradient   calibrated_ce_forward's: of the loss by input, [C], [N, C] or [N, C, d1, ...]
//   target     as for calibrated_ce; rows whose label is ignore_index get 0, whatever is upstream
//   returns    gradient's shape, dtype and (dense) strides
//
// grouped: all are stacks of G independent calls, as for calibrated_ce. calibrated_ce_backward_
// writes its result over `gradient`; where the upstream gradient is one, it moves nothing.

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/util/Exception.h>

#include "common/tensor_rows.h"

namespace fedkern {

// The operators, called through the dispatcher.
at::Tensor call_backward(const at::Tensor& grad_loss, const at::Tensor& gradient,
                         const at::Tensor& target, int64_t ignore_index, bool grouped);
void call_backward_(at::Tensor& gradient, const at::Tensor& grad_loss, const at::Tensor& target,
                    int64_t ignore_index, bool grouped);

// Every backend's first line.
inline void check_calibrated_ce_backward(const at::Tensor& grad_loss, const at::Tensor& gradient,
                                         const at::Tensor& target, bool grouped) {
  TORCH_CHECK_VALUE(gradient.dim() >= 1 + grouped,
                    "calibrated_ce_backward: gradient must have shape (C), (N, C) or "
                    "(N, C, d1, ...), got ",
                    gradient.sym_sizes());
  c10::SymDimVector expected;
  for (int64_t d = 0; d < gradient.dim(); ++d) {
    if (d != class_dim(gradient, grouped)) expected.push_back(gradient.sym_size(d));
  }
  TORCH_CHECK_VALUE(target.sym_sizes() == c10::SymIntArrayRef(expected),
                    "calibrated_ce_backward: target must have gradient's shape without the class "
                    "dimension, ",
                    c10::SymIntArrayRef(expected), ", got ", target.sym_sizes());
  const bool of_rows = grad_loss.sym_sizes() == target.sym_sizes();
  const bool of_calls = grad_loss.sym_sizes() == target.sym_sizes().slice(0, grouped);
  TORCH_CHECK_VALUE(of_rows || of_calls,
                    "calibrated_ce_backward: grad_loss must have the loss's shape, ",
                    target.sym_sizes(), " or ", target.sym_sizes().slice(0, grouped), ", got ",
                    grad_loss.sym_sizes());
  TORCH_CHECK_TYPE(grad_loss.scalar_type() == gradient.scalar_type(),
                   "calibrated_ce_backward: grad_loss must have gradient's dtype, ",
                   gradient.scalar_type(), ", got ", grad_loss.scalar_type());
  TORCH_CHECK_VALUE(grad_loss.device() == gradient.device() && target.device() == gradient.device(),
                    "calibrated_ce_backward: grad_loss and target must be on gradient's device, ",
                    gradient.device(), ", got ", grad_loss.device(), " and ", target.device());
}

// Where the upstream gradient of a row lies: its own element, or its group's.
inline std::optional<RowLayout> grad_loss_layout(const at::Tensor& grad_loss,
                                                 const at::Tensor& target, bool grouped) {
  if (grad_loss.dim() == target.dim()) return element_layout(grad_loss, grouped);
  RowLayout layout = *element_layout(grad_loss, grouped);
  layout.samples = target.numel() / (grouped && target.size(0) > 0 ? target.size(0) : 1);
  if (layout.samples == 0) layout.samples = 1;
  return layout;
}

// What every backend does: checks, then calls run(grad_loss, gradient, labels, result) with tensors
// that have a layout, the labels int64 in row order. `result` may be `gradient`.
template <typename Run>
void run_calibrated_ce_backward(const at::Tensor& grad_loss, const at::Tensor& gradient,
                                const at::Tensor& target, const at::Tensor& result, bool grouped,
                                const Run& run) {
  check_calibrated_ce_backward(grad_loss, gradient, target, grouped);
  const at::Tensor to =
      row_layout(result, grouped) ? result : at::empty(result.sizes(), result.options());
  run(grad_loss_layout(grad_loss, target, grouped) ? grad_loss : grad_loss.contiguous(),
      with_rows(gradient, grouped), target.to(at::kLong).contiguous(), to);
  if (!to.is_same(result)) result.copy_(to);
}

}  // namespace fedkern
