#include "ops/simplex_interpolate.h"

#include <ATen/Parallel.h>
#include <torch/library.h>

#include "common/cpu_huge_pages.h"
#include "common/switch_dtype.h"
#include "ops/cpu/simplex_interpolate_kernel.h"
#include "ops/cpu/simplex_interpolate_tasks.h"

namespace fedkern {
namespace {

template <typename scalar_t>
void interpolate(at::TensorList endpoints, const at::Tensor& alpha, bool grouped,
                 at::TensorList results) {
  const SimplexSizes sizes = simplex_sizes(alpha, grouped);
  const at::Tensor weights =
      alpha.to(c10::CppTypeToScalarType<accumulate_t<scalar_t>>::value).contiguous();
  int64_t elements = 0;
  const auto list =
      simplex_list<scalar_t, scalar_t>(endpoints, results, grouped, [&](int64_t size) {
        elements += size * sizes.groups * (sizes.endpoints + sizes.points);
        return sizes.groups * simplex_tasks(size);
      });
  const SimplexInterpolateArguments<scalar_t> arguments{
      list.data(), weights.const_data_ptr<accumulate_t<scalar_t>>(), sizes.points, sizes.endpoints};
  const auto run = std::get<SimplexInterpolateRun<scalar_t>>(simplex_interpolate_kernels());
  const int64_t tasks = list.back().last_task;
  at::parallel_for(0, tasks, simplex_grain(tasks, elements),
                   [&](int64_t begin, int64_t end) { run(arguments, begin, end); });
}

std::vector<at::Tensor> simplex_interpolate(at::TensorList endpoints, const at::Tensor& alpha,
                                            bool grouped) {
  const auto run = [&](at::TensorList from, at::TensorList results) {
    for (const at::Tensor& result : results) advise_huge_pages(result);
    switch_dtype(from[0].scalar_type(),
                 [&](auto zero) { interpolate<decltype(zero)>(from, alpha, grouped, results); });
  };
  return run_simplex_interpolate(endpoints, alpha, grouped, run);
}

}  // namespace
}  // namespace fedkern

TORCH_LIBRARY_IMPL(fedkern, CPU, m) {
  m.impl("simplex_interpolate", TORCH_FN(fedkern::simplex_interpolate));
}
