#pragma once

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <cstdint>
#include <tuple>

#include "common/accumulate.h"
#include "common/cpu_capability.h"
#include "ops/simplex_project_math.h"

namespace fedkern {

template <typename scalar_t>
struct SimplexProjectArguments {
  const scalar_t* x;  // contiguous rows
  int64_t length;     // M
  RowZ<accumulate_t<scalar_t>> z;
  scalar_t* result;
  uint8_t* support;
};

// Rows [begin, end), with scratch_size<scalar_t>(length) elements of scratch.
template <typename scalar_t>
using SimplexProjectRun = void (*)(const SimplexProjectArguments<scalar_t>&, int64_t begin,
                                   int64_t end, accumulate_t<scalar_t>* scratch);

using SimplexProjectKernels =
    std::tuple<SimplexProjectRun<float>, SimplexProjectRun<double>,
               SimplexProjectRun<c10::BFloat16>, SimplexProjectRun<c10::Half>>;
FEDKERN_DECLARE_VARIANTS(SimplexProjectKernels, simplex_project_kernels)

}  // namespace fedkern
