#pragma once

// simplex_project: the Euclidean projection of rows onto {w >= 0, sum w = z}. The formulas are in
// simplex_project_math.h.
//
//   x        rows of M >= 1 elements along `dim`, float32, float64, bfloat16 or float16, any
//            strides: where rows are not contiguous, one after the other, they are copied
//   z        floating, positive, finite and, in the type computed in, not subnormal: [], on x's
//            device or on the CPU, or of a shape that broadcasts to x's without `dim`, on x's
//            device. Checked: by an error on the CPU, else by a device-side assert
//   result   x's shape, dtype and (dense) strides
//   support  uint8, x's shape without `dim`, then [ceil(M / 8)]: bit i % 8 of byte i / 8 says
//            whether element i is in the support, which backward needs. What rounds to 0 in a half
//            type is. Equal elements are in it together, or not
//
// -inf gives 0. A row with nan or inf, or all of -inf, is nan, and its support is empty.
// Computes in float32 (float64 for float64), less the row's maximum; sums of rows longer than 32
// are taken in double. The bits do not depend on the number of threads.

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/util/Exception.h>

#include <tuple>
#include <utility>

#include "common/accumulate.h"
#include "common/contiguous_rows.h"
#include "common/switch_dtype.h"
#include "ops/simplex_project_math.h"

namespace fedkern {

// The operator's result, called through the dispatcher.
at::Tensor call_simplex_project(const at::Tensor& x, const at::Tensor& z, int64_t dim);
at::Tensor call_simplex_project_onto(const at::Tensor& x, double z, int64_t dim);

// x's shape without `dim`, which is not negative.
inline c10::SymDimVector shape_of_rows(const at::Tensor& x, int64_t dim) {
  c10::SymDimVector shape(x.sym_sizes().begin(), x.sym_sizes().end());
  shape.erase(shape.begin() + dim);
  return shape;
}

inline c10::SymDimVector support_shape(const at::Tensor& x, int64_t dim) {
  c10::SymDimVector shape = shape_of_rows(x, dim);
  shape.push_back((x.sym_size(dim) + 7) / 8);
  return shape;
}

// What holds for the rows of either operator, `op`; returns `dim`, not negative.
inline int64_t check_simplex_rows(const char* op, const char* name, const at::Tensor& rows,
                                  int64_t dim) {
  TORCH_CHECK_TYPE(is_supported(rows.scalar_type()), op, ": ", name,
                   " must be float32, float64, bfloat16 or float16, got ", rows.scalar_type());
  TORCH_CHECK_VALUE(rows.dim() >= 1, op, ": ", name, " must have rows, got shape []");
  TORCH_CHECK_INDEX(dim >= -rows.dim() && dim < rows.dim(), op, ": dim must be in [", -rows.dim(),
                    ", ", rows.dim(), "), got ", dim);
  return dim < 0 ? dim + rows.dim() : dim;
}

// Every backend's first line; returns `dim`, not negative. Shapes may be symbolic; the contents of
// tensors are not looked at.
inline int64_t check_simplex_project(const at::Tensor& x, const at::Tensor& z, int64_t dim) {
  dim = check_simplex_rows("simplex_project", "x", x, dim);
  TORCH_CHECK_VALUE(x.sym_size(dim) >= 1,
                    "simplex_project: x must have at least one element in dimension ", dim,
                    ", got shape ", x.sym_sizes());
  TORCH_CHECK_TYPE(is_supported(z.scalar_type()),
                   "simplex_project: z must be float32, float64, bfloat16 or float16, got ",
                   z.scalar_type());
  TORCH_CHECK_VALUE(z.device() == x.device() || (z.dim() == 0 && z.device().is_cpu()),
                    "simplex_project: z must be a number or on x's device, ", x.device(), ", got ",
                    z.device());
  const c10::SymDimVector rows = shape_of_rows(x, dim);
  bool fits = z.dim() < x.dim();
  for (int64_t d = 1; fits && d <= z.dim(); ++d) {
    fits = z.sym_size(-d) == 1 || z.sym_size(-d) == rows[rows.size() - d];
  }
  TORCH_CHECK_VALUE(fits, "simplex_project: z must be a number or one a row, broadcastable to ",
                    c10::SymIntArrayRef(rows), ", got shape ", z.sym_sizes());
  return dim;
}

// z as the kernels read it, and what must live as long as they do.
template <typename T>
class ZOfRows {
 public:
  ZOfRows(const at::Tensor& z, const at::Tensor& x, int64_t dim) {
    if (z.dim() == 0 && z.is_cpu()) {
      z_.all = switch_dtype(z.scalar_type(), [&](auto zero) {
        return static_cast<T>(*z.const_data_ptr<decltype(zero)>());
      });
      TORCH_CHECK_VALUE(is_valid_z(z_.all),
                        "simplex_project: z must be positive, finite and not subnormal, got ",
                        z_.all);
      return;
    }
    held_ = z.to(c10::CppTypeToScalarType<T>::value);
    if (z.numel() != 1) held_ = held_.expand_symint(shape_of_rows(x, dim)).contiguous();
    z_.each = held_.template const_data_ptr<T>();
    z_.stride = z.numel() == 1 ? 0 : 1;
  }

  const RowZ<T>& operator*() const { return z_; }

 private:
  at::Tensor held_;
  RowZ<T> z_{};
};

// What every backend does: checks, then project(scalar_t(), rows, result, support, z) with x's rows
// and the result's, contiguous one after the other, and z as the kernels read it.
template <typename Project>
std::tuple<at::Tensor, at::Tensor> run_simplex_project(const at::Tensor& x, const at::Tensor& z,
                                                       int64_t dim, const Project& project) {
  dim = check_simplex_project(x, z, dim);
  const at::Tensor rows = contiguous_rows(x, dim);
  at::DimVector shape(rows.sizes());
  shape.back() = support_bytes(shape.back());
  at::Tensor support = at::empty(shape, x.options().dtype(at::kByte));
  at::Tensor result = switch_dtype(x.scalar_type(), [&](auto zero) {
    const ZOfRows<accumulate_t<decltype(zero)>> z_of_rows(z, x, dim);
    return written_by_rows(x, dim, [&](const at::Tensor& written) {
      project(zero, rows, written, support, *z_of_rows);
    });
  });
  return {std::move(result), std::move(support)};
}

}  // namespace fedkern
