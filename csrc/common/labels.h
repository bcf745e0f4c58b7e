#pragma once

// Labels on the CPU.

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <cstdint>

namespace fedkern {

// int64, in row order. to() costs a call through the dispatcher even where it has nothing to do.
inline at::Tensor contiguous_labels(const at::Tensor& target) {
  return (target.scalar_type() == at::kLong ? target : target.to(at::kLong)).contiguous();
}

// Whether labels[i] is not ignore_index; then it must be a class. `op` is the operator that the
// message names.
inline bool has_class(const char* op, const int64_t* labels, int64_t i, int64_t num_classes,
                      int64_t ignore_index) {
  const int64_t label = labels[i];
  if (label == ignore_index) return false;
  TORCH_CHECK_INDEX(label >= 0 && label < num_classes, op,
                    ": target must hold class indices in [0, ", num_classes, "), got ", label,
                    " at position ", i);
  return true;
}

}  // namespace fedkern
