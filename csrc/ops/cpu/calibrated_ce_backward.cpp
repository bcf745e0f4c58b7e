#include "ops/calibrated_ce_backward.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <algorithm>

#include "common/switch_dtype.h"
#include "ops/cpu/calibrated_ce_backward_kernel.h"

namespace fedkern {
namespace {

template <typename scalar_t>
void backward(const at::Tensor& grad_loss, const at::Tensor& gradient, const at::Tensor& labels,
              const at::Tensor& target, int64_t ignore_index, bool grouped,
              const at::Tensor& result) {
  CalibratedCEBackwardArguments<scalar_t> arguments{};
  arguments.grad_loss = grad_loss.const_data_ptr<scalar_t>();
  arguments.grad_loss_layout = *grad_loss_layout(grad_loss, target, grouped);
  arguments.gradient = gradient.const_data_ptr<scalar_t>();
  arguments.gradient_layout = *row_layout(gradient, grouped);
  arguments.target = labels.const_data_ptr<int64_t>();
  arguments.num_classes = gradient.size(class_dim(gradient, grouped));
  arguments.ignore_index = ignore_index;
  arguments.result = result.mutable_data_ptr<scalar_t>();
  arguments.result_layout = *row_layout(result, grouped);
  const auto run = std::get<CalibratedCEBackwardRun<scalar_t>>(calibrated_ce_backward_kernels());
  // the least elements that are worth waking another thread for
  const int64_t grain = std::max<int64_t>(1, 32768 / arguments.num_classes);
  at::parallel_for(0, labels.numel(), grain,
                   [&](int64_t begin, int64_t end) { run(arguments, begin, end); });
}

void calibrated_ce_backward_into(const at::Tensor& grad_loss, const at::Tensor& gradient,
                                 const at::Tensor& target, int64_t ignore_index, bool grouped,
                                 const at::Tensor& result) {
  const auto run = [&](const at::Tensor& upstream, const at::Tensor& from, const at::Tensor& labels,
                       const at::Tensor& to) {
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

TORCH_LIBRARY_IMPL(fedkern, CPU, m) {
  m.impl("calibrated_ce_backward", TORCH_FN(fedkern::calibrated_ce_backward));
  m.impl("calibrated_ce_backward_", TORCH_FN(fedkern::calibrated_ce_backward_));
}
