#pragma once

#include <cstdint>

#include "common/macros.h"

namespace fedkern {

// Where the rows of a tensor [G, N, C, S] lie: G groups of N samples of S positions. Row
// i = (g * N + n) * S + s holds C elements, class_stride apart. Offsets and strides are in
// elements.
struct RowLayout {
  int64_t samples;    // N
  int64_t positions;  // S
  int64_t group_stride;
  int64_t batch_stride;
  int64_t class_stride;
  int64_t position_stride;

  FEDKERN_HOST_DEVICE int64_t offset(int64_t row) const {
    const int64_t sample = row / positions;
    return sample / samples * group_stride + sample % samples * batch_stride +
           row % positions * position_stride;
  }
};

}  // namespace fedkern
