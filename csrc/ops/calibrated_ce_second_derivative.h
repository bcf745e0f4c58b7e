#pragma once

// The second derivative of calibrated_ce: rare, so composed of ATen operators that are themselves
// differentiable, under every transform.

#include <ATen/core/Tensor.h>

#include "ops/calibrated_ce.h"

namespace fedkern {

// calibrated_ce's arguments; weight, class_counts and logit_adjustment may be undefined.
struct CalibratedCECall {
  at::Tensor input, target, weight, class_counts, logit_adjustment;
  CalibratedCEOptions options;
  int64_t ignore_index;
  double label_smoothing;
  bool grouped;
};

// The product of the Hessian by input and `v` (input's shape, like the result). The calibrated
// label t is a constant in the first derivative, so that of a row with f its factor in the
// reduction is
//
//   f (sum_c w_c t_c) p_j (v_j - sum_c p_c v_c)
//
// and with calibration "gradient" t gives way to the smoothed label.
at::Tensor calibrated_ce_second_derivative(const at::Tensor& v, const CalibratedCECall& call);

}  // namespace fedkern
