#include "ops/calibrated_ce_backward.h"

#include <ATen/ops/empty_like.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include "ops/cuda/calibrated_ce_backward_kernel.h"

namespace fedkern {
namespace {

// scalar_t is CUDA's own type of gradient's dtype; at_t is ATen's, of the same bits.
template <typename scalar_t, typename at_t>
void backward(const at::Tensor& grad_loss, const at::Tensor& gradient, const at::Tensor& labels,
              const at::Tensor& target, int64_t ignore_index, bool grouped,
              const at::Tensor& result) {
  CalibratedCEBackwardCudaArguments<scalar_t> arguments{};
  arguments.grad_loss = reinterpret_cast<const scalar_t*>(grad_loss.const_data_ptr<at_t>());
  arguments.grad_loss_layout = *grad_loss_layout(grad_loss, target, grouped);
  arguments.gradient = reinterpret_cast<const scalar_t*>(gradient.const_data_ptr<at_t>());
  arguments.gradient_layout = *row_layout(gradient, grouped);
  arguments.target = labels.const_data_ptr<int64_t>();
  arguments.rows = labels.numel();
  arguments.num_classes = gradient.size(class_dim(gradient, grouped));
  arguments.ignore_index = ignore_index;
  arguments.result = reinterpret_cast<scalar_t*>(result.mutable_data_ptr<at_t>());
  arguments.result_layout = *row_layout(result, grouped);
  C10_CUDA_CHECK(calibrated_ce_backward_cuda(arguments, c10::cuda::getCurrentCUDAStream()));
}

void calibrated_ce_backward_into(const at::Tensor& grad_loss, const at::Tensor& gradient,
                                 const at::Tensor& target, int64_t ignore_index, bool grouped,
                                 const at::Tensor& result) {
  const auto run = [&](const at::Tensor& upstream, const at::Tensor& from, const at::Tensor& labels,
                       const at::Tensor& to) {
    const auto call = [&](auto backward_of_dtype) {
      backward_of_dtype(upstream, from, labels, target, ignore_index, grouped, to);
    };
    switch (gradient.scalar_type()) {
      case at::kFloat:
        return call(backward<float, float>);
      case at::kDouble:
        return call(backward<double, double>);
      case at::kBFloat16:
        return call(backward<__nv_bfloat16, c10::BFloat16>);
      default:
        return call(backward<__half, c10::Half>);
    }
  };
  run_calibrated_ce_backward(grad_loss, gradient, target, result, grouped, run);
}

at::Tensor calibrated_ce_backward(const at::Tensor& grad_loss, const at::Tensor& gradient,
                                  const at::Tensor& target, int64_t ignore_index, bool grouped) {
  check_calibrated_ce_backward(grad_loss, gradient, target, grouped);
  const c10::cuda::CUDAGuard guard(gradient.device());
  at::Tensor result = at::empty_like(gradient);
  calibrated_ce_backward_into(grad_loss, gradient, target, ignore_index, grouped, result);
  return result;
}

void calibrated_ce_backward_(at::Tensor& gradient, const at::Tensor& grad_loss,
                             const at::Tensor& target, int64_t ignore_index, bool grouped) {
  check_calibrated_ce_backward(grad_loss, gradient, target, grouped);
  const c10::cuda::CUDAGuard guard(gradient.device());
  calibrated_ce_backward_into(grad_loss, gradient, target, ignore_index, grouped, gradient);
}

}  // namespace
}  // namespace fedkern

TORCH_LIBRARY_IMPL(fedkern, CUDA, m) {
  m.impl("calibrated_ce_backward", TORCH_FN(fedkern::calibrated_ce_backward));
  m.impl("calibrated_ce_backward_", TORCH_FN(fedkern::calibrated_ce_backward_));
}
