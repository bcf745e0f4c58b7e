#include "ops/calibrated_ce.h"

#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include "common/cuda_tensor.h"
#include "common/switch_dtype.h"
#include "ops/cuda/calibrated_ce_kernel.h"

namespace fedkern {
namespace {

template <typename scalar_t>
void forward(const at::Tensor& input, const at::Tensor& target,
             const std::optional<at::Tensor>& weight, const std::optional<at::Tensor>& class_counts,
             const CalibratedCEOptions& options, int64_t ignore_index, double label_smoothing,
             bool grouped, const std::optional<at::Tensor>& logit_adjustment, at::Tensor& loss,
             at::Tensor& gradient) {
  using T = accumulate_t<scalar_t>;
  const int64_t num_classes = input.size(class_dim(input, grouped));
  const int64_t groups = grouped ? input.size(0) : 1;
  const auto class_vector = [](const std::optional<at::Tensor>& given) {
    if (!given) return at::Tensor();
    return given->detach().to(c10::CppTypeToScalarType<T>::value).contiguous();
  };
  const auto group_stride = [&](const at::Tensor& vector) {
    return vector.defined() && vector.dim() == 2 ? num_classes : 0;
  };
  const at::Tensor labels = target.to(at::kLong).contiguous();
  const at::Tensor counts = class_vector(class_counts), weights = class_vector(weight),
                   adjustments = class_vector(logit_adjustment);

  CalibratedCECudaArguments<cuda_t<scalar_t>> arguments{};
  arguments.logits = const_cuda_data<scalar_t>(input);
  arguments.logits_layout = *row_layout(input, grouped);
  arguments.target = labels.const_data_ptr<int64_t>();
  arguments.groups = groups;
  arguments.rows = groups == 0 ? 0 : labels.numel() / groups;
  arguments.num_classes = num_classes;
  if (counts.defined()) arguments.class_counts = counts.const_data_ptr<T>();
  arguments.class_counts_stride = group_stride(counts);
  if (weights.defined()) arguments.weight = weights.const_data_ptr<T>();
  arguments.weight_stride = group_stride(weights);
  if (adjustments.defined()) arguments.logit_adjustment = adjustments.const_data_ptr<T>();
  arguments.logit_adjustment_stride = group_stride(adjustments);
  arguments.calibration = options.calibration;
  arguments.reduction = options.reduction;
  arguments.ignore_index = ignore_index;
  arguments.label_smoothing = label_smoothing;
  arguments.loss = mutable_cuda_data<scalar_t>(loss);
  if (gradient.defined()) {
    arguments.gradient = mutable_cuda_data<scalar_t>(gradient);
    arguments.gradient_layout = *row_layout(gradient, grouped);
  }
  const auto bytes = static_cast<int64_t>(calibrated_ce_workspace(arguments));
  at::Tensor workspace;
  if (bytes > 0) {
    workspace = at::empty({bytes}, input.options().dtype(at::kByte));
    arguments.workspace = workspace.mutable_data_ptr();
  }
  C10_CUDA_CHECK(calibrated_ce_forward_cuda(arguments, c10::cuda::getCurrentCUDAStream()));
}

std::tuple<at::Tensor, at::Tensor> calibrated_ce_forward(
    const at::Tensor& input, const at::Tensor& target, const std::optional<at::Tensor>& weight,
    const std::optional<at::Tensor>& class_counts, c10::string_view calibration,
    int64_t ignore_index, c10::string_view reduction, double label_smoothing, bool grouped,
    const std::optional<at::Tensor>& logit_adjustment, bool compute_gradient) {
  const auto options = check_calibrated_ce(input, target, weight, class_counts, calibration,
                                           reduction, label_smoothing, grouped, logit_adjustment);
  const c10::cuda::CUDAGuard guard(input.device());
  const auto run = [&](const at::Tensor& logits, at::Tensor& loss, at::Tensor& gradient) {
    switch_dtype(input.scalar_type(), [&](auto zero) {
      forward<decltype(zero)>(logits, target, weight, class_counts, options, ignore_index,
                              label_smoothing, grouped, logit_adjustment, loss, gradient);
    });
  };
  return allocate_and_run(input, target, options.reduction, grouped, compute_gradient, run);
}

}  // namespace
}  // namespace fedkern

TORCH_LIBRARY_IMPL(fedkern, CUDA, m) {
  m.impl("calibrated_ce_forward", TORCH_FN(fedkern::calibrated_ce_forward));
}
