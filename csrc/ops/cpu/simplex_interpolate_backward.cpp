#include "ops/simplex_interpolate_backward.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>

#include "common/switch_dtype.h"
#include "ops/cpu/simplex_interpolate_backward_kernel.h"
#include "ops/cpu/simplex_interpolate_tasks.h"

namespace fedkern {
namespace {

template <typename scalar_t>
void multiply(at::TensorList grads, at::TensorList endpoints, bool grouped,
              const at::Tensor& result) {
  const int64_t groups = result.size(0), pairs = result.size(1) * result.size(2);
  int64_t elements = 0;
  const auto tasks_of = [&](int64_t size) {
    elements += size * groups * (result.size(1) + result.size(2));
    return groups * simplex_tasks(size);
  };
  const auto list = simplex_list<scalar_t, const scalar_t>(endpoints, grads, grouped, tasks_of);
  const int64_t tasks = list.back().last_task;
  const at::Tensor products = at::empty({tasks, pairs}, result.options());
  const SimplexInterpolateBackwardArguments<scalar_t> arguments{
      list.data(), result.size(1), result.size(2), products.mutable_data_ptr<double>()};
  const auto run =
      std::get<SimplexInterpolateBackwardRun<scalar_t>>(simplex_interpolate_backward_kernels());
  at::parallel_for(0, tasks, simplex_grain(tasks, elements),
                   [&](int64_t begin, int64_t end) { run(arguments, begin, end); });

  // Tensor by tensor, group by group, piece by piece, whatever threads computed them.
  double* sums = result.mutable_data_ptr<double>();
  std::fill_n(sums, groups * pairs, 0.);
  const double* of_task = arguments.products;
  for (const auto& tensor : list) {
    const int64_t pieces = simplex_tasks(tensor.size);
    for (int64_t group = 0; group < groups; ++group) {
      for (int64_t piece = 0; piece < pieces; ++piece, of_task += pairs) {
        for (int64_t i = 0; i < pairs; ++i) sums[group * pairs + i] += of_task[i];
      }
    }
  }
}

at::Tensor simplex_interpolate_backward(at::TensorList grads, at::TensorList endpoints,
                                        bool grouped, at::ScalarType dtype) {
  const auto run = [&](at::TensorList from_grads, at::TensorList from_endpoints,
                       const at::Tensor& result) {
    switch_dtype(from_grads[0].scalar_type(), [&](auto zero) {
      multiply<decltype(zero)>(from_grads, from_endpoints, grouped, result);
    });
  };
  return run_simplex_interpolate_backward(grads, endpoints, grouped, dtype, run);
}

}  // namespace
}  // namespace fedkern

TORCH_LIBRARY_IMPL(fedkern, CPU, m) {
  m.impl("simplex_interpolate_backward", TORCH_FN(fedkern::simplex_interpolate_backward));
}
