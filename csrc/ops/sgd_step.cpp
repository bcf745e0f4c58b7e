#include "ops/sgd_step.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/grad_mode.h>
#include <torch/library.h>

#include <utility>

namespace fedkern {

using at::Tensor;

namespace {

// ---- the operator, called through the dispatcher -----------------------------------------------

void call(Tensor& param, Tensor& grad, const OptionalTensor& momentum_buffer,
          const OptionalTensor& anchor, const OptionalTensor& alpha, const OptionalTensor& active,
          double lr, double momentum, double weight_decay, std::optional<double> max_norm,
          double pull, bool zero_grad) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("fedkern::sgd_step_", "")
                             .typed<decltype(call)>();
  op.call(param, grad, momentum_buffer, anchor, alpha, active, lr, momentum, weight_decay, max_norm,
          pull, zero_grad);
}

void sgd_step_meta(Tensor& param, Tensor& grad, const OptionalTensor& momentum_buffer,
                   const OptionalTensor& anchor, const OptionalTensor& alpha,
                   const OptionalTensor& active, double lr, double momentum, double weight_decay,
                   std::optional<double> max_norm, double pull, bool zero_grad) {
  check_sgd_step({param, grad, momentum_buffer, anchor, alpha, active},
                 {lr, momentum, weight_decay, max_norm, pull, zero_grad});
}

// ---- autograd: no derivative, but what is written gets a new version ---------------------------

void sgd_step_autograd(Tensor& param, Tensor& grad, const OptionalTensor& momentum_buffer,
                       const OptionalTensor& anchor, const OptionalTensor& alpha,
                       const OptionalTensor& active, double lr, double momentum,
                       double weight_decay, std::optional<double> max_norm, double pull,
                       bool zero_grad) {
  if (at::GradMode::is_enabled()) {
    const auto check = [](const char* name, const Tensor* tensor) {
      TORCH_CHECK_VALUE(!tensor || !tensor->requires_grad(), "sgd_step: ", name,
                        " requires grad, but a step has no derivative: call it under "
                        "torch.no_grad()");
    };
    const auto given = [](const OptionalTensor& tensor) { return tensor ? &*tensor : nullptr; };
    check("param", &param);
    check("grad", &grad);
    check("momentum_buffer", given(momentum_buffer));
    check("anchor", given(anchor));
    check("alpha", given(alpha));
  }
  {
    const at::AutoDispatchBelowADInplaceOrView below_autograd;
    call(param, grad, momentum_buffer, anchor, alpha, active, lr, momentum, weight_decay, max_norm,
         pull, zero_grad);
  }
  const auto bump = [](const Tensor& tensor) {
    if (!tensor.is_inference()) tensor.unsafeGetTensorImpl()->bump_version();
  };
  bump(param);
  if (zero_grad) bump(grad);
  if (momentum_buffer) bump(*momentum_buffer);
}

}  // namespace

void call_sgd_step_(Tensor param, Tensor grad, const OptionalTensor& momentum_buffer,
                    const OptionalTensor& anchor, const OptionalTensor& alpha,
                    const OptionalTensor& active, double lr, double momentum, double weight_decay,
                    std::optional<double> max_norm, double pull, bool zero_grad) {
  call(param, grad, momentum_buffer, anchor, alpha, active, lr, momentum, weight_decay, max_norm,
       pull, zero_grad);
}

}  // namespace fedkern

TORCH_LIBRARY_IMPL(fedkern, Meta, m) { m.impl("sgd_step_", TORCH_FN(fedkern::sgd_step_meta)); }
TORCH_LIBRARY_IMPL(fedkern, Autograd, m) {
  m.impl("sgd_step_", TORCH_FN(fedkern::sgd_step_autograd));
}
