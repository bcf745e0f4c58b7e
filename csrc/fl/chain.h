#pragma once

// A model that is a chain of layers, run forward and backward without autograd: what a layer needs
// it remembers, and gradients go straight to where they belong. All arithmetic is in the functions
// that torch's layers and autograd call, but for linear layers' products (linear_kernel.h).
//
// A pass is one call from Python: the products of a small network leave little else in the caches,
// so that the interpreter between them takes longer than its instructions say.

#include <ATen/core/Tensor.h>
#include <torch/csrc/utils/pybind.h>

#include <cstddef>
#include <memory>
#include <vector>

namespace fedkern {

class Layer {
 public:
  virtual ~Layer() = default;

  // The output.
  virtual at::Tensor forward(const at::Tensor& x) = 0;

  // Writes the parameters' gradients, over what was there; returns the input's, undefined unless it
  // is wanted. `gradient` is that of the latest output.
  virtual at::Tensor backward(const at::Tensor& gradient, bool wanted) = 0;

  virtual bool has_parameters() const { return false; }
};

class Chain {
 public:
  explicit Chain(std::vector<std::shared_ptr<Layer>> layers);

  // The logits.
  at::Tensor forward(at::Tensor x);

  // Writes the gradients of all parameters, over what was there, from that of the logits.
  void backward(at::Tensor gradient);

 private:
  std::vector<std::shared_ptr<Layer>> layers_;
  // The first layer with parameters: gradients of what lies below are wanted by no one.
  std::size_t first_;
};

// Adds Chain and the layers to the Python module.
void bind_chain(pybind11::module& m);

}  // namespace fedkern
