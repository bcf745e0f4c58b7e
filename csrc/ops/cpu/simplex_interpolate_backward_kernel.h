#pragma once

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <cstdint>
#include <tuple>

#include "common/cpu_capability.h"
#include "ops/simplex_interpolate_list.h"

namespace fedkern {

template <typename scalar_t>
struct SimplexInterpolateBackwardArguments {
  const SimplexTensor<scalar_t, const scalar_t>* tensors;
  int64_t num_points;     // G
  int64_t num_endpoints;  // M
  double* products;       // [tasks, G, M]: of each task's piece
};

// Tasks [begin, end) of the list (simplex_interpolate_tasks.h).
template <typename scalar_t>
using SimplexInterpolateBackwardRun = void (*)(const SimplexInterpolateBackwardArguments<scalar_t>&,
                                               int64_t begin, int64_t end);

using SimplexInterpolateBackwardKernels =
    std::tuple<SimplexInterpolateBackwardRun<float>, SimplexInterpolateBackwardRun<double>,
               SimplexInterpolateBackwardRun<c10::BFloat16>,
               SimplexInterpolateBackwardRun<c10::Half>>;
FEDKERN_DECLARE_VARIANTS(SimplexInterpolateBackwardKernels, simplex_interpolate_backward_kernels)

}  // namespace fedkern
