#pragma once

// simplex_project_backward: what simplex_project sends back, and its own derivative.
//
//   grad     the upstream gradient: rows of M elements along `dim`, any strides, as x before
//   support  simplex_project's, any strides
//   returns  grad's shape, dtype and (dense) strides: grad less its mean over the support on the
//            support, 0 elsewhere, whatever is upstream there; nan where the support is empty
//
// Computes in float32 (float64 for float64); means of rows longer than 32 are taken in double. The
// bits do not depend on the number of threads.

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include "common/contiguous_rows.h"
#include "common/switch_dtype.h"
#include "ops/simplex_project.h"

namespace fedkern {

// The operator, called through the dispatcher.
at::Tensor call_simplex_project_backward(const at::Tensor& grad, const at::Tensor& support,
                                         int64_t dim);

// Records, if `source` requires grad, that `result` is a function of it whose derivative is the
// operator with this support.
void set_projection_history(const at::Tensor& result, const at::Tensor& source,
                            const at::Tensor& support, int64_t dim);

// Every backend's first line; returns `dim`, not negative.
inline int64_t check_simplex_project_backward(const at::Tensor& grad, const at::Tensor& support,
                                              int64_t dim) {
  dim = check_simplex_rows("simplex_project_backward", "grad", grad, dim);
  TORCH_CHECK_TYPE(support.scalar_type() == at::kByte,
                   "simplex_project_backward: support must be uint8, got ", support.scalar_type());
  const c10::SymDimVector expected = support_shape(grad, dim);
  TORCH_CHECK_VALUE(support.sym_sizes() == c10::SymIntArrayRef(expected),
                    "simplex_project_backward: support must have a bit for each element of grad, ",
                    c10::SymIntArrayRef(expected), ", got shape ", support.sym_sizes());
  TORCH_CHECK_VALUE(support.device() == grad.device(),
                    "simplex_project_backward: support must be on grad's device, ", grad.device(),
                    ", got ", support.device());
  return dim;
}

// What every backend does: checks, then project(scalar_t(), rows, support, result) with grad's rows
// and the result's, contiguous one after the other.
template <typename Project>
at::Tensor run_simplex_project_backward(const at::Tensor& grad, const at::Tensor& support,
                                        int64_t dim, const Project& project) {
  dim = check_simplex_project_backward(grad, support, dim);
  const at::Tensor rows = contiguous_rows(grad, dim), bits = support.contiguous();
  return written_by_rows(grad, dim, [&](const at::Tensor& result) {
    switch_dtype(grad.scalar_type(), [&](auto zero) { project(zero, rows, bits, result); });
  });
}

}  // namespace fedkern
