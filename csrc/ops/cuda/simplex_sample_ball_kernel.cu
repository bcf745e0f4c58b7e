// One launch for all centres, a thread a point, compiled without contraction. A block draws some of
// a centre's points. Its first thread makes the centre's plan, in shared memory where that is small
// enough; then tiles are drawn as in simplex_sample_kernel.cu.

#include "common/ceil_div.h"
#include "common/cuda_launch.h"
#include "ops/cuda/simplex_sample_ball_kernel.h"
#include "ops/cuda/simplex_sample_tile.cuh"

namespace fedkern {
namespace {

constexpr int64_t kWantedBlocks = 2048;  // more points than these can draw at once: some each

// Where things lie, and how the work is cut.
struct Cut {
  int64_t part;        // points of a centre that a block draws together, with one plan
  int64_t parts;       // of a centre
  int64_t plan_bytes;  // of a block's plan
  bool plan_shared;
  bool staged;
  unsigned grid;
  int64_t shared_bytes;
};

Cut cut_of(int64_t size, int64_t centers, int64_t num_samples, int64_t element_bytes) {
  Cut cut{};
  const int64_t tiles = centers * ceil_div(num_samples, kTilePoints);
  cut.part = ((tiles - 1) / kWantedBlocks + 1) * kTilePoints;
  cut.parts = ceil_div(num_samples, cut.part);
  cut.plan_bytes = (size * (element_bytes + 12) + 15) / 16 * 16;
  const int64_t tile_bytes = kTilePoints * size * element_bytes;
  cut.plan_shared = cut.plan_bytes <= kMostSharedBytes;
  cut.staged = cut.plan_bytes + tile_bytes <= kMostSharedBytes;
  cut.shared_bytes = (cut.plan_shared ? cut.plan_bytes : 0) + (cut.staged ? tile_bytes : 0);
  const int64_t tasks = centers * cut.parts;
  cut.grid = grid_size(cut.plan_shared || tasks < kWantedBlocks ? tasks : kWantedBlocks);
  return cut;
}

template <typename T>
__global__ void __launch_bounds__(kTilePoints)
    sample(const SimplexSampleBallCudaArguments<T> arguments, const Cut cut,
           unsigned char* __restrict__ scratch) {
  static_assert(BallPlanMemory<T>::kBytes == sizeof(T) + 12, "as cut_of counts");
  __shared__ BallPlan<T> plan;
  FEDKERN_DYNAMIC_SHARED(unsigned char, shared);
  const uint64_t key = static_cast<uint64_t>(*arguments.key);
  const int64_t size = arguments.size;
  unsigned char* const plan_memory =
      cut.plan_shared ? shared : scratch + blockIdx.x * cut.plan_bytes;
  T* const tile = cut.staged ? reinterpret_cast<T*>(shared + cut.plan_bytes) : nullptr;
  for (int64_t task = blockIdx.x; task < arguments.centers * cut.parts; task += gridDim.x) {
    const int64_t k = task / cut.parts, begin = task % cut.parts * cut.part;
    __syncthreads();  // the plan is still read for the task before
    if (threadIdx.x == 0) {
      const T* const center = arguments.center + k * size;
      const double radius = arguments.radii ? arguments.radii[k] : arguments.radius;
      assert(is_center(center, size) && "center must be finite, not negative and sum to 1");
      assert(is_radius(radius) && "radius must be finite and not negative");
      plan =
          plan_ball(center, size, radius, arguments.method, BallPlanMemory<T>(plan_memory, size));
    }
    __syncthreads();
    const int64_t first = k * arguments.num_samples;
    const int64_t end = first + min(begin + cut.part, arguments.num_samples);
    for (int64_t point = first + begin; point < end; point += kTilePoints) {
      draw_tile(point, end, size, tile, arguments.result, [&](int64_t own, T* row, int64_t stride) {
        Counters<1> at;
        for (uint32_t attempt = 0; attempt < kTries; ++attempt) {
          bool accepted[1];
          at.set(0, own, attempt);
          try_ball(plan, key, at, row, stride, accepted);
          if (accepted[0]) return;
        }
        walk_in_ball(plan, key, own, row, stride);
      });
    }
  }
}

}  // namespace

int64_t simplex_sample_ball_scratch(int64_t size, int64_t centers, int64_t num_samples,
                                    int64_t element_bytes) {
  const Cut cut = cut_of(size, centers, num_samples, element_bytes);
  return cut.plan_shared ? 0 : cut.plan_bytes * cut.grid;
}

template <typename T>
cudaError_t simplex_sample_ball_cuda(const SimplexSampleBallCudaArguments<T>& arguments,
                                     void* scratch, cudaStream_t stream) {
  if (arguments.centers == 0 || arguments.num_samples == 0) return cudaSuccess;
  const Cut cut =
      cut_of(arguments.size, arguments.centers, arguments.num_samples, int64_t{sizeof(T)});
  FEDKERN_LAUNCH(sample<T>, cut.grid, kTilePoints, cut.shared_bytes, stream, arguments, cut,
                 static_cast<unsigned char*>(scratch));
  return cudaGetLastError();
}

template cudaError_t simplex_sample_ball_cuda(const SimplexSampleBallCudaArguments<float>&, void*,
                                              cudaStream_t);
template cudaError_t simplex_sample_ball_cuda(const SimplexSampleBallCudaArguments<double>&, void*,
                                              cudaStream_t);

}  // namespace fedkern
