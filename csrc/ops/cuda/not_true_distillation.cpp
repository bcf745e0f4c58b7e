#include "ops/not_true_distillation.h"

#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include "common/cuda_tensor.h"
#include "ops/cuda/not_true_distillation_kernel.h"

namespace fedkern {
namespace {

template <typename scalar_t>
void forward(const at::Tensor& input, const at::Tensor& teacher, const at::Tensor& target,
             double tau, int64_t ignore_index, Reduction reduction, bool grouped, at::Tensor& loss,
             at::Tensor& gradient) {
  const at::Tensor labels = target.to(at::kLong).contiguous();
  NotTrueDistillationCudaArguments<cuda_t<scalar_t>> arguments{};
  arguments.student = const_cuda_data<scalar_t>(input);
  arguments.student_layout = *row_layout(input, grouped);
  arguments.teacher = const_cuda_data<scalar_t>(teacher);
  arguments.teacher_layout = *row_layout(teacher, grouped);
  arguments.target = labels.const_data_ptr<int64_t>();
  arguments.groups = grouped ? input.size(0) : 1;
  arguments.rows = arguments.groups == 0 ? 0 : labels.numel() / arguments.groups;
  arguments.num_classes = input.size(class_dim(input, grouped));
  arguments.tau = tau;
  arguments.reduction = reduction;
  arguments.ignore_index = ignore_index;
  arguments.loss = mutable_cuda_data<scalar_t>(loss);
  if (gradient.defined()) {
    arguments.gradient = mutable_cuda_data<scalar_t>(gradient);
    arguments.gradient_layout = *row_layout(gradient, grouped);
  }
  const auto bytes = static_cast<int64_t>(not_true_distillation_workspace(arguments));
  at::Tensor workspace;
  if (bytes > 0) {
    workspace = at::empty({bytes}, input.options().dtype(at::kByte));
    arguments.workspace = workspace.mutable_data_ptr();
  }
  C10_CUDA_CHECK(not_true_distillation_forward_cuda(arguments, c10::cuda::getCurrentCUDAStream()));
}

std::tuple<at::Tensor, at::Tensor> not_true_distillation_forward(
    const at::Tensor& input, const at::Tensor& teacher, const at::Tensor& target, double tau,
    int64_t ignore_index, c10::string_view reduction, bool grouped, bool compute_gradient) {
  const auto parsed = check_not_true_distillation(input, teacher, target, tau, reduction, grouped);
  const c10::cuda::CUDAGuard guard(input.device());
  const auto run = [&](const at::Tensor& student, at::Tensor& loss, at::Tensor& gradient) {
    const at::Tensor constant = with_rows(teacher, grouped);
    switch_dtype(input.scalar_type(), [&](auto zero) {
      forward<decltype(zero)>(student, constant, target, tau, ignore_index, parsed, grouped, loss,
                              gradient);
    });
  };
  return allocate_and_run(input, target, parsed, grouped, compute_gradient, run);
}

}  // namespace
}  // namespace fedkern

TORCH_LIBRARY_IMPL(fedkern, CUDA, m) {
  m.impl("not_true_distillation_forward", TORCH_FN(fedkern::not_true_distillation_forward));
}
