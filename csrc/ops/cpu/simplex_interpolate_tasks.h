#pragma once

// The tasks of simplex_interpolate and its backward on the CPU: kSimplexPiece elements of all rows
// of a group, few enough for the L2 cache to hold them while one tile after the other is computed
// from them.
//
// Always inlined: also for files that are compiled once per CPU capability.

#include <cstdint>

#include "common/macros.h"
#include "ops/simplex_interpolate_list.h"

namespace fedkern {

constexpr int64_t kSimplexPiece = 2048;

// How many tasks a tensor of `size` elements an endpoint has for each group.
FEDKERN_ALWAYS_INLINE int64_t simplex_tasks(int64_t size) { return ceil_div(size, kSimplexPiece); }

// How many tasks are worth waking another thread for, if all read and write so many elements.
FEDKERN_ALWAYS_INLINE int64_t simplex_grain(int64_t tasks, int64_t elements) {
  constexpr int64_t kLeastElements = 32768;
  return ceil_div(tasks * kLeastElements, elements);
}

// Calls body(task, tensor, group, first, size) for tasks [begin, end): elements [first,
// first + size) of the rows of a group of a tensor.
template <typename Tensor, typename Body>
FEDKERN_ALWAYS_INLINE void for_each_task(const Tensor* tensor, int64_t begin, int64_t end,
                                         const Body& body) {
  int64_t first_task = 0;
  for (int64_t task = begin; task < end; ++task) {
    for (; task >= tensor->last_task; ++tensor) first_task = tensor->last_task;
    const int64_t pieces = simplex_tasks(tensor->size);
    const int64_t group = (task - first_task) / pieces;
    const int64_t first = (task - first_task) % pieces * kSimplexPiece;
    const int64_t left = tensor->size - first;
    body(task, *tensor, group, first, left < kSimplexPiece ? left : kSimplexPiece);
  }
}

}  // namespace fedkern
