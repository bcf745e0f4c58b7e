#pragma once

// simplex_interpolate: the models theta(alpha) = sum_m alpha_m theta_m.
//
//   endpoints  a list of tensors [M, *shape], floating, any strides: endpoint m of each is what
//              theta_m has of it. Same M, dtype and device, shapes of their own
//   alpha      floating, [M]: a point, or [G, M]: G points; any weights, on the simplex or not
//   returns    a list of fresh contiguous tensors, [*shape] or [G, *shape], in endpoints' dtype
//
// grouped: endpoints [B, M, *shape] and alpha [B, M] or [B, G, M] are stacks of B independent
// calls; results [B, *shape] or [B, G, *shape].
//
// Sums are taken in float32 (float64 for float64 endpoints), over m = 0, 1, ..., M - 1: the bits do
// not depend on threads, launch order or the other tensors of the list. Every product counts:
// 0 * inf is nan, as in einsum. M = 0 gives 0. Endpoints may be views whose endpoints (and groups)
// lie any distance apart; where the elements of one endpoint are not contiguous they are copied.

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <string>
#include <type_traits>
#include <vector>

#include "common/switch_dtype.h"
#include "ops/simplex_interpolate_list.h"

namespace fedkern {

// The operator, called through the dispatcher.
std::vector<at::Tensor> call_simplex_interpolate(at::TensorList endpoints, const at::Tensor& alpha,
                                                 bool grouped);

// What it sends back to the endpoints for the results' gradients, d theta_m = sum_g alpha_gm
// grad_g: an interpolation of these.
std::vector<at::Tensor> simplex_endpoint_grads(at::TensorList grads, const at::Tensor& alpha,
                                               bool grouped);

// How an error calls tensor i of a list.
inline std::string list_entry(const char* list, size_t i) {
  return std::string(list) + "[" + std::to_string(i) + "]";
}

// What holds for endpoints in either operator, `op`.
inline void check_simplex_endpoints(const char* op, at::TensorList endpoints, bool grouped) {
  TORCH_CHECK_VALUE(!endpoints.empty(), op, ": endpoints must hold at least one tensor");
  const at::Tensor& first = endpoints[0];
  const auto dtype = first.scalar_type();
  TORCH_CHECK_TYPE(is_supported(dtype), op,
                   ": endpoints must be float32, float64, bfloat16 or float16, got ", dtype);
  for (size_t i = 0; i < endpoints.size(); ++i) {
    const at::Tensor& tensor = endpoints[i];
    TORCH_CHECK_TYPE(tensor.scalar_type() == dtype, op, ": ", list_entry("endpoints", i),
                     " must have endpoints[0]'s dtype, ", dtype, ", got ", tensor.scalar_type());
    TORCH_CHECK_VALUE(tensor.device() == first.device(), op, ": ", list_entry("endpoints", i),
                      " must be on endpoints[0]'s device, ", first.device(), ", got ",
                      tensor.device());
    TORCH_CHECK_VALUE(tensor.dim() > grouped, op, ": ", list_entry("endpoints", i),
                      " must have shape ", grouped ? "(B, M, ...)" : "(M, ...)", ", got ",
                      tensor.sym_sizes());
  }
}

// Every backend's first line.
inline void check_simplex_interpolate(at::TensorList endpoints, const at::Tensor& alpha,
                                      bool grouped) {
  check_simplex_endpoints("simplex_interpolate", endpoints, grouped);
  TORCH_CHECK_TYPE(alpha.is_floating_point(), "simplex_interpolate: alpha must be floating, got ",
                   alpha.scalar_type());
  TORCH_CHECK_VALUE(alpha.device() == endpoints[0].device(),
                    "simplex_interpolate: alpha must be on endpoints' device, ",
                    endpoints[0].device(), ", got ", alpha.device());
  TORCH_CHECK_VALUE(alpha.dim() == 1 + grouped || alpha.dim() == 2 + grouped,
                    "simplex_interpolate: alpha must have shape ",
                    grouped ? "(B, M) or (B, G, M)" : "(M) or (G, M)", ", got ", alpha.sym_sizes());
  for (size_t i = 0; i < endpoints.size(); ++i) {
    const at::Tensor& tensor = endpoints[i];
    TORCH_CHECK_VALUE(tensor.sym_size(grouped) == alpha.sym_size(-1),
                      "simplex_interpolate: ", list_entry("endpoints", i),
                      " must hold as many endpoints as alpha weights, ", alpha.sym_size(-1),
                      ", got shape ", tensor.sym_sizes());
    TORCH_CHECK_VALUE(!grouped || tensor.sym_size(0) == alpha.sym_size(0),
                      "simplex_interpolate: ", list_entry("endpoints", i),
                      " must have as many groups as alpha, ", alpha.sym_size(0), ", got shape ",
                      tensor.sym_sizes());
  }
}

// The results, nothing written to them yet.
inline std::vector<at::Tensor> empty_simplex_points(at::TensorList endpoints,
                                                    const at::Tensor& alpha, bool grouped) {
  std::vector<at::Tensor> results;
  results.reserve(endpoints.size());
  for (const at::Tensor& tensor : endpoints) {
    auto shape = c10::SymDimVector(alpha.sym_sizes().slice(0, alpha.dim() - 1));
    for (const auto& size : tensor.sym_sizes().slice(1 + grouped)) shape.push_back(size);
    results.push_back(at::empty_symint(shape, tensor.options()));
  }
  return results;
}

// ---- the list as the kernels take it -----------------------------------------------------------

// B, G and M of a call.
struct SimplexSizes {
  int64_t groups, points, endpoints;
};

inline SimplexSizes simplex_sizes(const at::Tensor& alpha, bool grouped) {
  return {grouped ? alpha.size(0) : 1, alpha.dim() == 2 + grouped ? alpha.size(-2) : 1,
          alpha.size(-1)};
}

// The same tensors, copied where the dimensions behind the first `leading` are not contiguous.
inline std::vector<at::Tensor> with_adjacent_elements(at::TensorList tensors, int64_t leading) {
  const auto adjacent = [&](const at::Tensor& tensor) {
    int64_t stride = 1;
    for (int64_t d = tensor.dim() - 1; d >= leading; --d) {
      if (tensor.size(d) != 1 && tensor.stride(d) != stride) return false;
      stride *= tensor.size(d);
    }
    return true;
  };
  std::vector<at::Tensor> result;
  result.reserve(tensors.size());
  for (const at::Tensor& tensor : tensors) {
    result.push_back(adjacent(tensor) ? tensor : tensor.contiguous());
  }
  return result;
}

// Endpoints and points of the same list with adjacent elements, both on the same side of dispatch.
// tasks_of(N) is how many tasks the kernel makes of a tensor. scalar_t is the kernel's own type of
// the elements, point_t that type or, where points are only read, const of it.
template <typename scalar_t, typename point_t, typename TasksOf>
std::vector<SimplexTensor<scalar_t, point_t>> simplex_list(at::TensorList endpoints,
                                                           at::TensorList points, bool grouped,
                                                           const TasksOf& tasks_of) {
  std::vector<SimplexTensor<scalar_t, point_t>> list;
  int64_t last_task = 0;
  for (size_t i = 0; i < endpoints.size(); ++i) {
    const at::Tensor &from = endpoints[i], &to = points[i];
    const bool several_points = to.dim() == from.dim();
    const int64_t size = c10::multiply_integers(from.sizes().slice(1 + grouped));
    if (size == 0) continue;
    SimplexTensor<scalar_t, point_t> tensor{};
    tensor.endpoints = {static_cast<const scalar_t*>(from.const_data_ptr()),
                        grouped ? from.stride(0) : 0, from.stride(grouped)};
    if constexpr (std::is_const_v<point_t>) {
      tensor.points.data = static_cast<point_t*>(to.const_data_ptr());
    } else {
      tensor.points.data = static_cast<point_t*>(to.mutable_data_ptr());
    }
    tensor.points.group_stride = grouped ? to.stride(0) : 0;
    tensor.points.row_stride = several_points ? to.stride(grouped) : 0;
    tensor.size = size;
    tensor.last_task = last_task += tasks_of(size);
    list.push_back(tensor);
  }
  return list;
}

// What every backend does: checks, then calls run(endpoints, results) with tensors that have
// adjacent elements, unless there is nothing to interpolate.
template <typename Run>
std::vector<at::Tensor> run_simplex_interpolate(at::TensorList endpoints, const at::Tensor& alpha,
                                                bool grouped, const Run& run) {
  check_simplex_interpolate(endpoints, alpha, grouped);
  std::vector<at::Tensor> results = empty_simplex_points(endpoints, alpha, grouped);
  const bool empty = std::all_of(results.begin(), results.end(),
                                 [](const at::Tensor& result) { return result.numel() == 0; });
  if (!empty) run(with_adjacent_elements(endpoints, 1 + grouped), results);
  return results;
}

}  // namespace fedkern
