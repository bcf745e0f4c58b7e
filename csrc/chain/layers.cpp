#include "chain/layers.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/convolution.h>
#include <ATen/ops/convolution_backward.h>
#include <ATen/ops/leaky_relu.h>
#include <ATen/ops/leaky_relu_backward.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/max_pool2d_with_indices.h>
#include <ATen/ops/max_pool2d_with_indices_backward.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/relu.h>
#include <ATen/ops/sum.h>
#include <ATen/ops/threshold_backward.h>

#include <array>
#include <utility>

namespace fedkern {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

Tensor Flatten::forward(const Tensor& x) {
  shape_ = x.sizes().vec();
  return x.flatten(start_dim_, end_dim_);
}

Tensor Flatten::backward(const Tensor& gradient, bool) { return gradient.reshape(shape_); }

Tensor ReLU::forward(const Tensor& x) { return output_ = at::relu(x); }

Tensor ReLU::backward(const Tensor& gradient, bool) {
  return at::threshold_backward(gradient, output_, 0);
}

Tensor LeakyReLU::forward(const Tensor& x) {
  input_ = x;
  return at::leaky_relu(x, slope_);
}

Tensor LeakyReLU::backward(const Tensor& gradient, bool) {
  return at::leaky_relu_backward(gradient, input_, slope_, /*self_is_result=*/false);
}

// ---- pooling -----------------------------------------------------------------------------------

MaxPool2d::MaxPool2d(std::vector<int64_t> kernel_size, std::vector<int64_t> stride,
                     std::vector<int64_t> padding, std::vector<int64_t> dilation, bool ceil_mode)
    : kernel_size_(std::move(kernel_size)),
      stride_(std::move(stride)),
      padding_(std::move(padding)),
      dilation_(std::move(dilation)),
      ceil_mode_(ceil_mode) {}

Tensor MaxPool2d::forward(const Tensor& x) {
  input_ = x;
  auto [output, indices] =
      at::max_pool2d_with_indices(x, kernel_size_, stride_, padding_, dilation_, ceil_mode_);
  indices_ = std::move(indices);
  return output;
}

Tensor MaxPool2d::backward(const Tensor& gradient, bool) {
  return at::max_pool2d_with_indices_backward(gradient, input_, kernel_size_, stride_, padding_,
                                              dilation_, ceil_mode_, indices_);
}

// ---- linear ------------------------------------------------------------------------------------

namespace {

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

}  // namespace

Linear::Linear(Parameters parameters, ChooseOneDnn choose)
    : parameters_(std::move(parameters)), choose_(std::move(choose)) {}

Tensor Linear::product(const Tensor& x, const Tensor& weight, const OptionalTensor& bias) const {
  return onednn_ ? onednn_linear(x, weight, bias) : at::linear(x, weight, bias);
}

Tensor Linear::forward(const Tensor& x) {
  const bool is_matrix = x.dim() == 2;
  input_ = is_matrix ? x : x.reshape({-1, x.size(-1)});
  if (x.sizes() != shape_) {
    shape_ = x.sizes().vec();
    onednn_ = choose_(input_, parameters_.weight);
  }
  Tensor output = product(input_, parameters_.weight, parameters_.bias);
  if (is_matrix) return output;
  auto shape = shape_;
  shape.back() = output.size(1);
  return output.view(shape);
}

Tensor Linear::backward(const Tensor& gradient, bool wanted) {
  const Tensor rows = gradient.dim() == 2 ? gradient : gradient.reshape({-1, gradient.size(-1)});
  if (onednn_) {
    parameters_.weight_gradient.copy_(product(rows.t(), input_.t(), {}));
  } else {
    at::mm_out(parameters_.weight_gradient, rows.t(), input_);
  }
  if (parameters_.bias_gradient) at::sum_out(*parameters_.bias_gradient, rows, {0});
  return wanted ? product(rows, parameters_.weight.t(), {}).view(shape_) : Tensor();
}

// ---- convolution -------------------------------------------------------------------------------

Conv2d::Conv2d(Parameters parameters, std::vector<int64_t> stride, std::vector<int64_t> padding,
               std::vector<int64_t> dilation, int64_t groups)
    : parameters_(std::move(parameters)),
      stride_(std::move(stride)),
      padding_(std::move(padding)),
      dilation_(std::move(dilation)),
      groups_(groups) {}

Tensor Conv2d::forward(const Tensor& x) {
  input_ = x;
  return at::convolution(x, parameters_.weight, parameters_.bias, stride_, padding_, dilation_,
                         /*transposed=*/false, /*output_padding=*/{0, 0}, groups_);
}

Tensor Conv2d::backward(const Tensor& gradient, bool wanted) {
  const bool has_bias = parameters_.bias_gradient.has_value();
  const std::array<int64_t, 1> bias_size{parameters_.weight.size(0)};
  const auto [of_input, of_weight, of_bias] = at::convolution_backward(
      gradient, input_, parameters_.weight,
      has_bias ? at::OptionalIntArrayRef(bias_size) : at::OptionalIntArrayRef(), stride_, padding_,
      dilation_, /*transposed=*/false, /*output_padding=*/{0, 0}, groups_,
      /*output_mask=*/{wanted, true, has_bias});
  parameters_.weight_gradient.copy_(of_weight);
  if (has_bias) parameters_.bias_gradient->copy_(of_bias);
  return of_input;
}

}  // namespace fedkern
