#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

#include "common/cpu_huge_pages.h"

namespace fedkern {

// t with `dim` (not negative) last, as one contiguous row after the other: copied where it is not.
inline at::Tensor contiguous_rows(const at::Tensor& t, int64_t dim) {
  return dim == t.dim() - 1 ? t.contiguous() : t.movedim(dim, -1).contiguous();
}

// A tensor like t, with the strides of at::empty_like: run(rows) writes it as contiguous rows.
template <typename Run>
at::Tensor written_by_rows(const at::Tensor& t, int64_t dim, const Run& run) {
  at::Tensor result = at::empty_like(t);
  advise_huge_pages(result);
  const at::Tensor rows = dim == t.dim() - 1 ? result : result.movedim(dim, -1);
  if (rows.is_contiguous()) {
    run(rows);
  } else {
    const at::Tensor written = at::empty(rows.sizes(), rows.options());
    run(written);
    rows.copy_(written);
  }
  return result;
}

}  // namespace fedkern
