#pragma once

// What hand-written autograd nodes share.

#include <torch/csrc/autograd/function.h>

#include <memory>
#include <type_traits>
#include <utility>

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

}  // namespace fedkern
