// One launch, a thread a point, compiled without contraction. A block of kThreads points is drawn
// into shared memory, where coordinates of neighbouring points are neighbours, and leaves it in the
// order of the result; rows too long for that are drawn where they are to lie.

#include "common/ceil_div.h"
#include "common/cuda_launch.h"
#include "ops/cuda/simplex_sample_kernel.h"
#include "ops/cuda/simplex_sample_tile.cuh"
#include "ops/simplex_sample_math.h"

namespace fedkern {
namespace {

template <typename T>
__global__ void __launch_bounds__(kTilePoints)
    sample(const int64_t* __restrict__ key, int64_t points, int64_t size, bool staged,
           T* __restrict__ result) {
  FEDKERN_DYNAMIC_SHARED(T, tile);
  const uint64_t word = static_cast<uint64_t>(*key);
  const int64_t tiles = ceil_div(points, kTilePoints);
  for (int64_t i = blockIdx.x; i < tiles; i += gridDim.x) {
    draw_tile(i * kTilePoints, points, size, staged ? tile : nullptr, result,
              [&](int64_t point, T* row, int64_t stride) {
                Counters<1> at;
                at.set(0, point, 0);
                draw_from_simplex(word, at, size, row, stride);
              });
  }
}

}  // namespace

template <typename T>
cudaError_t simplex_sample_cuda(const int64_t* key, int64_t points, int64_t size, T* result,
                                cudaStream_t stream) {
  if (points == 0) return cudaSuccess;
  const int64_t tile_bytes = kTilePoints * size * int64_t{sizeof(T)};
  const bool staged = tile_bytes <= kMostSharedBytes;
  FEDKERN_LAUNCH(sample<T>, grid_size(ceil_div(points, kTilePoints)), kTilePoints,
                 staged ? tile_bytes : 0, stream, key, points, size, staged, result);
  return cudaGetLastError();
}

template cudaError_t simplex_sample_cuda(const int64_t*, int64_t, int64_t, float*, cudaStream_t);
template cudaError_t simplex_sample_cuda(const int64_t*, int64_t, int64_t, double*, cudaStream_t);

}  // namespace fedkern
