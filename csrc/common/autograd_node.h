#pragma once

// What hand-written autograd nodes share.

#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/saved_variable.h>

#include <memory>
#include <type_traits>
#include <utility>
#include <vector>

namespace fedkern {

// Edge::function is a std::shared_ptr in older torch, a c10::intrusive_ptr in newer.
template <class Node, class... Args>
auto make_node(Args&&... args) {
  using torch::autograd::Edge;
  if constexpr (std::is_same_v<decltype(Edge::function), std::shared_ptr<torch::autograd::Node>>) {
    return std::make_shared<Node>(std::forward<Args>(args)...);
  } else {
    return c10::make_intrusive<Node>(std::forward<Args>(args)...);
  }
}

// A list of arguments that a node keeps, none of them its output.
class SavedList {
 public:
  SavedList() = default;
  explicit SavedList(at::TensorList tensors) {
    for (const at::Tensor& tensor : tensors) saved_.emplace_back(tensor, /*is_output=*/false);
  }

  std::vector<at::Tensor> unpack() const {
    std::vector<at::Tensor> tensors;
    for (const auto& saved : saved_) tensors.push_back(saved.unpack());
    return tensors;
  }

  void release() {
    for (auto& saved : saved_) saved.reset_data();
  }

 private:
  std::vector<torch::autograd::SavedVariable> saved_;
};

}  // namespace fedkern
