#pragma once

#include <cstdint>

#include "common/macros.h"

namespace fedkern {

FEDKERN_HOST_DEVICE constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace fedkern
