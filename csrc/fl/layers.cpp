#include "fl/layers.h"

#include <ATen/ops/convolution.h>
#include <ATen/ops/convolution_backward.h>
#include <ATen/ops/leaky_relu.h>
#include <ATen/ops/leaky_relu_backward.h>
#include <ATen/ops/max_pool2d_with_indices.h>
#include <ATen/ops/max_pool2d_with_indices_backward.h>
#include <ATen/ops/relu.h>
#include <ATen/ops/threshold_backward.h>

#include <array>
#include <utility>

namespace fedkern {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

Tensor Flatten::forward(const Tensor& x) {
  shape_ = x.sizes();
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
