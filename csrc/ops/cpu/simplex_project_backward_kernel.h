#pragma once

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <cstdint>
#include <tuple>

#include "common/accumulate.h"
#include "common/cpu_capability.h"

namespace fedkern {

template <typename scalar_t>
struct SimplexProjectBackwardArguments {
  const scalar_t* grad;  // contiguous rows
  const uint8_t* support;
  int64_t length;  // M
  scalar_t* result;
};

// Rows [begin, end), with scratch_size<scalar_t>(length) elements of scratch.
template <typename scalar_t>
using SimplexProjectBackwardRun = void (*)(const SimplexProjectBackwardArguments<scalar_t>&,
                                           int64_t begin, int64_t end,
                                           accumulate_t<scalar_t>* scratch);

using SimplexProjectBackwardKernels =
    std::tuple<SimplexProjectBackwardRun<float>, SimplexProjectBackwardRun<double>,
               SimplexProjectBackwardRun<c10::BFloat16>, SimplexProjectBackwardRun<c10::Half>>;
FEDKERN_DECLARE_VARIANTS(SimplexProjectBackwardKernels, simplex_project_backward_kernels)

}  // namespace fedkern
