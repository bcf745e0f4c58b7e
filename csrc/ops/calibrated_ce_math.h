#pragma once

// Calibrated cross entropy (FedGA, arXiv 2412.16582): the formulas, once, for every backend.
//
// For one row of logits z [C], adjusted if they are to be, with label y, class counts n, class
// weights w, label smoothing eps:
//
//   p = softmax(z)
//   r_c = 1 - n_c / n_y                                            calibration of class c, r_y = 0
//   t_c = (1 - eps) [c = y] + eps / C + stop_gradient(p_c) r_c     the calibrated label
//   loss = - sum_c w_c t_c log p_c
//
// One pass over the classes, with m = max z, d_c = z_c - m, e_c = exp(d_c), gathers RowSums; loss
// and gradient follow from them. A term whose w_c t_c is 0 counts as 0 at a logit of -inf, too.

#include <cmath>

#include "common/macros.h"
#include "common/reduction.h"

namespace fedkern {

enum class Calibration { kLabel, kGradient };

// Sums over the classes of one row: gathered in vectors of the accumulating type, added up over
// lanes or threads in double. What follows from them is computed in double: once a row it costs
// nothing.
template <typename T>
struct RowSums {
  T s;  // sum e_c
  T a;  // sum w_c (n_c - n_y) e_c
  T b;  // sum w_c (n_c - n_y) e_c d_c
  T v;  // sum w_c d_c; only label smoothing needs it
};

template <typename T>
FEDKERN_HOST_DEVICE T zero_or_product(T factor, T value) {
  return factor == T(0) ? T(0) : factor * value;
}

template <typename T>
FEDKERN_HOST_DEVICE RowSums<T> added(const RowSums<T>& x, const RowSums<T>& y) {
  return {x.s + y.s, x.a + y.a, x.b + y.b, x.v + y.v};
}

// The same sums when the maximum moves: by = the old maximum - the new one, factor = exp(by).
// `weight` is the sum of w_c over the classes in the sums. A maximum of -inf, of classes that are
// all masked, counts as 0: then s, a and b are 0, and factor may be anything. Where factor is 0, by
// may be so large that its product is no number; a nan stays in s.
template <typename T>
FEDKERN_HOST_DEVICE RowSums<T> shifted(const RowSums<T>& sums, T by, T factor, T weight) {
  const T b = factor == T(0) ? T(0) : sums.b + sums.a * by;
  return {zero_or_product(sums.s, factor), zero_or_product(sums.a, factor),
          zero_or_product(b, factor), sums.v + weight * by};
}

// What is the same for all rows of a call.
struct LabelSmoothing {
  double at_label;    // 1 - eps
  double everywhere;  // eps / C
  double weight_sum;  // sum_c w_c
};

// Given counts are multiplied by this power of two, which brings the largest into [1/2, 1): only
// their ratios matter, no digit changes, and no sum of theirs can overflow.
template <typename T>
FEDKERN_HOST_DEVICE T counts_unit(T largest) {
  int exponent = 0;
  std::frexp(largest, &exponent);
  if (exponent < -120) exponent = -120;  // of subnormal counts: what float can hold the inverse of
  return largest > T(0) ? std::ldexp(T(1), -exponent) : T(1);
}

// The loss, with log p_c = d_c - log s and r_c = -(n_c - n_y) / n_y put into its definition.
FEDKERN_HOST_DEVICE double row_loss(const RowSums<double>& sums, double log_s, double d_y,
                                    double n_y, double w_y, const LabelSmoothing& e) {
  const double label = -zero_or_product(e.at_label * w_y, d_y - log_s);
  const double calibration = (sums.b - sums.a * log_s) / sums.s / n_y;
  const double smoothing = e.everywhere == 0 ? 0 : e.everywhere * (e.weight_sum * log_s - sums.v);
  return label + calibration + smoothing;
}

FEDKERN_HOST_DEVICE double row_loss(const RowSums<double>& sums, double d_y, double n_y, double w_y,
                                    const LabelSmoothing& e) {
  return row_loss(sums, std::log(sums.s), d_y, n_y, w_y, e);
}

// What the gradient of one row needs beside n_j and w_j. With the smoothed label
// l_j = (1 - eps) [j = y] + eps / C, its weighted sum W = sum_c w_c l_c, the excess
// x = sum_c w_c (n_c - n_y) p_c and the reduction's factor f:
//
//   "label":     f (p_j sum_c w_c t_c - w_j t_j)
//              = f (p_j (W - x / n_y (1 - w_j) + w_j (n_j - center) / n_y) - w_j l_j)
//   "gradient":  f (p_j W n_j / n_y - w_j l_j)
//
// The center n_y + x, without weights the expected count sum_c p_c n_c, comes off n_j before
// anything is rounded: that saves digits where n_y is much smaller than the counts. n_j / n_y is a
// division, so that equal counts give exactly 1.
template <typename T>
struct GradientCoefficients {
  T alpha, beta, gamma, center;  // of e_j, so with f / s in them; "gradient" has n_y for center
  T smoothing, label;            // of w_j: everywhere, and at the label
};

FEDKERN_HOST_DEVICE GradientCoefficients<double> gradient_coefficients(Calibration calibration,
                                                                       const RowSums<double>& sums,
                                                                       double n_y, double w_y,
                                                                       const LabelSmoothing& e,
                                                                       double factor) {
  const double label_sum = e.at_label * w_y + e.everywhere * e.weight_sum;
  const double f = factor / sums.s;
  GradientCoefficients<double> k{};
  k.alpha = label_sum * f;
  if (calibration == Calibration::kLabel) {
    const double excess = sums.a / sums.s;
    k.gamma = f / n_y;
    k.beta = -excess * k.gamma;
    k.center = n_y + excess;
  } else {
    k.center = n_y;
  }
  k.smoothing = e.everywhere * factor;
  k.label = e.at_label * w_y * factor;
  return k;
}

// The coefficients in the accumulating type; what the center loses goes to the other terms.
template <typename T>
FEDKERN_HOST_DEVICE GradientCoefficients<T> rounded(const GradientCoefficients<double>& k) {
  const T center = static_cast<T>(k.center);
  const double lost = k.gamma * (k.center - static_cast<double>(center));
  return {static_cast<T>(k.alpha - lost), static_cast<T>(k.beta + lost),
          static_cast<T>(k.gamma),        center,
          static_cast<T>(k.smoothing),    static_cast<T>(k.label)};
}

// The gradient by z_j but for the label's own term; V is T or a vector of T. kWeighted tells
// whether there are weights or label smoothing.
template <Calibration kCalibration, bool kWeighted, typename V>
FEDKERN_HOST_DEVICE V class_gradient(V e_j, V n_j, V w_j, const GradientCoefficients<V>& k) {
  if constexpr (kCalibration == Calibration::kGradient) {
    const V g = e_j * (k.alpha * (n_j / k.center));
    return kWeighted ? g - k.smoothing * w_j : g;
  } else if constexpr (kWeighted) {
    const V coefficient = k.alpha + k.beta * (V(1) - w_j) + k.gamma * w_j * (n_j - k.center);
    return e_j * coefficient - k.smoothing * w_j;
  } else {
    return e_j * (k.alpha + k.gamma * (n_j - k.center));
  }
}

}  // namespace fedkern
