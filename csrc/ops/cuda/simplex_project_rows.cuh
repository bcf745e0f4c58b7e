#pragma once

// How the kernels of simplex_project and of its backward share rows among threads.
//
// A group is 8 elements of a row, whose bits are one byte of the support. A team of threads has a
// row: each thread every kTeam-th group, of which it alone reads and writes the byte. A group is
// loaded and stored 16 bytes at a time where rows begin at such boundaries.

#include "common/accumulate.h"
#include "common/cuda_launch.h"
#include "common/cuda_reduce.cuh"
#include "common/cuda_vector.cuh"
#include "ops/simplex_project_math.h"

namespace fedkern {

constexpr int kGroup = 8;

// ---- teams -------------------------------------------------------------------------------------

// A block has one row, or as many as it has teams.
template <int kTeam>
struct Team {
  static constexpr int kThreads = kTeam < 128 ? 128 : kTeam;
  static constexpr int kRows = kThreads / kTeam;

  template <typename T, typename Combine>
  __device__ static T reduce(T value, const Combine& combine) {
    if constexpr (kTeam <= 32) {
      return lane_reduce<kTeam>(value, combine);
    } else {
      return block_reduce<kTeam>(value, combine);
    }
  }
};

// Calls launch(team) with the Team for rows of `length`: at most four groups a thread up to 1024
// elements, at most eight up to 16384. More than 512 threads have no registers for double.
template <typename T, typename Launch>
void with_team(int64_t length, const Launch& launch) {
  const int64_t groups = support_bytes(length);
  if (groups <= 128) {
    launch(Team<32>());
  } else if (groups <= 2048) {
    launch(Team<256>());
  } else {
    launch(Team<sizeof(T) == sizeof(double) ? 512 : 1024>());
  }
}

// ---- groups ------------------------------------------------------------------------------------

template <typename scalar_t>
__device__ bool begins_at_boundary(const scalar_t* row) {
  return reinterpret_cast<uintptr_t>(row) % 16 == 0;
}

// Group `group` of a row, whose elements beyond `length` are `beyond`.
template <typename scalar_t, typename T = accumulate_t<scalar_t>>
__device__ void load_group(const scalar_t* row, int64_t group, int64_t length, bool vectors,
                           T beyond, T (&values)[kGroup]) {
  constexpr int kWidth = Vector<scalar_t>::kSize;
  const scalar_t* from = row + group * kGroup;
  if (vectors && (group + 1) * kGroup <= length) {
#pragma unroll
    for (int i = 0; i < kGroup; i += kWidth) {
      T part[kWidth];
      unpack(load_cached(from + i), part);
#pragma unroll
      for (int j = 0; j < kWidth; ++j) values[i + j] = part[j];
    }
  } else {
#pragma unroll
    for (int i = 0; i < kGroup; ++i) {
      values[i] = group * kGroup + i < length ? static_cast<T>(from[i]) : beyond;
    }
  }
}

template <typename scalar_t, typename T = accumulate_t<scalar_t>>
__device__ void store_group(scalar_t* row, int64_t group, int64_t length, bool vectors,
                            const T (&values)[kGroup]) {
  constexpr int kWidth = Vector<scalar_t>::kSize;
  scalar_t* to = row + group * kGroup;
  if (vectors && (group + 1) * kGroup <= length) {
#pragma unroll
    for (int i = 0; i < kGroup; i += kWidth) {
      T part[kWidth];
#pragma unroll
      for (int j = 0; j < kWidth; ++j) part[j] = values[i + j];
      store_streaming(to + i, pack<scalar_t>(part));
    }
  } else {
#pragma unroll
    for (int i = 0; i < kGroup; ++i) {
      if (group * kGroup + i < length) to[i] = static_cast<scalar_t>(values[i]);
    }
  }
}

// Those elements of a group whose bits are set: their sum in T is added to `sum`.
template <typename T>
struct TeamSum {
  double sum = 0;
  int64_t size = 0;

  __device__ void add(const T (&values)[kGroup], unsigned bits) {
    T of_group = 0;
#pragma unroll
    for (int i = 0; i < kGroup; ++i) of_group += bits >> i & 1 ? values[i] : T(0);
    sum += of_group;
    size += __popc(bits);
  }

  // The team's, in every thread.
  template <typename Team>
  __device__ TeamSum reduced(Team) const {
    return {Team::reduce(sum, Sum{}), Team::reduce(size, Sum{})};
  }
};

}  // namespace fedkern
