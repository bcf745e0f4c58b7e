#pragma once

// simplex_sample: points drawn uniformly from the simplex {alpha >= 0, sum alpha = 1}.
//
//   key            int64 [], all 64 bits random: what the points are a function of
//   size           the result's leading dimensions
//   num_endpoints  M >= 1, its last dimension
//   dtype          float32 or float64: in half precision a point does not sum to one
//   returns        size + [M], on key's device
//
// Exponential variables over their sum. The bits depend on the key, the dtype, M and a point's
// position in the result, not on threads, CPU capability, launch or device.

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <optional>

namespace fedkern {

// Draws the key, on `device`, and calls the operator.
at::Tensor call_simplex_sample(int64_t num_endpoints, at::IntArrayRef size,
                               std::optional<at::Generator> generator,
                               std::optional<at::Device> device,
                               std::optional<at::ScalarType> dtype);

// A key for a draw: 64 random bits on `device`, from a generator that may live on another.
at::Tensor draw_key(std::optional<at::Generator> generator, at::Device device);

inline void check_key(const char* op, const at::Tensor& key) {
  TORCH_CHECK_TYPE(key.scalar_type() == at::kLong, op, ": key must be int64, got ",
                   key.scalar_type());
  TORCH_CHECK_VALUE(key.dim() == 0, op, ": key must have shape (), got ", key.sym_sizes());
}

// Every backend's first line.
inline void check_simplex_sample(const at::Tensor& key, c10::SymIntArrayRef size,
                                 const c10::SymInt& num_endpoints, at::ScalarType dtype) {
  check_key("simplex_sample", key);
  TORCH_CHECK_TYPE(dtype == at::kFloat || dtype == at::kDouble,
                   "simplex_sample: dtype must be float32 or float64 (a point in half precision "
                   "does not sum to one), got ",
                   dtype);
  TORCH_CHECK_VALUE(num_endpoints >= 1, "simplex_sample: num_endpoints must be at least 1, got ",
                    num_endpoints);
  for (const auto& length : size) {
    TORCH_CHECK_VALUE(length >= 0, "simplex_sample: size must not be negative, got ", size);
  }
}

}  // namespace fedkern
