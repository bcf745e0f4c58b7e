#pragma once

// centered_gram: the Gram matrix of rows less their mean, X X^T for X = stats - mean(stats, 0).
//
//   stats         [K, D] floating, any strides; centred and multiplied in float64
//   returns       float64 [K, K], symmetric to the bit. Where statistics are not finite, neither
//                 are the rows' products
//
// Statistics with gaps or of a half type are copied first, on the CPU as a whole; other memory is
// O(D) and small. On the CPU all is summed in an order that does not depend on the number of
// threads. There are no derivatives: asking for one is an error.

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include "common/switch_dtype.h"

namespace fedkern {

inline void check_centered_gram(const at::Tensor& stats) {
  TORCH_CHECK_TYPE(is_supported(stats.scalar_type()),
                   "centered_gram: stats must be float32, float64, bfloat16 or float16, got ",
                   stats.scalar_type());
  TORCH_CHECK_VALUE(stats.dim() == 2, "centered_gram: stats must have shape (K, D), got ",
                    stats.sym_sizes());
}

}  // namespace fedkern
