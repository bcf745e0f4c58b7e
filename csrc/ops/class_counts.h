#pragma once

// class_counts: how often each class occurs among labels.
//
//   target   any integer dtype, any shape; grouped: [G, ...]
//   returns  int64 [num_classes], grouped: [G, num_classes]; labels equal to ignore_index are not
//            counted
//
// A label outside [0, num_classes) is an error on the CPU, a device-side assert on CUDA.
// Integers are summed: the result does not depend on threads or launch order.

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

namespace fedkern {

inline void check_class_counts(const at::Tensor& target, const c10::SymInt& num_classes,
                               bool grouped) {
  TORCH_CHECK_TYPE(at::isIntegralType(target.scalar_type(), /*includeBool=*/false),
                   "class_counts: target must hold class indices (an integer dtype), got ",
                   target.scalar_type());
  TORCH_CHECK_VALUE(num_classes >= 1, "class_counts: num_classes must be at least 1, got ",
                    num_classes);
  TORCH_CHECK_VALUE(target.dim() >= grouped, "class_counts: target must have groups, got shape ()");
}

// Adds the classes of labels[0..size) to counts[0..num_classes), in parallel for many labels.
// `op` is the operator's name, for the error.
void count_labels_cpu(const char* op, const int64_t* labels, int64_t size, int64_t num_classes,
                      int64_t ignore_index, int64_t* counts);

}  // namespace fedkern
