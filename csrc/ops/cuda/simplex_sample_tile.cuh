#pragma once

// Tiles of points: what the kernels of simplex_sample and simplex_sample_ball share.

#include <cstdint>

#include "common/cuda_launch.h"

namespace fedkern {

constexpr int kTilePoints = 128;                 // also the threads of a block
constexpr int64_t kMostSharedBytes = 48 * 1024;  // what every GPU gives without being asked

// Points first, first + 1, ... below `end`, one a thread: draw(point, row, stride) writes
// coordinate j to row[j * stride]. tile: shared memory for [size, kTilePoints], or null. All of the
// block call.
template <typename T, typename Draw>
__device__ void draw_tile(int64_t first, int64_t end, int64_t size, T* tile, T* result,
                          const Draw& draw) {
  const int64_t point = first + threadIdx.x;
  if (!tile) {
    if (point < end) draw(point, result + point * size, int64_t{1});
    return;
  }
  if (point < end) draw(point, tile + threadIdx.x, int64_t{kTilePoints});
  __syncthreads();
  const int width = static_cast<int>(size);
  const int count = static_cast<int>(min(end - first, int64_t{kTilePoints})) * width;
  for (int i = threadIdx.x; i < count; i += kTilePoints) {
    result[first * size + i] = tile[i % width * kTilePoints + i / width];
  }
  __syncthreads();  // before the next tile
}

}  // namespace fedkern
