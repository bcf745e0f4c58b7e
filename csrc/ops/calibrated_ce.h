#pragma once

// calibrated_ce: FedGA's calibrated cross entropy. The formulas are in calibrated_ce_math.h.
//
//   input             [C], [N, C] or [N, C, d1, ...], float32, float64, bfloat16 or float16, any
//                     strides
//   target            class indices, any integer dtype: [], [N] or [N, d1, ...]
//   weight            [C] or none, floating
//   class_counts      [C] or none, real: finite, >= 0, > 0 for every class that is a label. None:
//                     the histogram of this call's labels
//   logit_adjustment  [C] or none, floating: added to the logits where they are read, in the type
//                     that accumulates. -inf, of a class without samples, is as a logit of -inf
//   loss              input's dtype; [] for "mean" and "sum", target's shape for "none"
//   gradient          of the (reduced) loss by input: input's shape, dtype and (dense) strides. The
//                     mean's denominator is in it, so backward only multiplies by the upstream
//                     gradient
//
// grouped: input and target are stacks of G independent calls, [G, ...], and so are the results;
// weight, class_counts and logit_adjustment are [C], for all of them, or [G, C].
//
// Rows whose label is ignore_index count for nothing, wherever ignore_index lies. An empty mean is
// nan. Accumulates in float32 (float64 for float64). The bits do not depend on the number of
// threads. Labels are checked: by an error on the CPU, by a device-side assert on CUDA.

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <optional>
#include <string_view>
#include <tuple>

#include "common/row_loss.h"
#include "ops/calibrated_ce_math.h"

namespace fedkern {

// The operators, called through the dispatcher.
at::Tensor call_calibrated_ce(const at::Tensor& input, const at::Tensor& target,
                              const std::optional<at::Tensor>& weight,
                              const std::optional<at::Tensor>& class_counts,
                              std::string_view calibration, int64_t ignore_index,
                              std::string_view reduction, double label_smoothing, bool grouped,
                              const std::optional<at::Tensor>& logit_adjustment);
std::tuple<at::Tensor, at::Tensor> call_calibrated_ce_forward(
    const at::Tensor& input, const at::Tensor& target, const std::optional<at::Tensor>& weight,
    const std::optional<at::Tensor>& class_counts, std::string_view calibration,
    int64_t ignore_index, std::string_view reduction, double label_smoothing, bool grouped,
    const std::optional<at::Tensor>& logit_adjustment, bool compute_gradient);

struct CalibratedCEOptions {
  Calibration calibration;
  Reduction reduction;
};

namespace detail {

inline void check_class_vector(const std::optional<at::Tensor>& vector, const char* name,
                               const at::Tensor& input, bool grouped) {
  if (!vector) return;
  const auto num_classes = input.sym_size(class_dim(input, grouped));
  const bool shared = vector->dim() == 1 && vector->sym_size(0) == num_classes;
  const bool of_groups = grouped && vector->dim() == 2 &&
                         vector->sym_size(0) == input.sym_size(0) &&
                         vector->sym_size(1) == num_classes;
  TORCH_CHECK_VALUE(shared || of_groups, "calibrated_ce: ", name,
                    " must have one entry per class, [", num_classes, "], got shape ",
                    vector->sym_sizes());
  TORCH_CHECK_VALUE(vector->device() == input.device(), "calibrated_ce: ", name,
                    " must be on input's device, ", input.device(), ", got ", vector->device());
}

}  // namespace detail

// The options behind their names.
inline CalibratedCEOptions parse_options(std::string_view calibration, std::string_view reduction) {
  CalibratedCEOptions options{};
  if (calibration == "label") {
    options.calibration = Calibration::kLabel;
  } else if (calibration == "gradient") {
    options.calibration = Calibration::kGradient;
  } else {
    TORCH_CHECK_VALUE(false, "calibrated_ce: calibration must be 'label' or 'gradient', got '",
                      calibration, "'");
  }
  options.reduction = parse_reduction("calibrated_ce", reduction);
  return options;
}

// Every backend's first line. Shapes may be symbolic; the contents of tensors are not looked at.
inline CalibratedCEOptions check_calibrated_ce(const at::Tensor& input, const at::Tensor& target,
                                               const std::optional<at::Tensor>& weight,
                                               const std::optional<at::Tensor>& class_counts,
                                               std::string_view calibration,
                                               std::string_view reduction, double label_smoothing,
                                               bool grouped,
                                               const std::optional<at::Tensor>& logit_adjustment) {
  check_input_and_target("calibrated_ce", input, target, grouped);

  // The adjustment comes first: fedkern.logit_adjusted_ce makes counts in its likeness.
  detail::check_class_vector(logit_adjustment, "logit_adjustment", input, grouped);
  TORCH_CHECK_TYPE(!logit_adjustment || logit_adjustment->is_floating_point(),
                   "calibrated_ce: logit_adjustment must be floating, got ",
                   logit_adjustment->scalar_type());
  detail::check_class_vector(weight, "weight", input, grouped);
  detail::check_class_vector(class_counts, "class_counts", input, grouped);
  TORCH_CHECK_TYPE(!weight || weight->is_floating_point(),
                   "calibrated_ce: weight must be floating, got ", weight->scalar_type());
  TORCH_CHECK_TYPE(!class_counts || class_counts->is_floating_point() ||
                       at::isIntegralType(class_counts->scalar_type(), /*includeBool=*/false),
                   "calibrated_ce: class_counts must be real, got ", class_counts->scalar_type());

  TORCH_CHECK_VALUE(label_smoothing >= 0 && label_smoothing <= 1,
                    "calibrated_ce: label_smoothing must be in [0, 1], got ", label_smoothing);

  return parse_options(calibration, reduction);
}

}  // namespace fedkern
