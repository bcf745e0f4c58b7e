#pragma once

// The list of tensors as the kernels of simplex_interpolate and simplex_interpolate_backward take
// it, on either device. A call has B groups (1 if it is not grouped), each of M endpoints and G
// points; a tensor of the list has N elements an endpoint:
//
//   endpoints  B x M rows of N elements
//   points     B x G rows of N elements: what is interpolated, or gradients by it
//
// The elements of a row are adjacent. Rows are cut into pieces of a kernel's own length; a task is
// a piece of all rows of a group. Offsets and strides are in elements.

#include <cstdint>

#include "common/ceil_div.h"
#include "common/macros.h"

namespace fedkern {

template <typename element_t>
struct SimplexRows {
  element_t* data;
  int64_t group_stride;
  int64_t row_stride;

  FEDKERN_HOST_DEVICE element_t* at(int64_t group, int64_t row, int64_t element) const {
    return data + group * group_stride + row * row_stride + element;
  }
};

template <typename scalar_t, typename point_t>
struct SimplexTensor {
  SimplexRows<const scalar_t> endpoints;
  SimplexRows<point_t> points;
  int64_t size;       // N, at least 1
  int64_t last_task;  // one behind this tensor's tasks; the first is the last_task before
};

}  // namespace fedkern
