#include "ops/simplex_project.h"

#include <torch/library.h>

#include <tuple>

#include "ops/cpu/simplex_project_kernel.h"
#include "ops/cpu/simplex_project_threads.h"

namespace fedkern {
namespace {

template <typename T>
void check_each(const RowZ<T>& z, int64_t rows) {
  if (!z.each) return;
  for (int64_t row = 0; row < rows; ++row) {
    TORCH_CHECK_VALUE(is_valid_z(z[row]),
                      "simplex_project: z must be positive, finite and not subnormal, got ", z[row],
                      " for row ", row);
  }
}

template <typename scalar_t>
void project(const at::Tensor& rows, const at::Tensor& result, const at::Tensor& support,
             const RowZ<accumulate_t<scalar_t>>& z) {
  const int64_t length = rows.size(-1), count = rows.numel() / length;
  check_each(z, count);
  SimplexProjectArguments<scalar_t> arguments{};
  arguments.x = rows.const_data_ptr<scalar_t>();
  arguments.length = length;
  arguments.z = z;
  arguments.result = result.mutable_data_ptr<scalar_t>();
  arguments.support = support.mutable_data_ptr<uint8_t>();
  const auto run = std::get<SimplexProjectRun<scalar_t>>(simplex_project_kernels());
  run_on_threads<scalar_t>(run, arguments, count);
}

std::tuple<at::Tensor, at::Tensor> simplex_project(const at::Tensor& x, const at::Tensor& z,
                                                   int64_t dim) {
  return run_simplex_project(
      x, z, dim,
      [](auto zero, const at::Tensor& rows, const at::Tensor& result, const at::Tensor& support,
         const auto& z_of_rows) { project<decltype(zero)>(rows, result, support, z_of_rows); });
}

}  // namespace
}  // namespace fedkern

TORCH_LIBRARY_IMPL(fedkern, CPU, m) {
  m.impl("simplex_project", TORCH_FN(fedkern::simplex_project));
}
