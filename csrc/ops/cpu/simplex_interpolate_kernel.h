#pragma once

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <cstdint>
#include <tuple>

#include "common/accumulate.h"
#include "common/cpu_capability.h"
#include "ops/simplex_interpolate_list.h"

namespace fedkern {

template <typename scalar_t>
struct SimplexInterpolateArguments {
  const SimplexTensor<scalar_t, scalar_t>* tensors;
  const accumulate_t<scalar_t>* alpha;  // [B, G, M], contiguous
  int64_t num_points;                   // G
  int64_t num_endpoints;                // M
};

// Tasks [begin, end) of the list (simplex_interpolate_tasks.h).
template <typename scalar_t>
using SimplexInterpolateRun = void (*)(const SimplexInterpolateArguments<scalar_t>&, int64_t begin,
                                       int64_t end);

using SimplexInterpolateKernels =
    std::tuple<SimplexInterpolateRun<float>, SimplexInterpolateRun<double>,
               SimplexInterpolateRun<c10::BFloat16>, SimplexInterpolateRun<c10::Half>>;
FEDKERN_DECLARE_VARIANTS(SimplexInterpolateKernels, simplex_interpolate_kernels)

}  // namespace fedkern
