#pragma once

// The tensors of a launch, and how a thread reads their rows.

#include <cuda_runtime.h>

#include <cstdint>

#include "common/accumulate.h"
#include "common/cuda_launch.h"
#include "common/cuda_vector.cuh"
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

// ---- a thread's share of a row: as many elements as 16 bytes hold ------------------------------

// Next to each other (kVectors), or one behind every kThreads elements. `row` is where the share
// begins, with `left` elements to the end of the row; what would lie behind it is 0.
template <bool kVectors, int kThreads, typename scalar_t, typename T>
__device__ void load_share(const scalar_t* row, int64_t left,
                           T (&values)[Vector<scalar_t>::kSize]) {
  constexpr int kWidth = Vector<scalar_t>::kSize, kStep = kVectors ? 1 : kThreads;
  if (kVectors && left >= kWidth) {
    unpack(load_cached(row), values);
    return;
  }
#pragma unroll
  for (int i = 0; i < kWidth; ++i) {
    values[i] = i * kStep < left ? static_cast<T>(row[i * kStep]) : T(0);
  }
}

template <bool kVectors, int kThreads, typename scalar_t, typename T>
__device__ void store_share(scalar_t* row, int64_t left,
                            const T (&values)[Vector<scalar_t>::kSize]) {
  constexpr int kWidth = Vector<scalar_t>::kSize, kStep = kVectors ? 1 : kThreads;
  if (kVectors && left >= kWidth) {
    store_streaming(row, pack<scalar_t>(values));
    return;
  }
#pragma unroll
  for (int i = 0; i < kWidth; ++i) {
    if (i * kStep < left) row[i * kStep] = static_cast<scalar_t>(values[i]);
  }
}

// Where a thread's share begins in a piece of kThreads shares.
template <bool kVectors, typename scalar_t>
__device__ int64_t share_offset() {
  return kVectors ? threadIdx.x * Vector<scalar_t>::kSize : threadIdx.x;
}

}  // namespace fedkern
