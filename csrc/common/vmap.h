#pragma once

// What the rules for torch.vmap share. A rule turns the mapped dimension into groups of the same
// operator (ops/calibrated_ce.h), so that a stack of calls is one call. Nested vmaps make more
// groups.

#include <ATen/core/Tensor.h>
#include <ATen/functorch/BatchedTensorImpl.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

#include <initializer_list>
#include <optional>
#include <utility>

namespace fedkern {

// The innermost vmap that maps any of an operator's arguments; while this lives, that vmap is set
// aside.
class VmapLevel {
 public:
  explicit VmapLevel(at::ArrayRef<std::optional<at::Tensor>> arguments)
      : without_vmap_(c10::DispatchKey::FuncTorchBatched) {
    for (const auto& argument : arguments) {
      const auto* batched = argument ? at::functorch::maybeGetBatchedImpl(*argument) : nullptr;
      if (!batched || batched->level() <= level_) continue;
      level_ = batched->level();
      size_ = batched->value().sym_size(batched->bdim());
    }
  }

  // Whether any argument is mapped. If none is, the operator is to be called as it was.
  bool maps() const { return level_ >= 0; }
  bool maps(const at::Tensor& argument) const { return unwrapped(argument).second >= 0; }

  // How many calls are stacked.
  const c10::SymInt& size() const { return size_; }

  // What is behind an argument, and its mapped dimension (-1: none).
  std::pair<at::Tensor, int64_t> unwrapped(const at::Tensor& argument) const {
    const auto* batched = at::functorch::maybeGetBatchedImpl(argument);
    if (!batched || batched->level() != level_) return {argument, -1};
    return {batched->value(), batched->bdim()};
  }

  // The mapped dimension in front, made up (without a copy) if the argument has none.
  at::Tensor stacked(const at::Tensor& argument) const {
    const auto [value, dim] = unwrapped(argument);
    if (dim >= 0) return value.movedim(dim, 0);
    c10::SymDimVector shape(value.sym_sizes().begin(), value.sym_sizes().end());
    shape.insert(shape.begin(), size_);
    return value.expand_symint(shape);
  }

  // A result that is mapped along `dim`.
  at::Tensor mapped(const at::Tensor& result, int64_t dim) const {
    return at::functorch::makeBatched(result, dim, level_);
  }

 private:
  c10::impl::ExcludeDispatchKeyGuard without_vmap_;
  int64_t level_ = -1;
  c10::SymInt size_ = 0;
};

// An operator's call under that vmap. `grouped` tells whether the call has groups already; the
// first argument is one that then has them.
class VmapCall {
 public:
  VmapCall(bool grouped, std::initializer_list<std::optional<at::Tensor>> arguments)
      : vmap_(arguments), grouped_(grouped) {
    if (grouped) groups_ = (*arguments.begin())->sym_size(0);
  }

  bool maps() const { return vmap_.maps(); }

  // An argument that has groups in front, or is to have them.
  at::Tensor grouped(const at::Tensor& argument) const {
    const at::Tensor stack = vmap_.stacked(argument);
    return grouped_ ? stack.flatten(0, 1) : stack;
  }

  // One entry per class, [C], for all groups, or [groups, C].
  std::optional<at::Tensor> class_vector(const std::optional<at::Tensor>& argument) const {
    if (!argument) return std::nullopt;
    const auto [value, dim] = vmap_.unwrapped(*argument);
    if (dim < 0 && value.dim() == 1) return value;
    at::Tensor stack = vmap_.stacked(*argument);
    if (!grouped_) return stack;
    if (argument->dim() == 1) {
      stack = stack.unsqueeze(1).expand_symint({vmap_.size(), groups_, stack.sym_size(1)});
    }
    return stack.flatten(0, 1);
  }

  // A result, which has groups in front.
  at::Tensor mapped(const at::Tensor& result) const {
    return vmap_.mapped(grouped_ ? result.unflatten_symint(0, {vmap_.size(), groups_}) : result, 0);
  }

 private:
  VmapLevel vmap_;
  bool grouped_;
  c10::SymInt groups_ = 1;
};

}  // namespace fedkern
