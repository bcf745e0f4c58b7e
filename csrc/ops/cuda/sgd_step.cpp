#include "ops/sgd_step.h"

#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include "common/cuda_tensor.h"
#include "common/switch_dtype.h"
#include "ops/cuda/sgd_step_kernel.h"

namespace fedkern {
namespace {

template <typename scalar_t>
void step(const SgdStepTensors& tensors, const SgdStepOptions& options) {
  SgdStepCudaArguments<cuda_t<scalar_t>> arguments{};
  arguments.rows = sgd_step_rows<cuda_t<scalar_t>>(tensors);
  arguments.terms = options.terms();
  arguments.factors = options.factors<accumulate_t<scalar_t>>(/*clip=*/1);
  arguments.zero_grad = options.zero_grad;
  at::Tensor sums;
  if (options.clips()) {
    sums =
        at::empty({sgd_step_cuda_sums(arguments.rows)}, tensors.param.options().dtype(at::kDouble));
    arguments.sums = sums.mutable_data_ptr<double>();
    arguments.max_norm = *options.max_norm;
  }
  C10_CUDA_CHECK(sgd_step_cuda(arguments, c10::cuda::getCurrentCUDAStream()));
}

void sgd_step_(at::Tensor& param, at::Tensor& grad, const OptionalTensor& momentum_buffer,
               const OptionalTensor& anchor, const OptionalTensor& alpha,
               const OptionalTensor& active, double lr, double momentum, double weight_decay,
               std::optional<double> max_norm, double pull, bool zero_grad) {
  const SgdStepOptions options{lr, momentum, weight_decay, max_norm, pull, zero_grad};
  run_sgd_step({param, grad, momentum_buffer, anchor, alpha, active}, options,
               [&](const SgdStepTensors& tensors) {
                 const c10::cuda::CUDAGuard guard(param.device());
                 switch_dtype(param.scalar_type(),
                              [&](auto zero) { step<decltype(zero)>(tensors, options); });
               });
}

}  // namespace
}  // namespace fedkern

TORCH_LIBRARY_IMPL(fedkern, CUDA, m) { m.impl("sgd_step_", TORCH_FN(fedkern::sgd_step_)); }
