#pragma once

#include <cstdint>

#include "common/cpu_capability.h"

namespace fedkern {

struct ReadBatchKernels {
  // Rows indices[0 .. num_rows) of `stored` [., size], each byte divided by 255, to `batch`
  // [num_rows, size].
  void (*read)(const uint8_t* stored, int64_t size, const int64_t* indices, int64_t num_rows,
               float* batch);
};

FEDKERN_DECLARE_VARIANTS(ReadBatchKernels, read_batch_kernels)

}  // namespace fedkern
