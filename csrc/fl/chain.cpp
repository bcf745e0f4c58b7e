#include "fl/chain.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <c10/util/Exception.h>
#include <pybind11/functional.h>
#include <pybind11/stl.h>
#include <torch/csrc/Exceptions.h>

#include <algorithm>
#include <utility>

#include "fl/layers.h"

namespace fedkern {

using at::Tensor;

Chain::Chain(std::vector<std::shared_ptr<Layer>> layers) : layers_(std::move(layers)) {
  const auto first = std::find_if(layers_.begin(), layers_.end(),
                                  [](const auto& layer) { return layer->has_parameters(); });
  TORCH_CHECK_VALUE(first != layers_.end(), "Chain: wanted a layer with parameters, got none");
  first_ = first - layers_.begin();
}

Tensor Chain::forward(Tensor x) {
  const at::AutoDispatchBelowADInplaceOrView below_autograd;
  for (const auto& layer : layers_) x = layer->forward(x);
  return x;
}

void Chain::backward(Tensor gradient) {
  const at::AutoDispatchBelowADInplaceOrView below_autograd;
  for (std::size_t i = layers_.size(); i-- > first_;) {
    gradient = layers_[i]->backward(gradient, /*wanted=*/i > first_);
  }
}

void bind_chain(pybind11::module& m) {
  namespace py = pybind11;
  using Sizes = std::vector<int64_t>;
  using OptionalTensor = std::optional<Tensor>;

  py::class_<Layer, std::shared_ptr<Layer>>(m, "Layer");
  py::class_<Flatten, Layer, std::shared_ptr<Flatten>>(m, "Flatten")
      .def(py::init<int64_t, int64_t>());
  py::class_<ReLU, Layer, std::shared_ptr<ReLU>>(m, "ReLU").def(py::init<>());
  py::class_<LeakyReLU, Layer, std::shared_ptr<LeakyReLU>>(m, "LeakyReLU").def(py::init<double>());
  py::class_<MaxPool2d, Layer, std::shared_ptr<MaxPool2d>>(m, "MaxPool2d")
      .def(py::init<Sizes, Sizes, Sizes, Sizes, bool>());

  py::class_<Parameters>(m, "Parameters")
      .def(py::init<Tensor, Tensor, OptionalTensor, OptionalTensor>());
  py::enum_<Products>(m, "Products")
      .value("OURS", Products::kOurs)
      .value("TORCH", Products::kTorch)
      .value("ONEDNN", Products::kOneDnn);
  py::class_<Linear, Layer, std::shared_ptr<Linear>>(m, "Linear")
      .def(py::init<Parameters, ChooseProducts, std::optional<int64_t>>(), py::arg("parameters"),
           py::arg("choose"), py::arg("shared_outputs") = py::none())
      .def("forward", torch::wrap_pybind_function_no_gil(&Linear::forward))
      .def("backward", torch::wrap_pybind_function_no_gil(&Linear::backward));
  py::class_<Conv2d, Layer, std::shared_ptr<Conv2d>>(m, "Conv2d")
      .def(py::init<Parameters, Sizes, Sizes, Sizes, int64_t>());

  py::class_<Chain>(m, "Chain")
      .def(py::init<std::vector<std::shared_ptr<Layer>>>())
      .def("forward", torch::wrap_pybind_function_no_gil(&Chain::forward))
      .def("backward", torch::wrap_pybind_function_no_gil(&Chain::backward));
}

}  // namespace fedkern
