#pragma once

#include <ATen/core/Tensor.h>

namespace fedkern {

// Samples of a data set as a batch that a model sees: stored[indices] / 255, in one pass.
//
//   stored   uint8, contiguous, [n, ...], on the CPU
//   indices  int64, [b]
//   batch    float32, contiguous, [b, ...]: written to
void read_batch(const at::Tensor& stored, const at::Tensor& indices, const at::Tensor& batch);

}  // namespace fedkern
