#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "common/row_layout.h"

namespace fedkern {

// Device pointers throughout.
template <typename scalar_t>
struct CalibratedCEBackwardCudaArguments {
  const scalar_t* grad_loss;
  RowLayout grad_loss_layout;
  const scalar_t* gradient;
  RowLayout gradient_layout;
  const int64_t* target;  // one label a row, in row order
  int64_t rows;           // of all groups
  int64_t num_classes;
  int64_t ignore_index;
  scalar_t* result;  // may be `gradient`: then rows whose factor is one are not touched
  RowLayout result_layout;
};

// One launch.
template <typename scalar_t>
cudaError_t calibrated_ce_backward_cuda(
    const CalibratedCEBackwardCudaArguments<scalar_t>& arguments, cudaStream_t stream);

}  // namespace fedkern
