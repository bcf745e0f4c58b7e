#include "ops/class_counts.h"

#include <ATen/ops/empty.h>
#include <torch/library.h>

namespace fedkern {
namespace {

at::Tensor class_counts_meta(const at::Tensor& target, c10::SymInt num_classes, int64_t) {
  check_class_counts(target, num_classes);
  return at::empty_symint({num_classes}, target.options().dtype(at::kLong));
}

}  // namespace
}  // namespace fedkern

TORCH_LIBRARY_IMPL(fedkern, Meta, m) {
  m.impl("class_counts", TORCH_FN(fedkern::class_counts_meta));
}
