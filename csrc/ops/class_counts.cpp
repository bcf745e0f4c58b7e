#include "ops/class_counts.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "common/vmap.h"

namespace fedkern {
namespace {

at::Tensor class_counts_meta(const at::Tensor& target, c10::SymInt num_classes, int64_t,
                             bool grouped) {
  check_class_counts(target, num_classes, grouped);
  c10::SymDimVector shape{num_classes};
  if (grouped) shape.insert(shape.begin(), target.sym_size(0));
  return at::empty_symint(shape, target.options().dtype(at::kLong));
}

at::Tensor class_counts_vmap(const at::Tensor& target, c10::SymInt num_classes,
                             int64_t ignore_index, bool grouped) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("fedkern::class_counts", "")
                             .typed<at::Tensor(const at::Tensor&, c10::SymInt, int64_t, bool)>();
  const VmapCall vmap(grouped, {target});
  if (!vmap.maps()) return op.call(target, num_classes, ignore_index, grouped);
  return vmap.mapped(op.call(vmap.grouped(target), num_classes, ignore_index, /*grouped=*/true));
}

}  // namespace
}  // namespace fedkern

TORCH_LIBRARY_IMPL(fedkern, Meta, m) {
  m.impl("class_counts", TORCH_FN(fedkern::class_counts_meta));
}
TORCH_LIBRARY_IMPL(fedkern, FuncTorchBatched, m) {
  m.impl("class_counts", TORCH_FN(fedkern::class_counts_vmap));
}
