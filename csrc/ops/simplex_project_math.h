#pragma once

// Projection onto the simplex {w >= 0, sum w = z}: what the CPU and the CUDA kernels share.
//
// For a row x with maximum m and d = x - m the projection is w = max(d - tau, 0), where tau < 0 is
// the one number for which it sums to z. Its support is S = {i : d_i > tau}, and
//
//   tau = (sum of d over S - z) / |S|.
//
// The same formula over any part of the row gives at most tau. So (Michelot, J. Optim. Theory Appl.
// 50, 1986) from any set that contains S: compute the threshold, drop what is not above it, repeat
// until nothing is dropped. If m of n elements that lie at most g below the threshold are dropped,
// the threshold rises by at most g m / (n - m), and what is dropped next lies no further below. So
// rounds that drop little are soon over: g cannot be less than a float's spacing. However a row is
// made up, the rounds together look at a small multiple of its elements.
//
// The derivative by x keeps the support: dx = g - mean of g over S, on S, and 0 elsewhere.

#include <cfloat>
#include <cstdint>

#include "common/macros.h"

namespace fedkern {

// Up to this length a row is sorted in registers, and tau is the largest of the thresholds of its
// k largest elements, k = 1, 2, ...
constexpr int kMostSorted = 32;

// Positive, finite and not subnormal.
FEDKERN_HOST_DEVICE bool is_valid_z(float z) { return z >= FLT_MIN && z <= FLT_MAX; }
FEDKERN_HOST_DEVICE bool is_valid_z(double z) { return z >= DBL_MIN && z <= DBL_MAX; }

FEDKERN_HOST_DEVICE bool is_finite(float x) { return x >= -FLT_MAX && x <= FLT_MAX; }
FEDKERN_HOST_DEVICE bool is_finite(double x) { return x >= -DBL_MAX && x <= DBL_MAX; }

// The threshold of `count` elements whose d sum to `sum`.
FEDKERN_HOST_DEVICE double threshold(double sum, double z, int64_t count) {
  return (sum - z) / static_cast<double>(count);
}

// The same for elements that stand for their row: a lower bound of tau, whatever rounding did.
FEDKERN_HOST_DEVICE double lower_bound(double sum, double z, int64_t count) {
  return threshold(sum, z, count) * (1 + 1e-6);
}

// Bytes of a row's support, a bit an element.
FEDKERN_HOST_DEVICE constexpr int64_t support_bytes(int64_t length) { return (length + 7) / 8; }

// z as the kernels read it: one for all rows, or one each.
template <typename T>
struct RowZ {
  T all;
  const T* each;   // null: `all` it is
  int64_t stride;  // 0 or 1

  FEDKERN_HOST_DEVICE T operator[](int64_t row) const { return each ? each[row * stride] : all; }

  // That of the rows from `first` on.
  FEDKERN_HOST_DEVICE RowZ from(int64_t first) const {
    return {all, each ? each + first * stride : nullptr, stride};
  }
};

}  // namespace fedkern
