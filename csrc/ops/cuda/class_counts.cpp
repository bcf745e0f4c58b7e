#include "ops/class_counts.h"

#include <ATen/ops/zeros.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include "ops/cuda/class_counts_kernel.h"

namespace fedkern {
namespace {

at::Tensor class_counts_cuda(const at::Tensor& target, int64_t num_classes, int64_t ignore_index) {
  check_class_counts(target, num_classes);
  const c10::cuda::CUDAGuard guard(target.device());
  const at::Tensor labels = target.to(at::kLong).contiguous();
  at::Tensor counts = at::zeros({num_classes}, labels.options());
  C10_CUDA_CHECK(count_labels_cuda(labels.const_data_ptr<int64_t>(), labels.numel(), num_classes,
                                   ignore_index, counts.mutable_data_ptr<int64_t>(),
                                   c10::cuda::getCurrentCUDAStream()));
  return counts;
}

}  // namespace
}  // namespace fedkern

TORCH_LIBRARY_IMPL(fedkern, CUDA, m) {
  m.impl("class_counts", TORCH_FN(fedkern::class_counts_cuda));
}
