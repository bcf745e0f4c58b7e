#pragma once

#include <cstdint>

#include "common/macros.h"

namespace fedkern {

// Where the rows of a tensor [N, C, S] lie: row i = n * S + s holds C elements, class_stride apart.
// Offsets and strides are in elements.
struct RowLayout {
  int64_t positions;  // S
  int64_t batch_stride;
  int64_t class_stride;
  int64_t position_stride;

  FEDKERN_HOST_DEVICE int64_t offset(int64_t row) const {
    return row / positions * batch_stride + row % positions * position_stride;
  }
};

}  // namespace fedkern
