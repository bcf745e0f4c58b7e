#pragma once

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "common/vmap.h"

namespace fedkern {

// A call of simplex_interpolate or simplex_interpolate_backward under vmap as one call. If no
// endpoints are mapped, the stack's points are more points of the same endpoints; else its calls
// are more groups.
//
// of_points: the arguments that have points, [B, G, ...] if several_points, else [B, ...].
class SimplexVmap {
 public:
  SimplexVmap(at::TensorList endpoints, at::TensorList of_points, bool grouped, bool several_points)
      : vmap_(all(endpoints, of_points)), grouped_(grouped), several_points_(several_points) {
    endpoints_mapped_ = std::any_of(endpoints.begin(), endpoints.end(),
                                    [&](const at::Tensor& t) { return vmap_.maps(t); });
    if (grouped) groups_ = endpoints[0].sym_size(0);
    if (several_points) points_ = of_points[0].sym_size(grouped);
  }

  bool maps() const { return vmap_.maps(); }

  // ---- the arguments of the one call

  bool grouped() const { return grouped_ || endpoints_mapped_; }

  std::vector<at::Tensor> endpoints(at::TensorList endpoints) const {
    if (!endpoints_mapped_) return endpoints.vec();
    return each(endpoints, [&](const at::Tensor& t) { return more_groups(t); });
  }

  at::Tensor points(const at::Tensor& argument) const {
    if (endpoints_mapped_) return more_groups(argument);
    const at::Tensor stack = vmap_.stacked(argument).movedim(0, grouped_);
    return several_points_ ? stack.flatten(grouped_, grouped_ + 1) : stack;
  }

  std::vector<at::Tensor> points(at::TensorList arguments) const {
    return each(arguments, [&](const at::Tensor& t) { return points(t); });
  }

  // ---- its result

  at::Tensor mapped(const at::Tensor& result) const {
    if (endpoints_mapped_) {
      return vmap_.mapped(grouped_ ? result.unflatten_symint(0, {vmap_.size(), groups_}) : result,
                          0);
    }
    return vmap_.mapped(
        several_points_ ? result.unflatten_symint(grouped_, {vmap_.size(), points_}) : result,
        grouped_);
  }

  std::vector<at::Tensor> mapped(at::TensorList results) const {
    return each(results, [&](const at::Tensor& t) { return mapped(t); });
  }

 private:
  static std::vector<std::optional<at::Tensor>> all(at::TensorList a, at::TensorList b) {
    std::vector<std::optional<at::Tensor>> both(a.begin(), a.end());
    both.insert(both.end(), b.begin(), b.end());
    return both;
  }

  template <typename Change>
  static std::vector<at::Tensor> each(at::TensorList list, const Change& change) {
    std::vector<at::Tensor> changed;
    changed.reserve(list.size());
    for (const at::Tensor& tensor : list) changed.push_back(change(tensor));
    return changed;
  }

  at::Tensor more_groups(const at::Tensor& argument) const {
    const at::Tensor stack = vmap_.stacked(argument);
    return grouped_ ? stack.flatten(0, 1) : stack;
  }

  VmapLevel vmap_;
  bool grouped_, several_points_, endpoints_mapped_;
  c10::SymInt groups_ = 1, points_ = 1;
};

}  // namespace fedkern
