#pragma once

// Tiles: the rows that a kernel works on at a time, in scratch memory.

#include <cstdint>

#include "common/macros.h"

namespace fedkern {

constexpr int64_t kMostTileRows = 128;
constexpr int64_t kRowTileBytes = 16 << 10;  // half of the L1 cache

// Class vectors and scratch rows are this many elements apart, or a multiple: room for whole
// vectors of any CPU.
FEDKERN_ALWAYS_INLINE int64_t padded(int64_t elements) { return (elements + 31) / 32 * 32; }

}  // namespace fedkern
