#include "ops/simplex_project_backward.h"

#include <torch/library.h>

#include "ops/cpu/simplex_project_backward_kernel.h"
#include "ops/cpu/simplex_project_threads.h"

namespace fedkern {
namespace {

template <typename scalar_t>
void project(const at::Tensor& rows, const at::Tensor& support, const at::Tensor& result) {
  const int64_t length = rows.size(-1), count = rows.numel() / length;
  SimplexProjectBackwardArguments<scalar_t> arguments{};
  arguments.grad = rows.const_data_ptr<scalar_t>();
  arguments.support = support.const_data_ptr<uint8_t>();
  arguments.length = length;
  arguments.result = result.mutable_data_ptr<scalar_t>();
  const auto run =
      std::get<SimplexProjectBackwardRun<scalar_t>>(simplex_project_backward_kernels());
  run_on_threads<scalar_t>(run, arguments, count);
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
