#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "common/row_layout.h"

namespace fedkern {

// The dimension that holds the classes. An ungrouped tensor is [C], [N, C] or [N, C, d1, ...], as
// in cross_entropy; a grouped one is a stack of those, with the groups in front.
inline int64_t class_dim(const at::Tensor& input, bool grouped) {
  return (input.dim() > 1 + grouped ? 1 : 0) + grouped;
}

namespace detail {

// The layout of a tensor whose dimensions are groups, samples, then `positions` ones; the caller
// says which they are. None if (d1, d2, ...) cannot be walked with one stride.
inline std::optional<RowLayout> row_layout(const at::Tensor& t, bool grouped, bool batched,
                                           int64_t class_stride, int64_t first_position) {
  RowLayout layout{1, 1, grouped ? t.stride(0) : 0, 0, class_stride, 0};
  if (batched) {
    layout.samples = t.size(grouped);
    layout.batch_stride = t.stride(grouped);
  }
  for (int64_t d = t.dim() - 1; d >= first_position; --d) {
    if (t.size(d) == 1) continue;
    if (layout.positions == 1) {
      layout.position_stride = t.stride(d);
    } else if (t.stride(d) != layout.positions * layout.position_stride) {
      return std::nullopt;
    }
    layout.positions *= t.size(d);
  }
  // An empty tensor has no row to look up, but nothing may be divided by zero.
  if (layout.samples == 0) layout.samples = 1;
  if (layout.positions == 0) layout.positions = 1;
  return layout;
}

}  // namespace detail

// The rows of logits, or of their gradient.
inline std::optional<RowLayout> row_layout(const at::Tensor& input, bool grouped) {
  const int64_t dim = class_dim(input, grouped);
  return detail::row_layout(input, grouped, dim > grouped, input.stride(dim), dim + 1);
}

// The same logits with a layout: a copy where they have none.
inline at::Tensor with_rows(const at::Tensor& input, bool grouped) {
  return row_layout(input, grouped) ? input : input.contiguous();
}

// The elements of a tensor of target's shape, one a row.
inline std::optional<RowLayout> element_layout(const at::Tensor& t, bool grouped) {
  return detail::row_layout(t, grouped, t.dim() > grouped, 0, grouped + 1);
}

}  // namespace fedkern
