#include "ops/class_counts.h"

#include <ATen/ops/zeros.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include "ops/cuda/class_counts_kernel.h"

namespace fedkern {
namespace {

at::Tensor class_counts(const at::Tensor& target, int64_t num_classes, int64_t ignore_index,
                        bool grouped) {
  check_class_counts(target, num_classes, grouped);
  const c10::cuda::CUDAGuard guard(target.device());
  const at::Tensor labels = target.to(at::kLong).contiguous();
  const int64_t groups = grouped ? target.size(0) : 1;
  at::Tensor counts = at::zeros({groups, num_classes}, labels.options());
  if (groups > 0) {
    C10_CUDA_CHECK(class_counts_cuda(
        labels.const_data_ptr<int64_t>(), groups, labels.numel() / groups, num_classes,
        ignore_index, counts.mutable_data_ptr<int64_t>(), c10::cuda::getCurrentCUDAStream()));
  }
  return grouped ? counts : counts.squeeze(0);
}

}  // namespace
}  // namespace fedkern

TORCH_LIBRARY_IMPL(fedkern, CUDA, m) { m.impl("class_counts", TORCH_FN(fedkern::class_counts)); }
