#pragma once

#include <cstdint>

#include "common/accumulate.h"

namespace fedkern {

// Rows of a half type are converted to float in scratch: as many at a time as fit the L1 cache.
constexpr int64_t rows_in_scratch(int64_t length) { return length < 1024 ? 1024 / length : 1; }

// Elements of scratch that a range of rows needs: for what comes in, and for what goes out.
template <typename scalar_t>
constexpr int64_t scratch_size(int64_t length) {
  return sizeof(scalar_t) < sizeof(accumulate_t<scalar_t>) ? 2 * rows_in_scratch(length) * length
                                                           : 0;
}

}  // namespace fedkern
