#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "common/reduction.h"
#include "common/row_layout.h"

namespace fedkern {

// Device pointers throughout.
template <typename scalar_t>
struct NotTrueDistillationCudaArguments {
  const scalar_t* student;
  RowLayout student_layout;
  const scalar_t* teacher;
  RowLayout teacher_layout;
  const int64_t* target;  // one label a row, in row order
  int64_t groups;
  int64_t rows;  // of a group
  int64_t num_classes;

  double tau;
  Reduction reduction;
  int64_t ignore_index;

  scalar_t* loss;      // [groups], or [groups * rows] for Reduction::kNone
  scalar_t* gradient;  // or null
  RowLayout gradient_layout;

  void* workspace;  // not_true_distillation_workspace() bytes, 256-byte aligned, uninitialised
};

// Bytes of working memory that these arguments need (whatever `workspace` is).
template <typename scalar_t>
size_t not_true_distillation_workspace(const NotTrueDistillationCudaArguments<scalar_t>& arguments);

// Loss and, if wanted, gradient; asserts on bad labels. At most two launches.
template <typename scalar_t>
cudaError_t not_true_distillation_forward_cuda(
    const NotTrueDistillationCudaArguments<scalar_t>& arguments, cudaStream_t stream);

}  // namespace fedkern
