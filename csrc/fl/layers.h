#pragma once

// The layers that chains are made of.

#include <ATen/core/DimVector.h>
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <optional>
#include <unordered_map>
#include <vector>

#include "fl/chain.h"

namespace fedkern {

// Weight and bias, and where their gradients are written to.
struct Parameters {
  at::Tensor weight, weight_gradient;
  std::optional<at::Tensor> bias, bias_gradient;
};

// Who computes a linear layer's products: our kernels (float and double on the CPU, a contiguous
// weight), torch or, for float on the CPU, oneDNN if torch has it.
enum class Products { kOurs, kTorch, kOneDnn };

// Chooses for an input [n, in] and a weight [out, in].
using ChooseProducts = std::function<Products(const at::Tensor& input, const at::Tensor& weight)>;

class Flatten : public Layer {
 public:
  Flatten(int64_t start_dim, int64_t end_dim) : start_dim_(start_dim), end_dim_(end_dim) {}
  at::Tensor forward(const at::Tensor& x) override;
  at::Tensor backward(const at::Tensor& gradient, bool wanted) override;

 private:
  int64_t start_dim_, end_dim_;
  at::DimVector shape_;
};

class ReLU : public Layer {
 public:
  at::Tensor forward(const at::Tensor& x) override;
  at::Tensor backward(const at::Tensor& gradient, bool wanted) override;

 private:
  at::Tensor output_;
};

class LeakyReLU : public Layer {
 public:
  explicit LeakyReLU(double slope) : slope_(slope) {}
  at::Tensor forward(const at::Tensor& x) override;
  at::Tensor backward(const at::Tensor& gradient, bool wanted) override;

 private:
  double slope_;
  at::Tensor input_;
};

class MaxPool2d : public Layer {
 public:
  MaxPool2d(std::vector<int64_t> kernel_size, std::vector<int64_t> stride,
            std::vector<int64_t> padding, std::vector<int64_t> dilation, bool ceil_mode);
  at::Tensor forward(const at::Tensor& x) override;
  at::Tensor backward(const at::Tensor& gradient, bool wanted) override;

 private:
  std::vector<int64_t> kernel_size_, stride_, padding_, dilation_;
  bool ceil_mode_;
  at::Tensor input_, indices_;
};

class Linear : public Layer {
 public:
  // The input's gradient is that by the first `shared_outputs` outputs; all of them if not given.
  Linear(Parameters parameters, ChooseProducts choose, std::optional<int64_t> shared_outputs);
  at::Tensor forward(const at::Tensor& x) override;
  at::Tensor backward(const at::Tensor& gradient, bool wanted) override;
  bool has_parameters() const override { return true; }

 private:
  Parameters parameters_;
  ChooseProducts choose_;
  int64_t shared_outputs_;
  std::unordered_map<int64_t, Products> chosen_;  // by the number of the input's rows
  // Of the latest pass:
  Products products_ = Products::kTorch;
  at::DimVector shape_;  // of the input
  at::Tensor input_;     // as a matrix
};

class Conv2d : public Layer {
 public:
  Conv2d(Parameters parameters, std::vector<int64_t> stride, std::vector<int64_t> padding,
         std::vector<int64_t> dilation, int64_t groups);
  at::Tensor forward(const at::Tensor& x) override;
  at::Tensor backward(const at::Tensor& gradient, bool wanted) override;
  bool has_parameters() const override { return true; }

 private:
  Parameters parameters_;
  std::vector<int64_t> stride_, padding_, dilation_;
  int64_t groups_;
  at::Tensor input_;
};

}  // namespace fedkern
