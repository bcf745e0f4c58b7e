// Compiled once per CPU capability (common/cpu_capability.h), without contraction. Sixteen points
// at a time, a lane each: the loops over lanes become vector instructions, of whatever width. A
// lane whose point was accepted goes on with the next point, another one tries its own again: the
// lanes stay full, and a point's words are its own. A few points are drawn one by one, from the
// same source and so with the same bits.

#include "ops/cpu/simplex_sample_ball_kernel.h"

#include "common/cpu_buffer.h"
#include "common/philox_vector.h"

namespace fedkern {
namespace {

constexpr int kMostLanes = 16;
constexpr int64_t kFew = 3;          // points that take less time one by one
constexpr int64_t kInlineSize = 64;  // coordinates whose scratch memory is on the stack

// Points [begin, end) of the centre that the plan is for. rows: scratch, [M, kLanes].
template <int kLanes, typename T>
void draw_points(const BallPlan<T>& plan, uint64_t key, int64_t begin, int64_t end, T* rows,
                 T* result) {
  int64_t next = begin;
  int64_t points[kLanes];
  Counters<kLanes> at;
  for (int l = 0; l < kLanes; ++l) {
    points[l] = next;
    at.set(l, next++, 0);
  }
  for (int64_t left = end - begin; left > 0;) {
    bool accepted[kLanes];
    try_ball(plan, key, at, rows, kLanes, accepted);
    for (int l = 0; l < kLanes; ++l) {
      if (points[l] >= end) continue;  // an idle lane
      if (!accepted[l]) {
        if (++at.attempt[l] < kTries) continue;
        walk_in_ball(plan, key, points[l], rows + l, kLanes);
      }
      T* const to = result + points[l] * plan.size;
      for (int64_t j = 0; j < plan.size; ++j) to[j] = rows[j * kLanes + l];
      --left;
      points[l] = next;
      at.set(l, next++, 0);
    }
  }
}

template <typename T>
void run(const SimplexSampleBallArguments<T>& arguments, int64_t begin, int64_t end) {
  using Memory = BallPlanMemory<T>;
  const int64_t size = arguments.size;
  CpuBuffer<char, kInlineSize * Memory::kBytes> memory(size * Memory::kBytes);
  CpuBuffer<T, kInlineSize * kMostLanes> rows(size * kMostLanes);
  for (int64_t point = begin; point < end;) {
    const int64_t k = point / arguments.num_samples;
    const int64_t last = (k + 1) * arguments.num_samples;
    const int64_t stop = last < end ? last : end;
    const auto plan =
        plan_ball(arguments.center + k * size, size, arguments.radius[k * arguments.radius_each],
                  arguments.method, Memory(memory.data(), size));
    if (stop - point <= kFew) {
      draw_points<1>(plan, arguments.key, point, stop, rows.data(), arguments.result);
    } else {
      draw_points<kMostLanes>(plan, arguments.key, point, stop, rows.data(), arguments.result);
    }
    point = stop;
  }
}

}  // namespace

FEDKERN_DEFINE_VARIANT(SimplexSampleBallKernels, simplex_sample_ball_kernels) = {&run<float>,
                                                                                 &run<double>};

}  // namespace fedkern
