#pragma once

// Not-true distillation (FedNTD, arXiv 2106.03097): the formulas, once, for every backend.
//
// For one row of logits z [C] of the student and g [C] of the teacher, with label y, over the
// classes c != y:
//
//   p = softmax(z / tau), q = softmax(g / tau)
//   loss = tau^2 KL(q || p) = tau^2 sum_c q_c (log q_c - log p_c)
//
// One pass over the classes, with u_c = (z_c - max z) / tau, v_c = (g_c - max g) / tau, gathers
// NotTrueSums; loss and gradient follow from them. The logits of class y count as -inf: then their
// terms are 0. A term whose e^v_c is 0 counts as 0 at a student's logit of -inf, too.

#include <cmath>

#include "common/macros.h"

namespace fedkern {

// Sums over the classes of one row: gathered in vectors of the accumulating type, added up over
// lanes or threads in double.
template <typename T>
struct NotTrueSums {
  T student;   // sum e^u_c
  T teacher;   // sum e^v_c
  T distance;  // sum e^v_c (v_c - u_c)
};

template <typename T>
FEDKERN_HOST_DEVICE NotTrueSums<T> added(const NotTrueSums<T>& x, const NotTrueSums<T>& y) {
  return {x.student + y.student, x.teacher + y.teacher, x.distance + y.distance};
}

// The loss; log_ratio is log(student / teacher).
FEDKERN_HOST_DEVICE double not_true_loss(const NotTrueSums<double>& sums, double log_ratio,
                                         double tau) {
  return tau * tau * (sums.distance / sums.teacher + log_ratio);
}

// The gradient by z_j, j != y, is step (p_j - q_j), step = tau times the reduction's factor. It is
// computed as scale (e^u_j - ratio e^v_j): of equal logits nothing is left, however it is rounded.
template <typename T>
struct NotTrueCoefficients {
  T scale, ratio;
};

template <typename T>
FEDKERN_HOST_DEVICE NotTrueCoefficients<T> not_true_coefficients(const NotTrueSums<double>& sums,
                                                                 double step) {
  return {static_cast<T>(step / sums.student), static_cast<T>(sums.student / sums.teacher)};
}

}  // namespace fedkern
