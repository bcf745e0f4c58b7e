#include "ops/calibrated_ce_backward.h"

#include <ATen/ops/empty_like.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include "common/cuda_tensor.h"
#include "common/switch_dtype.h"
#include "ops/cuda/calibrated_ce_backward_kernel.h"

namespace fedkern {
namespace {

template <typename scalar_t>
void backward(const at::Tensor& grad_loss, const at::Tensor& gradient, const at::Tensor& labels,
              const at::Tensor& target, int64_t ignore_index, bool grouped,
              const at::Tensor& result) {
  CalibratedCEBackwardCudaArguments<cuda_t<scalar_t>> arguments{};
  arguments.grad_loss = const_cuda_data<scalar_t>(grad_loss);
  arguments.grad_loss_layout = *grad_loss_layout(grad_loss, target, grouped);
  arguments.gradient = const_cuda_data<scalar_t>(gradient);
  arguments.gradient_layout = *row_layout(gradient, grouped);
  arguments.target = labels.const_data_ptr<int64_t>();
  arguments.rows = labels.numel();
  arguments.num_classes = gradient.size(class_dim(gradient, grouped));
  arguments.ignore_index = ignore_index;
  arguments.result = mutable_cuda_data<scalar_t>(result);
  arguments.result_layout = *row_layout(result, grouped);
  C10_CUDA_CHECK(calibrated_ce_backward_cuda(arguments, c10::cuda::getCurrentCUDAStream()));
}

void calibrated_ce_backward_into(const at::Tensor& grad_loss, const at::Tensor& gradient,
                                 const at::Tensor& target, int64_t ignore_index, bool grouped,
                                 const at::Tensor& result) {
  const auto run = [&](const at::Tensor& upstream, const at::Tensor& from, const at::Tensor& labels,
                       const at::Tensor& to) {
    const c10::cuda::CUDAGuard guard(gradient.device());
    switch_dtype(gradient.scalar_type(), [&](auto zero) {
      backward<decltype(zero)>(upstream, from, labels, target, ignore_index, grouped, to);
    });
  };
  run_calibrated_ce_backward(grad_loss, gradient, target, result, grouped, run);
}

at::Tensor calibrated_ce_backward(const at::Tensor& grad_loss, const at::Tensor& gradient,
                                  const at::Tensor& target, int64_t ignore_index, bool grouped) {
  at::Tensor result = at::empty_like(gradient);
  calibrated_ce_backward_into(grad_loss, gradient, target, ignore_index, grouped, result);
  return result;
}

void calibrated_ce_backward_(at::Tensor& gradient, const at::Tensor& grad_loss,
                             const at::Tensor& target, int64_t ignore_index, bool grouped) {
  calibrated_ce_backward_into(grad_loss, gradient, target, ignore_index, grouped, gradient);
}

}  // namespace
}  // namespace fedkern

TORCH_LIBRARY_IMPL(fedkern, CUDA, m) {
  m.impl("calibrated_ce_backward", TORCH_FN(fedkern::calibrated_ce_backward));
  m.impl("calibrated_ce_backward_", TORCH_FN(fedkern::calibrated_ce_backward_));
}
