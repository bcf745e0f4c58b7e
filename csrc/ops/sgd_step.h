#pragma once

// sgd_step_: a step of SGD with gradient-norm clipping on flat parameters, in place.
//
//   param            [P], or [G, P]: G models, a row each; float32, float64, bfloat16 or float16
//   grad             their gradients, of param's dtype and, but for alpha, shape
//   momentum_buffer  as param, wanted iff momentum != 0; zeros before the first step
//   anchor           [P], the same for all rows, or [G, P]; wanted iff pull != 0
//   alpha            [M] or [G, M], float32, or float64 for float64 parameters: points of a simplex
//                    of models. The last M D entries of a row of param are its endpoints
//                    theta_1, ..., theta_M, [M, D]; the last D entries of a row of grad are the
//                    gradient g of theta(alpha) = sum_m alpha_m theta_m, and alpha_m g is
//                    theta_m's. grad has P - M D + D entries a row, which says what D is, at least
//                    1. M = 1: as without alpha, whatever it holds
//   active           bool, [] or [G]: other rows stay as they are; only zero_grad is for all rows
//   lr, momentum, weight_decay, pull  finite, not negative
//   max_norm         positive; inf is as none: no clipping
//   zero_grad        leave 0 in grad, in the same pass. Else grad is not written to
//
// A row's step, |.| its Euclidean norm:
//
//   g' = grad + pull (param - anchor)                          FedProx's and Ditto's proximal term
//   c  = min(1, max_norm / (|g'| + 1e-6))                      as torch.nn.utils.clip_grad_norm_
//   momentum_buffer = momentum momentum_buffer + c g' + weight_decay param      as torch.optim.SGD
//   param = param - lr momentum_buffer
//
// A norm of nan makes its row nan; one of inf makes c = 0, so that infinite gradients give nan.
//
// Rows must be contiguous; how far apart they lie does not matter. What is written may not overlap
// anything else. Computes in float32 (float64 for float64) and rounds once. Squares are added up in
// pieces whose sums are taken in double. The bits depend neither on threads nor on the launch; on
// CUDA they may depend on whether rows begin at 16-byte boundaries. All CPU capabilities add in the
// same order; what differs between them is that those with fused multiply-adds round less often.
//
// There is no derivative: tensors that require grad are refused where gradients are recorded. An
// empty param gives nothing to do.

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <cmath>
#include <optional>

#include "common/switch_dtype.h"
#include "ops/sgd_step_math.h"
#include "ops/sgd_step_rows.h"

namespace fedkern {

using OptionalTensor = std::optional<at::Tensor>;

// The operator, called through the dispatcher.
void call_sgd_step_(at::Tensor param, at::Tensor grad, const OptionalTensor& momentum_buffer,
                    const OptionalTensor& anchor, const OptionalTensor& alpha,
                    const OptionalTensor& active, double lr, double momentum, double weight_decay,
                    std::optional<double> max_norm, double pull, bool zero_grad);

struct SgdStepTensors {
  const at::Tensor &param, &grad;
  const OptionalTensor &momentum_buffer, &anchor, &alpha, &active;
};

struct SgdStepOptions {
  double lr, momentum, weight_decay;
  std::optional<double> max_norm;
  double pull;
  bool zero_grad;

  bool clips() const { return max_norm && !std::isinf(*max_norm); }
  SgdStepTerms terms() const { return {momentum != 0, pull != 0, weight_decay != 0}; }
  // For an alpha of 1 and gradients that clipping multiplies by `clip`.
  template <typename T>
  SgdStepFactors<T> factors(double clip) const {
    return {static_cast<T>(clip), static_cast<T>(clip * pull), static_cast<T>(weight_decay),
            static_cast<T>(momentum), static_cast<T>(-lr)};
  }
};

// ---- checks ------------------------------------------------------------------------------------

namespace detail {

inline void check_not_negative(const char* name, double value) {
  TORCH_CHECK_VALUE(std::isfinite(value) && value >= 0, "sgd_step: ", name,
                    " must be finite and not negative, got ", value);
}

// `tensor` is there iff `factor` is not 0.
inline void check_wanted(const char* name, const OptionalTensor& tensor, const char* factor,
                         double value) {
  TORCH_CHECK_VALUE(tensor.has_value() == (value != 0), "sgd_step: ", name,
                    value != 0 ? " is needed" : " must be left out", ", since ", factor, " is ",
                    value);
}

// Rows as param has them, or one for all rows where that is allowed.
inline void check_rows(const char* name, const at::Tensor& t, const at::Tensor& param,
                       bool one_will_do = false) {
  TORCH_CHECK_TYPE(t.scalar_type() == param.scalar_type(), "sgd_step: ", name,
                   " must have param's dtype, ", param.scalar_type(), ", got ", t.scalar_type());
  const bool as_many = t.dim() == param.dim() && t.sym_sizes().slice(0, t.dim() - 1) ==
                                                     param.sym_sizes().slice(0, t.dim() - 1);
  TORCH_CHECK_VALUE(as_many || (one_will_do && t.dim() == 1), "sgd_step: ", name,
                    " must have as many rows as param, whose shape is ", param.sym_sizes(),
                    ", got shape ", t.sym_sizes());
  TORCH_CHECK_VALUE(t.sym_size(-1) <= 1 || t.sym_stride(-1) == 1, "sgd_step: ", name,
                    " must have contiguous rows, got strides ", t.sym_strides());
}

inline void check_length(const char* name, const at::Tensor& t, const at::Tensor& param) {
  TORCH_CHECK_VALUE(t.sym_size(-1) == param.sym_size(-1), "sgd_step: ", name,
                    " must have rows as long as param's, ", param.sym_size(-1), ", got shape ",
                    t.sym_sizes());
}

inline void check_rows_apart(const char* name, const at::Tensor& t) {
  TORCH_CHECK_VALUE(t.dim() == 1 || t.sym_size(0) <= 1 || t.sym_stride(0) >= t.sym_size(1),
                    "sgd_step: ", name, "'s rows must not overlap, got strides ", t.sym_strides());
}

// Whether the memory from the first to the last element of each has something in common.
inline bool overlap(const at::Tensor& a, const at::Tensor& b) {
  if (!a.is_alias_of(b) || a.sym_numel() == 0 || b.sym_numel() == 0) return false;
  const auto end = [](const at::Tensor& t) {
    auto last = t.sym_storage_offset();
    for (int64_t d = 0; d < t.dim(); ++d) last += (t.sym_size(d) - 1) * t.sym_stride(d);
    return last + 1;
  };
  return a.sym_storage_offset() < end(b) && b.sym_storage_offset() < end(a);
}

struct Named {
  const char* name;
  const at::Tensor* tensor;  // null: not given
  bool written;
};

}  // namespace detail

// M of alpha; 0 where a row is as without it.
inline c10::SymInt num_endpoints(const OptionalTensor& alpha) {
  return alpha && alpha->sym_size(-1) > 1 ? alpha->sym_size(-1) : c10::SymInt(0);
}

// Every backend's first line. Shapes may be symbolic; the contents of tensors are not looked at.
inline void check_sgd_step(const SgdStepTensors& tensors, const SgdStepOptions& options) {
  const auto& [param, grad, momentum_buffer, anchor, alpha, active] = tensors;
  detail::check_not_negative("lr", options.lr);
  detail::check_not_negative("momentum", options.momentum);
  detail::check_not_negative("weight_decay", options.weight_decay);
  detail::check_not_negative("pull", options.pull);
  TORCH_CHECK_VALUE(!options.max_norm || *options.max_norm > 0,
                    "sgd_step: max_norm must be positive, got ", *options.max_norm);
  detail::check_wanted("momentum_buffer", momentum_buffer, "momentum", options.momentum);
  detail::check_wanted("anchor", anchor, "pull", options.pull);

  const auto dtype = param.scalar_type();
  TORCH_CHECK_TYPE(is_supported(dtype),
                   "sgd_step: param must be float32, float64, bfloat16 or float16, got ", dtype);
  TORCH_CHECK_VALUE(param.dim() == 1 || param.dim() == 2,
                    "sgd_step: param must have shape (P) or (G, P), got ", param.sym_sizes());
  detail::check_rows("param", param, param);
  detail::check_rows_apart("param", param);
  detail::check_rows("grad", grad, param);
  if (options.zero_grad) detail::check_rows_apart("grad", grad);
  if (momentum_buffer) {
    detail::check_rows("momentum_buffer", *momentum_buffer, param);
    detail::check_length("momentum_buffer", *momentum_buffer, param);
    detail::check_rows_apart("momentum_buffer", *momentum_buffer);
  }
  if (anchor) {
    detail::check_rows("anchor", *anchor, param, /*one_will_do=*/true);
    detail::check_length("anchor", *anchor, param);
  }
  if (alpha) {
    const auto wanted = dtype == at::kDouble ? at::kDouble : at::kFloat;
    TORCH_CHECK_TYPE(alpha->scalar_type() == wanted, "sgd_step: alpha must be ", wanted,
                     " where param is ", dtype, ", got ", alpha->scalar_type());
    TORCH_CHECK_VALUE(
        (alpha->dim() == 1 ||
         (alpha->dim() == 2 && param.dim() == 2 && alpha->sym_size(0) == param.sym_size(0))) &&
            alpha->sym_size(-1) >= 1,
        "sgd_step: alpha must have shape (M) or (G, M), with G param's rows and M >= 1, got ",
        alpha->sym_sizes());
  }
  const c10::SymInt endpoints = num_endpoints(alpha);
  if (endpoints == 0) {
    detail::check_length("grad", grad, param);
  } else {
    const c10::SymInt missing = param.sym_size(-1) - grad.sym_size(-1);
    TORCH_CHECK_VALUE(
        missing > 0 && missing % (endpoints - 1) == 0 &&
            missing / (endpoints - 1) <= grad.sym_size(-1),
        "sgd_step: grad must have P - M D + D entries a row, with P = ", param.sym_size(-1),
        ", M = ", endpoints, " and a whole number D > 0, got shape ", grad.sym_sizes());
  }
  if (active) {
    TORCH_CHECK_TYPE(active->scalar_type() == at::kBool, "sgd_step: active must be bool, got ",
                     active->scalar_type());
    TORCH_CHECK_VALUE(active->sym_sizes() == param.sym_sizes().slice(0, param.dim() - 1),
                      "sgd_step: active must have one entry for each row of param, got shape ",
                      active->sym_sizes());
  }

  const auto given = [](const OptionalTensor& tensor) { return tensor ? &*tensor : nullptr; };
  const detail::Named all[] = {{"param", &param, true},
                               {"grad", &grad, options.zero_grad},
                               {"momentum_buffer", given(momentum_buffer), true},
                               {"anchor", given(anchor), false},
                               {"alpha", given(alpha), false},
                               {"active", given(active), false}};
  for (const detail::Named& one : all) {
    if (!one.tensor) continue;
    TORCH_CHECK_VALUE(one.tensor->device() == param.device(), "sgd_step: ", one.name,
                      " must be on param's device, ", param.device(), ", got ",
                      one.tensor->device());
    for (const detail::Named* other = all; other != &one; ++other) {
      TORCH_CHECK_VALUE(!other->tensor || !(one.written || other->written) ||
                            !detail::overlap(*one.tensor, *other->tensor),
                        "sgd_step: ", one.name, " must not be ", other->name,
                        ", nor share memory with it");
    }
  }
}

// ---- rows as the kernels take them -------------------------------------------------------------

// scalar_t is the kernel's own type of the elements. `alpha` and `active` are contiguous.
template <typename scalar_t>
SgdStepRows<scalar_t> sgd_step_rows(const SgdStepTensors& tensors) {
  const auto& [param, grad, momentum_buffer, anchor, alpha, active] = tensors;
  const int64_t length = param.size(-1), grad_length = grad.size(-1);
  const int64_t endpoints = num_endpoints(alpha).expect_int();
  const int64_t endpoint = endpoints ? (length - grad_length) / (endpoints - 1) : 0;
  const auto stride = [](const at::Tensor& t) { return t.dim() == 2 ? t.stride(0) : 0; };
  SgdStepRows<scalar_t> rows{};
  rows.sizes = {grad_length - endpoint, endpoint, endpoints};
  rows.num_rows = param.dim() == 2 ? param.size(0) : 1;
  rows.first.param = static_cast<scalar_t*>(param.mutable_data_ptr());
  rows.param_stride = stride(param);
  rows.first.grad = static_cast<scalar_t*>(grad.mutable_data_ptr());
  rows.grad_stride = stride(grad);
  if (momentum_buffer) {
    rows.first.momentum_buffer = static_cast<scalar_t*>(momentum_buffer->mutable_data_ptr());
    rows.momentum_stride = stride(*momentum_buffer);
  }
  if (anchor) {
    rows.first.anchor = static_cast<const scalar_t*>(anchor->const_data_ptr());
    rows.anchor_stride = stride(*anchor);
  }
  if (endpoints) {
    rows.first.alpha = alpha->const_data_ptr<accumulate_t<scalar_t>>();
    rows.alpha_stride = stride(*alpha);
  }
  if (active) rows.active = active->const_data_ptr<bool>();
  return rows;
}

// What every backend does: checks, then calls run(tensors) with contiguous alpha and active, unless
// there is nothing to do.
template <typename Run>
void run_sgd_step(const SgdStepTensors& tensors, const SgdStepOptions& options, const Run& run) {
  check_sgd_step(tensors, options);
  if (tensors.param.numel() == 0) return;
  const auto contiguous = [](const OptionalTensor& tensor) {
    return tensor ? OptionalTensor(tensor->contiguous()) : std::nullopt;
  };
  const OptionalTensor alpha = contiguous(tensors.alpha), active = contiguous(tensors.active);
  run(SgdStepTensors{tensors.param, tensors.grad, tensors.momentum_buffer, tensors.anchor, alpha,
                     active});
}

}  // namespace fedkern
