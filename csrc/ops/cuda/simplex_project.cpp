#include "ops/simplex_project.h"

#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <tuple>

#include "common/cuda_tensor.h"
#include "ops/cuda/simplex_project_kernel.h"

namespace fedkern {
namespace {

template <typename scalar_t>
void project(const at::Tensor& rows, const at::Tensor& result, const at::Tensor& support,
             const RowZ<accumulate_t<scalar_t>>& z) {
  const c10::cuda::CUDAGuard guard(rows.device());
  SimplexProjectCudaArguments<cuda_t<scalar_t>> arguments{};
  arguments.x = const_cuda_data<scalar_t>(rows);
  arguments.length = rows.size(-1);
  arguments.rows = rows.numel() / arguments.length;
  arguments.z = z;
  arguments.result = mutable_cuda_data<scalar_t>(result);
  arguments.support = support.mutable_data_ptr<uint8_t>();
  C10_CUDA_CHECK(simplex_project_cuda(arguments, c10::cuda::getCurrentCUDAStream()));
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

TORCH_LIBRARY_IMPL(fedkern, CUDA, m) {
  m.impl("simplex_project", TORCH_FN(fedkern::simplex_project));
}
