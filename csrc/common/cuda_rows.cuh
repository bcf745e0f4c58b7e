#pragma once

// Where rows lie, computed on the device: a 64-bit division there costs a hundred instructions.

#include <cuda_runtime.h>

#include <cstdint>

#include "common/row_layout.h"

namespace fedkern {

// Both not negative.
__device__ inline int64_t quotient(int64_t a, int64_t b) {
  if (((a | b) >> 32) == 0) return static_cast<uint32_t>(a) / static_cast<uint32_t>(b);
  return a / b;
}

// A row's indices: the same for all tensors of the same shape.
struct RowIndices {
  int64_t group, sample, position;
};

// Row `row` of group `group`.
__device__ inline RowIndices row_indices(const RowLayout& layout, int64_t group, int64_t row) {
  if (layout.positions == 1) return {group, row, 0};
  const int64_t sample = quotient(row, layout.positions);
  return {group, sample, row - sample * layout.positions};
}

// Row `row` of all.
__device__ inline RowIndices row_indices(const RowLayout& layout, int64_t row) {
  const int64_t rows = layout.samples * layout.positions;
  const int64_t group = row < rows ? 0 : quotient(row, rows);
  return row_indices(layout, group, row - group * rows);
}

__device__ inline int64_t row_offset(const RowLayout& layout, const RowIndices& at) {
  return at.group * layout.group_stride + at.sample * layout.batch_stride +
         at.position * layout.position_stride;
}

}  // namespace fedkern
