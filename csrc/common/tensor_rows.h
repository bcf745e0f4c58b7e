#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "common/row_layout.h"

namespace fedkern {

// The dimension that holds the classes: 0 of an unbatched [C], else 1, as in cross_entropy.
inline int64_t class_dim(const at::Tensor& input) { return input.dim() == 1 ? 0 : 1; }

// The rows of `input` [C], [N, C] or [N, C, d1, ...], if (d1, ...) can be walked with one stride.
inline std::optional<RowLayout> row_layout(const at::Tensor& input) {
  if (input.dim() == 1) return RowLayout{1, 0, input.stride(0), 0};
  RowLayout layout{1, input.stride(0), input.stride(1), 0};
  for (int64_t d = input.dim() - 1; d >= 2; --d) {
    if (input.size(d) == 1) continue;
    if (layout.positions == 1) {
      layout.position_stride = input.stride(d);
    } else if (input.stride(d) != layout.positions * layout.position_stride) {
      return std::nullopt;
    }
    layout.positions *= input.size(d);
  }
  if (layout.positions == 0) layout.positions = 1;  // an empty tensor: no row is ever looked up
  return layout;
}

}  // namespace fedkern
