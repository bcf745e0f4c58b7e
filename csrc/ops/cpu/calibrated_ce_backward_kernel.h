#pragma once

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <cstdint>
#include <tuple>

#include "common/cpu_capability.h"
#include "common/row_layout.h"

namespace fedkern {

template <typename scalar_t>
struct CalibratedCEBackwardArguments {
  const scalar_t* grad_loss;
  RowLayout grad_loss_layout;
  const scalar_t* gradient;
  RowLayout gradient_layout;
  const int64_t* target;  // one label a row, in row order
  int64_t num_classes;
  int64_t ignore_index;
  scalar_t* result;  // may be `gradient`: then rows whose factor is one are not touched
  RowLayout result_layout;
};

// Rows [begin, end).
template <typename scalar_t>
using CalibratedCEBackwardRun = void (*)(const CalibratedCEBackwardArguments<scalar_t>&,
                                         int64_t begin, int64_t end);

using CalibratedCEBackwardKernels =
    std::tuple<CalibratedCEBackwardRun<float>, CalibratedCEBackwardRun<double>,
               CalibratedCEBackwardRun<c10::BFloat16>, CalibratedCEBackwardRun<c10::Half>>;
FEDKERN_DECLARE_VARIANTS(CalibratedCEBackwardKernels, calibrated_ce_backward_kernels)

}  // namespace fedkern
