#pragma once

#include <ATen/core/Tensor.h>

namespace fedkern {

// What autocast makes of the arguments of an operator that computes in float32.
inline at::Tensor to_float32(const at::Tensor& t) {
  return t.is_floating_point() && t.scalar_type() != at::kDouble ? t.to(at::kFloat) : t;
}

}  // namespace fedkern
