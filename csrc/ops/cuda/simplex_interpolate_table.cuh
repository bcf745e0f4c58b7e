#pragma once

// The tensors of a launch.

#include <cuda_runtime.h>

#include <cstdint>

#include "common/cuda_launch.h"
#include "ops/simplex_interpolate_list.h"

namespace fedkern {

// 3 KB of a kernel's parameters, which may take 4.
constexpr int kMostTensors = 48;

template <typename scalar_t, typename point_t>
struct SimplexTable {
  SimplexTensor<scalar_t, point_t> tensors[kMostTensors];
  int64_t first_task, last_task;  // of the launch, one behind the last
};

// Calls launch(table, blocks) for one part of the list after the other; a block a task, if so many
// fit into a grid.
template <typename scalar_t, typename point_t, typename Launch>
cudaError_t launch_tables(const SimplexTensor<scalar_t, point_t>* tensors, int64_t num_tensors,
                          const Launch& launch) {
  SimplexTable<scalar_t, point_t> table{};
  for (int64_t i = 0; i < num_tensors; i += kMostTensors) {
    const int64_t left = num_tensors - i;
    const int count = static_cast<int>(left < kMostTensors ? left : kMostTensors);
    for (int k = 0; k < count; ++k) table.tensors[k] = tensors[i + k];
    table.first_task = table.last_task;
    table.last_task = table.tensors[count - 1].last_task;
    launch(table, grid_size(table.last_task - table.first_task));
    const cudaError_t error = cudaGetLastError();
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

// A task's tensor in the table, and the first task of that tensor.
struct TaskTensor {
  int tensor;
  int64_t first_task;
};

template <typename scalar_t, typename point_t>
__device__ TaskTensor find_tensor(const SimplexTable<scalar_t, point_t>& table, int64_t task) {
  TaskTensor found{0, table.first_task};
  while (task >= table.tensors[found.tensor].last_task) {
    found.first_task = table.tensors[found.tensor++].last_task;
  }
  return found;
}

// Whether all rows begin at a 16-byte boundary.
template <typename element_t>
__device__ bool fits_vectors(const SimplexRows<element_t>& rows) {
  const int64_t strides = rows.group_stride | rows.row_stride;
  return (reinterpret_cast<uintptr_t>(rows.data) | strides * sizeof(element_t)) % 16 == 0;
}

}  // namespace fedkern
