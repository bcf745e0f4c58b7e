#include "ops/simplex_project_backward.h"

#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>

#include "common/cpu_buffer.h"
#include "ops/cpu/simplex_project_backward_kernel.h"
#include "ops/cpu/simplex_project_scratch.h"

namespace fedkern {
namespace {

template <typename scalar_t>
void project(const at::Tensor& rows, const at::Tensor& support, const at::Tensor& result) {
  using T = accumulate_t<scalar_t>;
  const int64_t length = rows.size(-1), count = rows.numel() / length;
  SimplexProjectBackwardArguments<scalar_t> arguments{};
  arguments.grad = rows.const_data_ptr<scalar_t>();
  arguments.support = support.const_data_ptr<uint8_t>();
  arguments.length = length;
  arguments.result = result.mutable_data_ptr<scalar_t>();
  const auto run =
      std::get<SimplexProjectBackwardRun<scalar_t>>(simplex_project_backward_kernels());
  // the least elements that are worth waking another thread for
  const int64_t grain = std::max<int64_t>(1, 32768 / length);
  at::parallel_for(0, count, grain, [&](int64_t begin, int64_t end) {
    CpuBuffer<T, 1> scratch(scratch_size<scalar_t>(length));
    run(arguments, begin, end, scratch.data());
  });
}

at::Tensor simplex_project_backward(const at::Tensor& grad, const at::Tensor& support,
                                    int64_t dim) {
  return run_simplex_project_backward(
      grad, support, dim,
      [](auto zero, const at::Tensor& rows, const at::Tensor& bits, const at::Tensor& result) {
        project<decltype(zero)>(rows, bits, result);
      });
}

}  // namespace
}  // namespace fedkern

TORCH_LIBRARY_IMPL(fedkern, CPU, m) {
  m.impl("simplex_project_backward", TORCH_FN(fedkern::simplex_project_backward));
}
