#include "ops/centered_gram.h"

#include <ATen/ops/empty.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/library.h>

namespace fedkern {
namespace {

at::Tensor centered_gram_meta(const at::Tensor& stats) {
  check_centered_gram(stats);
  return at::empty_symint({stats.sym_size(0), stats.sym_size(0)},
                          stats.options().dtype(at::kDouble));
}

}  // namespace
}  // namespace fedkern

TORCH_LIBRARY_IMPL(fedkern, Meta, m) {
  m.impl("centered_gram", TORCH_FN(fedkern::centered_gram_meta));
}
TORCH_LIBRARY_IMPL(fedkern, Autograd, m) {
  m.impl("centered_gram", torch::autograd::autogradNotImplementedFallback());
}
