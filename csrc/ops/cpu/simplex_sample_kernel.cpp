// Compiled once per CPU capability (common/cpu_capability.h), without contraction. Sixteen points
// at a time, a lane each: the loops over lanes become vector instructions, of whatever width.

#include "ops/cpu/simplex_sample_kernel.h"

#include "common/cpu_buffer.h"
#include "common/philox_vector.h"
#include "ops/simplex_sample_math.h"

namespace fedkern {
namespace {

constexpr int kLanes = 16;

template <typename T>
void run(const SimplexSampleArguments<T>& arguments, int64_t begin, int64_t end) {
  const int64_t size = arguments.size;
  CpuBuffer<T, 64 * kLanes> rows(size * kLanes);
  for (int64_t first = begin; first < end; first += kLanes) {
    Counters<kLanes> at;
    for (int l = 0; l < kLanes; ++l) at.set(l, first + l, 0);
    draw_from_simplex(arguments.key, at, size, rows.data(), kLanes);
    const int64_t count = end - first < kLanes ? end - first : kLanes;
    T* const to = arguments.result + first * size;
    for (int64_t l = 0; l < count; ++l) {
      for (int64_t j = 0; j < size; ++j) to[l * size + j] = rows[j * kLanes + l];
    }
  }
}

}  // namespace

FEDKERN_DEFINE_VARIANT(SimplexSampleKernels, simplex_sample_kernels) = {&run<float>, &run<double>};

}  // namespace fedkern
