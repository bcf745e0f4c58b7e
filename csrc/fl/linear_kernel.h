#pragma once

// The three products of a linear layer's forward and backward passes, for matrices that fit the
// caches, where what a BLAS spends on copying its operands counts. Nothing is copied here.
//
// All matrices are row-major. A result's bits do not depend on how its columns are shared out.

#include <cstdint>
#include <tuple>

#include "common/cpu_capability.h"

namespace fedkern {

// Columns [begin, end) of C [rows, columns], for sums over `depth`.
struct ProductSizes {
  int64_t rows, columns, depth, begin, end;
};

template <typename T>
struct LinearKernels {
  // Columns are best shared out in multiples of these.
  int64_t dot_columns, combine_columns;

  // C[i, j] = bias[j] + sum_p A[i, p] B[j, p]; bias may be null.
  void (*dot_rows)(const ProductSizes&, const T* a, const T* b, const T* bias, T* c);

  // C[i, j] = sum_p A[i, p] B[p, j], where A[i, p] is a[i * a_row + p * a_step].
  void (*combine_rows)(const ProductSizes&, const T* a, int64_t a_row, int64_t a_step, const T* b,
                       T* c);
};

using LinearKernelsByDtype = std::tuple<LinearKernels<float>, LinearKernels<double>>;
FEDKERN_DECLARE_VARIANTS(LinearKernelsByDtype, linear_kernels)

}  // namespace fedkern
