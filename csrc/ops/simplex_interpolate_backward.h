#pragma once

// simplex_interpolate_backward: what simplex_interpolate sends back to alpha,
// d alpha_gm = <grad_g, theta_m>, summed over all tensors of the list. (What it sends back to the
// endpoints, d theta_m = sum_g alpha_gm grad_g, is an interpolation of the upstream gradients:
// simplex_interpolate computes that, too.)
//
//   grads      a list of upstream gradients, [*shape] each, or [G, *shape]; any strides
//   endpoints  as for simplex_interpolate, of grads' dtype and device
//   dtype      the result's, floating: alpha's
//   returns    [M], or [G, M]
//
// grouped: grads [B, *shape] or [B, G, *shape] and endpoints [B, M, *shape] are stacks of B
// independent calls; returns [B, M] or [B, G, M].
//
// Products are summed in float64, in an order that depends on shapes alone, and rounded once: the
// same bits for any number of threads and any launch. Every product counts: 0 * inf is nan. Sums of
// nothing are 0. Gradients and endpoints whose elements are not contiguous are copied.

#include <ATen/ops/zeros.h>

#include "ops/simplex_interpolate.h"

namespace fedkern {

// The operator, called through the dispatcher.
at::Tensor call_simplex_interpolate_backward(at::TensorList grads, at::TensorList endpoints,
                                             bool grouped, at::ScalarType dtype);

// Whether grads has G gradients a group; else it has one.
inline bool several_points(at::TensorList grads, at::TensorList endpoints) {
  return grads[0].dim() == endpoints[0].dim();
}

// Every backend's first line.
inline void check_simplex_interpolate_backward(at::TensorList grads, at::TensorList endpoints,
                                               bool grouped, at::ScalarType dtype) {
  constexpr const char* kOp = "simplex_interpolate_backward";
  check_simplex_endpoints(kOp, endpoints, grouped);
  TORCH_CHECK_TYPE(at::isFloatingType(dtype), kOp, ": dtype must be floating, got ", dtype);
  TORCH_CHECK_VALUE(grads.size() == endpoints.size(), kOp,
                    ": grads must hold a tensor for each of endpoints, ", endpoints.size(),
                    ", got ", grads.size());
  const at::Tensor& first = endpoints[0];
  const bool several = several_points(grads, endpoints);
  for (size_t i = 0; i < grads.size(); ++i) {
    const at::Tensor &grad = grads[i], &tensor = endpoints[i];
    TORCH_CHECK_TYPE(grad.scalar_type() == first.scalar_type(), kOp, ": ", list_entry("grads", i),
                     " must have endpoints' dtype, ", first.scalar_type(), ", got ",
                     grad.scalar_type());
    TORCH_CHECK_VALUE(grad.device() == first.device(), kOp, ": ", list_entry("grads", i),
                      " must be on endpoints' device, ", first.device(), ", got ", grad.device());
    const int64_t leading = grouped + several;
    const bool fits = grad.dim() == tensor.dim() - 1 + several &&
                      grad.sym_sizes().slice(leading) == tensor.sym_sizes().slice(1 + grouped) &&
                      grad.sym_sizes().slice(0, leading) == grads[0].sym_sizes().slice(0, leading);
    TORCH_CHECK_VALUE(fits, kOp, ": ", list_entry("grads", i), " must have shape ",
                      grouped ? "(B, ...) or (B, G, ...)" : "(...) or (G, ...)",
                      " for endpoints of shape ", tensor.sym_sizes(), ", got ", grad.sym_sizes());
    TORCH_CHECK_VALUE(
        tensor.sym_sizes().slice(0, 1 + grouped) == first.sym_sizes().slice(0, 1 + grouped) &&
            (!grouped || grad.sym_size(0) == tensor.sym_size(0)),
        kOp, ": ", list_entry("endpoints", i),
        " must have the groups of grads and the number of endpoints of endpoints[0], ",
        first.sym_sizes(), ", got shape ", tensor.sym_sizes());
  }
}

// The result's shape.
inline c10::SymDimVector simplex_alpha_shape(at::TensorList grads, at::TensorList endpoints,
                                             bool grouped) {
  const int64_t leading = grouped + several_points(grads, endpoints);
  auto shape = c10::SymDimVector(grads[0].sym_sizes().slice(0, leading));
  shape.push_back(endpoints[0].sym_size(grouped));
  return shape;
}

// What every backend does: checks, then calls multiply(grads, endpoints, result) with tensors that
// have adjacent elements, to fill result, float64 [B, G, M], with the inner products, unless there
// is nothing to multiply.
template <typename Multiply>
at::Tensor run_simplex_interpolate_backward(at::TensorList grads, at::TensorList endpoints,
                                            bool grouped, at::ScalarType dtype,
                                            const Multiply& multiply) {
  check_simplex_interpolate_backward(grads, endpoints, grouped, dtype);
  const at::Tensor& grad = grads[0];
  const bool several = several_points(grads, endpoints);
  const int64_t groups = grouped ? grad.size(0) : 1, points = several ? grad.size(grouped) : 1;
  const int64_t num_endpoints = endpoints[0].size(grouped);
  const auto options = grad.options().dtype(at::kDouble);
  const bool empty = std::all_of(grads.begin(), grads.end(),
                                 [](const at::Tensor& tensor) { return tensor.numel() == 0; });
  at::Tensor result;
  if (empty || num_endpoints == 0) {
    result = at::zeros({groups, points, num_endpoints}, options);
  } else {
    result = at::empty({groups, points, num_endpoints}, options);
    multiply(with_adjacent_elements(grads, grouped + several),
             with_adjacent_elements(endpoints, 1 + grouped), result);
  }
  at::DimVector shape(grad.sizes().slice(0, grouped + several));
  shape.push_back(num_endpoints);
  return result.view(shape).to(dtype);
}

}  // namespace fedkern
