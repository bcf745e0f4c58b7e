#pragma once

// The formulas of a step, for numbers and for vectors of them.

#include <cmath>

#include "common/macros.h"

namespace fedkern {

// What a gradient is multiplied by for its row's norm not to exceed max_norm, as in
// torch.nn.utils.clip_grad_norm_: nan if the norm is nan, 0 if it is infinite.
FEDKERN_HOST_DEVICE double clip_factor(double sum_of_squares, double max_norm) {
  const double factor = max_norm / (std::sqrt(sum_of_squares) + 1e-6);
  return factor >= 1 ? 1 : factor;
}

FEDKERN_HOST_DEVICE float fmadd(float a, float b, float c) { return a * b + c; }
FEDKERN_HOST_DEVICE double fmadd(double a, double b, double c) { return a * b + c; }

// Terms that a step does not have are left out, rather than multiplied by 0: 0 * inf would be nan.
struct SgdStepTerms {
  bool momentum, pull, weight_decay;
};

template <typename V>
struct SgdStepFactors {
  V grad;  // that of clipping, times the endpoint's alpha
  V pull;  // that of clipping, times pull
  V weight_decay;
  V momentum;
  V minus_lr;
};

// Changes a parameter and its momentum.
template <typename V>
FEDKERN_HOST_DEVICE void sgd_step(const SgdStepTerms& terms, const SgdStepFactors<V>& factors,
                                  const V& grad, const V& anchor, V& param, V& momentum) {
  V step = factors.grad * grad;
  if (terms.pull) step = fmadd(factors.pull, param - anchor, step);
  if (terms.weight_decay) step = fmadd(factors.weight_decay, param, step);
  if (terms.momentum) step = momentum = fmadd(factors.momentum, momentum, step);
  param = fmadd(factors.minus_lr, step, param);
}

}  // namespace fedkern
