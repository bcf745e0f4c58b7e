#pragma once

// not_true_distillation: FedNTD's loss. The formulas are in not_true_distillation_math.h.
//
//   input     the student's logits: [C], [N, C] or [N, C, d1, ...], float32, float64, bfloat16 or
//             float16, any strides
//   teacher   the teacher's, a constant: input's shape, dtype and device, any strides
//   target    class indices, any integer dtype: [], [N] or [N, d1, ...]
//   tau       the temperature
//   loss      input's dtype; [] for "mean" and "sum", target's shape for "none"
//   gradient  of the (reduced) loss by input: input's shape, dtype and (dense) strides. The mean's
//             denominator is in it, so backward, which is calibrated_ce_backward, only multiplies
//             by the upstream gradient
//
// grouped: input, teacher and target are stacks of G independent calls, [G, ...], and so are the
// results.
//
// Rows whose label is ignore_index count for nothing, wherever ignore_index lies. An empty mean is
// nan. With one class there is no other: the loss is 0. A row whose other logits are all -inf, the
// student's or the teacher's, is nan. Accumulates in float32 (float64 for float64). The bits do not
// depend on the number of threads. Labels are checked: by an error on the CPU, by a device-side
// assert on CUDA.

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <string_view>
#include <tuple>

#include "common/row_loss.h"
#include "ops/not_true_distillation_math.h"

namespace fedkern {

// The operators, called through the dispatcher.
at::Tensor call_not_true_distillation(const at::Tensor& input, const at::Tensor& teacher,
                                      const at::Tensor& target, double tau, int64_t ignore_index,
                                      std::string_view reduction, bool grouped);
std::tuple<at::Tensor, at::Tensor> call_not_true_distillation_forward(
    const at::Tensor& input, const at::Tensor& teacher, const at::Tensor& target, double tau,
    int64_t ignore_index, std::string_view reduction, bool grouped, bool compute_gradient);

// Every backend's first line. Shapes may be symbolic; the contents of tensors are not looked at.
inline Reduction check_not_true_distillation(const at::Tensor& input, const at::Tensor& teacher,
                                             const at::Tensor& target, double tau,
                                             std::string_view reduction, bool grouped) {
  check_input_and_target("not_true_distillation", input, target, grouped);
  TORCH_CHECK_VALUE(teacher.sym_sizes() == input.sym_sizes(),
                    "not_true_distillation: teacher must have input's shape, ", input.sym_sizes(),
                    ", got ", teacher.sym_sizes());
  TORCH_CHECK_TYPE(teacher.scalar_type() == input.scalar_type(),
                   "not_true_distillation: teacher must have input's dtype, ", input.scalar_type(),
                   ", got ", teacher.scalar_type());
  TORCH_CHECK_VALUE(teacher.device() == input.device(),
                    "not_true_distillation: teacher must be on input's device, ", input.device(),
                    ", got ", teacher.device());
  // Far from what float32 cannot hold, or not the inverse of.
  TORCH_CHECK_VALUE(tau >= 1e-30 && tau <= 1e30,
                    "not_true_distillation: tau must be positive and finite (1e-30 to 1e30), got ",
                    tau);
  return parse_reduction("not_true_distillation", reduction);
}

}  // namespace fedkern
