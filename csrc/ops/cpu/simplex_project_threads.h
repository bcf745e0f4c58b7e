#pragma once

#include <ATen/Parallel.h>

#include <algorithm>

#include "common/cpu_buffer.h"
#include "ops/cpu/simplex_project_scratch.h"

namespace fedkern {

// run(arguments, begin, end, scratch) on shares of `count` rows, as the kernels of simplex_project
// and of its backward are called.
template <typename scalar_t, typename Run, typename Arguments>
void run_on_threads(const Run& run, const Arguments& arguments, int64_t count) {
  // the least elements that are worth waking another thread for
  const int64_t grain = std::max<int64_t>(1, 32768 / arguments.length);
  at::parallel_for(0, count, grain, [&](int64_t begin, int64_t end) {
    CpuBuffer<accumulate_t<scalar_t>, 1> scratch(scratch_size<scalar_t>(arguments.length));
    run(arguments, begin, end, scratch.data());
  });
}

}  // namespace fedkern
