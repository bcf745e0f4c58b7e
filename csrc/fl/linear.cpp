#include <ATen/Parallel.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/sum.h>

#include <algorithm>
#include <tuple>
#include <utility>

#include "common/ceil_div.h"
#include "common/switch_dtype.h"
#include "fl/layers.h"
#include "fl/linear_kernel.h"

namespace fedkern {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

namespace {

// ---- our kernels -------------------------------------------------------------------------------

constexpr int64_t kThreadProducts = 1 << 19;  // a thread's least, in multiply-adds

// run(share) for shares of all columns of C [rows, columns], in multiples of `step`.
template <typename Run>
void share_out(int64_t rows, int64_t columns, int64_t depth, int64_t step, const Run& run) {
  const int64_t grain = ceil_div(kThreadProducts, std::max<int64_t>(1, rows * depth * step));
  at::parallel_for(0, ceil_div(columns, step), grain, [&](int64_t first, int64_t last) {
    run(ProductSizes{rows, columns, depth, first * step, std::min(last * step, columns)});
  });
}

Tensor our_output(const Tensor& x, const Tensor& weight, const OptionalTensor& bias) {
  TORCH_CHECK(x.size(1) == weight.size(1), "linear: wanted inputs of ", weight.size(1),
              " features, got ", x.size(1));
  const Tensor output = x.new_empty({x.size(0), weight.size(0)});
  switch_float_or_double(x.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    const auto& kernels = std::get<LinearKernels<T>>(linear_kernels());
    const T* const from = x.const_data_ptr<T>();
    const T* const w = weight.const_data_ptr<T>();
    const T* const b = bias ? bias->const_data_ptr<T>() : nullptr;
    T* const to = output.mutable_data_ptr<T>();
    share_out(x.size(0), weight.size(0), x.size(1), kernels.dot_columns,
              [&](const ProductSizes& share) { kernels.dot_rows(share, from, w, b, to); });
  });
  return output;
}

// to[i, :] = sum_p a[i a_row + p a_step] b[p, :]
template <typename T>
void combine(const T* a, int64_t a_row, int64_t a_step, const Tensor& b, const Tensor& to) {
  const auto& kernels = std::get<LinearKernels<T>>(linear_kernels());
  const T* const from = b.const_data_ptr<T>();
  T* const result = to.mutable_data_ptr<T>();
  const int64_t rows = to.dim() == 1 ? 1 : to.size(0);
  share_out(rows, b.size(1), b.size(0), kernels.combine_columns, [&](const ProductSizes& share) {
    kernels.combine_rows(share, a, a_row, a_step, from, result);
  });
}

// a @ b; a may have any strides.
void our_product(const Tensor& a, const Tensor& b, const Tensor& to) {
  switch_float_or_double(b.scalar_type(), [&](auto zero) {
    combine(a.const_data_ptr<decltype(zero)>(), a.stride(0), a.stride(1), b, to);
  });
}

void our_sum_of_rows(const Tensor& rows, const Tensor& to) {
  switch_float_or_double(rows.scalar_type(), [&](auto zero) {
    const decltype(zero) one(1);
    combine(&one, 0, 0, rows, to);
  });
}

// ---- oneDNN's ----------------------------------------------------------------------------------

// torch._C._has_mkldnn says whether there is one.
Tensor onednn_linear(const Tensor& x, const Tensor& weight, const OptionalTensor& bias) {
  using Scalars = c10::List<std::optional<at::Scalar>>;
  static const auto op =
      c10::Dispatcher::singleton()
          .findSchemaOrThrow("mkldnn::_linear_pointwise", "")
          .typed<Tensor(const Tensor&, const Tensor&, const OptionalTensor&, c10::string_view,
                        Scalars, std::optional<c10::string_view>)>();
  return op.call(x, weight, bias, "none", Scalars(), "");
}

// ---- all three ---------------------------------------------------------------------------------

Tensor output_of(Products products, const Tensor& x, const Tensor& weight,
                 const OptionalTensor& bias) {
  switch (products) {
    case Products::kOurs:
      return our_output(x, weight, bias);
    case Products::kOneDnn:
      return onednn_linear(x, weight, bias);
    default:
      return at::linear(x, weight, bias);
  }
}

void write_parameter_gradients(Products products, const Tensor& gradient, const Tensor& x,
                               Parameters& parameters) {
  switch (products) {
    case Products::kOurs:
      our_product(gradient.t(), x, parameters.weight_gradient);
      if (parameters.bias_gradient) our_sum_of_rows(gradient, *parameters.bias_gradient);
      return;
    case Products::kOneDnn:
      parameters.weight_gradient.copy_(onednn_linear(gradient.t(), x.t(), {}));
      break;
    default:
      at::mm_out(parameters.weight_gradient, gradient.t(), x);
  }
  if (parameters.bias_gradient) at::sum_out(*parameters.bias_gradient, gradient, {0});
}

Tensor input_gradient_of(Products products, const Tensor& gradient, const Tensor& weight) {
  if (products != Products::kOurs) return output_of(products, gradient, weight.t(), {});
  const Tensor result = gradient.new_empty({gradient.size(0), weight.size(1)});
  our_product(gradient, weight, result);
  return result;
}

}  // namespace

Linear::Linear(Parameters parameters, ChooseProducts choose, std::optional<int64_t> shared_outputs)
    : parameters_(std::move(parameters)),
      choose_(std::move(choose)),
      shared_outputs_(shared_outputs.value_or(parameters_.weight.size(0))) {}

Tensor Linear::forward(const Tensor& x) {
  const bool is_matrix = x.dim() == 2;
  input_ = is_matrix ? x : x.reshape({-1, x.size(-1)});
  shape_ = x.sizes();
  auto chosen = chosen_.find(input_.size(0));
  if (chosen == chosen_.end()) {
    chosen = chosen_.emplace(input_.size(0), choose_(input_, parameters_.weight)).first;
  }
  products_ = chosen->second;
  if (products_ == Products::kOurs) input_ = input_.contiguous();
  Tensor output = output_of(products_, input_, parameters_.weight, parameters_.bias);
  if (is_matrix) return output;
  at::DimVector shape = shape_;
  shape.back() = output.size(1);
  return output.view(shape);
}

Tensor Linear::backward(const Tensor& gradient, bool wanted) {
  Tensor rows = gradient.dim() == 2 ? gradient : gradient.reshape({-1, gradient.size(-1)});
  TORCH_CHECK(rows.size(0) == input_.size(0) && rows.size(1) == parameters_.weight.size(0),
              "linear: wanted a gradient of shape [", input_.size(0), ", ",
              parameters_.weight.size(0), "], got ", rows.sizes());
  if (products_ == Products::kOurs) rows = rows.contiguous();
  write_parameter_gradients(products_, rows, input_, parameters_);
  if (!wanted) return {};
  return input_gradient_of(products_, rows.narrow(1, 0, shared_outputs_),
                           parameters_.weight.narrow(0, 0, shared_outputs_))
      .view(shape_);
}

}  // namespace fedkern
