#pragma once

// Calibrated cross entropy (FedGA, arXiv 2412.16582): the formulas, once, for every backend.
//
// For one row of logits z [C] with label y, class counts n, class weights w, label smoothing eps:
//
//   p = softmax(z)
//   r_c = 1 - n_c / n_y                                            calibration of class c, r_y = 0
//   t_c = (1 - eps) [c = y] + eps / C + stop_gradient(p_c) r_c     the calibrated label
//   loss = - sum_c w_c t_c log p_c
//
// One pass over the classes, with m = max z, d_c = z_c - m, e_c = exp(d_c), gathers RowSums; loss and
// gradient follow from them. A term whose w_c t_c is 0 counts as 0 at a logit of -inf, too.

#include <cmath>

#include "common/macros.h"

namespace fedkern {

enum class Calibration { kLabel, kGradient };
enum class Reduction { kNone, kMean, kSum };

// Sums over the classes of one row.
template <typename T>
struct RowSums {
  T s;  // sum e_c
  T a;  // sum w_c r_c e_c
  T b;  // sum w_c r_c e_c d_c
  T v;  // sum w_c d_c; only label smoothing needs it
};

// What is the same for all rows of a call.
template <typename T>
struct LabelSmoothing {
  T at_label;    // 1 - eps
  T everywhere;  // eps / C
  T weight_sum;  // sum_c w_c
};

// r_c; exactly 0 for equal counts.
template <typename T>
FEDKERN_HOST_DEVICE T relative_count(T n_y, T inverse_n_y, T n_c) {
  return (n_y - n_c) * inverse_n_y;
}

template <typename T>
FEDKERN_HOST_DEVICE T zero_or_product(T factor, T value) {
  return factor == T(0) ? T(0) : factor * value;
}

// loss, with log p_c = d_c - log s put into its definition.
template <typename T>
FEDKERN_HOST_DEVICE T row_loss(const RowSums<T>& sums, T d_y, T w_y, const LabelSmoothing<T>& e) {
  const T log_s = std::log(sums.s);
  const T label = -zero_or_product(e.at_label * w_y, d_y - log_s);
  const T calibration = (sums.a * log_s - sums.b) / sums.s;
  const T smoothing = e.everywhere == T(0) ? T(0) : e.everywhere * (e.weight_sum * log_s - sums.v);
  return label + calibration + smoothing;
}

// The gradient by z_j:  e_j (alpha + beta w_j + gamma q_j) - delta w_j - [j = y] at_label, with
// q_j = w_j n_j for "label" and n_j for "gradient". Where no weights are given (all w_j = 1 and
// eps = 0) beta w_j is in alpha already.
template <typename T>
struct GradientCoefficients {
  T alpha, beta, gamma, delta, at_label;
};

// "label":    p_j sum_c w_c t_c - w_j t_j       the derivative of the loss with the labels constant
// "gradient": p_j W n_j / n_y - w_j s_j,  s = smoothed one-hot label, W = sum_c w_c s_c
// `scale` is the reduction's factor: 1 over the mean's denominator.
template <typename T>
FEDKERN_HOST_DEVICE GradientCoefficients<T> gradient_coefficients(
    Calibration calibration, bool weighted, const RowSums<T>& sums, T w_y, T inverse_n_y,
    const LabelSmoothing<T>& e, T scale) {
  const T inverse_s = T(1) / sums.s;
  const T per_s = inverse_s * scale;
  const T label_sum = e.at_label * w_y + e.everywhere * e.weight_sum;  // W; 1 without weights
  GradientCoefficients<T> k{};
  if (calibration == Calibration::kGradient) {
    k.gamma = label_sum * inverse_n_y * per_s;
  } else if (weighted) {
    k.alpha = (label_sum + sums.a * inverse_s) * per_s;
    k.beta = -per_s;
    k.gamma = inverse_n_y * per_s;
  } else {
    k.alpha = sums.a * inverse_s * per_s;
    k.gamma = inverse_n_y * per_s;
  }
  k.delta = e.everywhere * scale;
  k.at_label = e.at_label * w_y * scale;
  return k;
}

}  // namespace fedkern
