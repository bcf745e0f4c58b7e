#pragma once

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <cstdint>
#include <tuple>

#include "common/cpu_capability.h"
#include "ops/sgd_step_math.h"
#include "ops/sgd_step_rows.h"

namespace fedkern {

// The most gradients of a piece: with its parameters it fits the L1 cache.
constexpr int64_t kSgdStepPiece = 2048;

template <typename scalar_t>
struct SgdStepKernels {
  using T = accumulate_t<scalar_t>;

  // Of pieces [begin, end), each one's sum of squares of g', to sums[begin, end).
  void (*squares)(const SgdStepRow<scalar_t>&, const SgdStepSizes&, T pull, int64_t begin,
                  int64_t end, double* sums);
  // Steps with pieces [begin, end). The factors are for an alpha of 1.
  void (*update)(const SgdStepRow<scalar_t>&, const SgdStepSizes&, const SgdStepTerms&,
                 const SgdStepFactors<T>&, bool zero_grad, int64_t begin, int64_t end);
};

using SgdStepKernelsByDtype = std::tuple<SgdStepKernels<float>, SgdStepKernels<double>,
                                         SgdStepKernels<c10::BFloat16>, SgdStepKernels<c10::Half>>;
FEDKERN_DECLARE_VARIANTS(SgdStepKernelsByDtype, sgd_step_kernels)

}  // namespace fedkern
