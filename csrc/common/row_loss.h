#pragma once

// What losses of rows of logits with a label each share: options, checks, shapes, results. `op` is
// the operator that messages name.

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <c10/util/Exception.h>

#include <string_view>
#include <tuple>

#include "common/cpu_huge_pages.h"
#include "common/reduction.h"
#include "common/switch_dtype.h"
#include "common/tensor_rows.h"

namespace fedkern {

inline Reduction parse_reduction(const char* op, std::string_view reduction) {
  if (reduction == "mean") return Reduction::kMean;
  if (reduction == "sum") return Reduction::kSum;
  TORCH_CHECK_VALUE(reduction == "none", op, ": reduction must be 'mean', 'sum' or 'none', got '",
                    reduction, "'");
  return Reduction::kNone;
}

// Shapes may be symbolic; the contents of tensors are not looked at.
inline void check_input_and_target(const char* op, const at::Tensor& input,
                                   const at::Tensor& target, bool grouped) {
  const auto dtype = input.scalar_type();
  TORCH_CHECK_TYPE(is_supported(dtype), op,
                   ": input must be float32, float64, bfloat16 or float16, got ", dtype);
  TORCH_CHECK_VALUE(input.dim() >= 1 + grouped, op,
                    ": input must have shape (C), (N, C) or (N, C, d1, ...), got ",
                    input.sym_sizes());
  TORCH_CHECK_TYPE(!target.is_floating_point(), op,
                   ": target must hold class indices (an integer dtype), got ",
                   target.scalar_type(), "; class probabilities are not supported");
  TORCH_CHECK_TYPE(at::isIntegralType(target.scalar_type(), /*includeBool=*/false), op,
                   ": target must hold class indices (an integer dtype), got ",
                   target.scalar_type());
  TORCH_CHECK_VALUE(target.device() == input.device(), op, ": target must be on input's device, ",
                    input.device(), ", got ", target.device());

  c10::SymDimVector expected;
  for (int64_t d = 0; d < input.dim(); ++d) {
    if (d != class_dim(input, grouped)) expected.push_back(input.sym_size(d));
  }
  TORCH_CHECK_VALUE(target.sym_sizes() == c10::SymIntArrayRef(expected), op,
                    ": target must have input's shape without the class dimension, ",
                    c10::SymIntArrayRef(expected), ", got ", target.sym_sizes());
  TORCH_CHECK_VALUE(input.sym_size(class_dim(input, grouped)) >= 1, op,
                    ": input must have at least one class, got shape ", input.sym_sizes());
}

// The shape of the loss.
inline c10::SymDimVector loss_shape(const at::Tensor& target, Reduction reduction, bool grouped) {
  const auto shape = target.sym_sizes();
  return c10::SymDimVector(shape.begin(),
                           reduction == Reduction::kNone ? shape.end() : shape.begin() + grouped);
}

// Every backend's last line: allocates loss and gradient and calls run(logits, loss, gradient) with
// tensors that have a RowLayout; gradient is undefined where none is wanted. Copies only layouts
// that no operator makes in passing (d1, d2, ... out of order).
template <typename Run>
std::tuple<at::Tensor, at::Tensor> allocate_and_run(const at::Tensor& input,
                                                    const at::Tensor& target, Reduction reduction,
                                                    bool grouped, bool compute_gradient,
                                                    const Run& run) {
  const int64_t loss_dim = reduction == Reduction::kNone ? target.dim() : grouped;
  at::Tensor loss = at::empty(target.sizes().slice(0, loss_dim), input.options());
  at::Tensor gradient = compute_gradient ? at::empty_like(input) : at::empty({0}, input.options());
  at::Tensor written;
  if (compute_gradient) {
    written = row_layout(gradient, grouped) ? gradient : at::empty(input.sizes(), input.options());
    advise_huge_pages(written);
  }
  run(with_rows(input, grouped), loss, written);
  if (compute_gradient && !written.is_same(gradient)) gradient.copy_(written);
  return {loss, gradient};
}

}  // namespace fedkern
