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

// results[first + i] for the arguments i of a list that are wanted: one call of
// compute(at::TensorList), which returns a result for each.
template <typename Wanted, typename Compute>
void compute_wanted(torch::autograd::variable_list& results, size_t first, at::TensorList arguments,
                    const Wanted& wanted, const Compute& compute) {
  std::vector<size_t> places;
  std::vector<at::Tensor> chosen;
  for (size_t i = 0; i < arguments.size(); ++i) {
    if (!wanted(i)) continue;
    places.push_back(first + i);
    chosen.push_back(arguments[i]);
  }
  if (places.empty()) return;
  std::vector<at::Tensor> computed = compute(chosen);
  for (size_t k = 0; k < places.size(); ++k) results[places[k]] = std::move(computed[k]);
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
