#include "ops/simplex_project_backward.h"

#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include "common/cuda_tensor.h"
#include "ops/cuda/simplex_project_backward_kernel.h"

namespace fedkern {
namespace {

template <typename scalar_t>
void project(const at::Tensor& rows, const at::Tensor& support, const at::Tensor& result) {
  const c10::cuda::CUDAGuard guard(rows.device());
  SimplexProjectBackwardCudaArguments<cuda_t<scalar_t>> arguments{};
  arguments.grad = const_cuda_data<scalar_t>(rows);
  arguments.support = support.const_data_ptr<uint8_t>();
  arguments.length = rows.size(-1);
  arguments.rows = rows.numel() / arguments.length;
  arguments.result = mutable_cuda_data<scalar_t>(result);
  C10_CUDA_CHECK(simplex_project_backward_cuda(arguments, c10::cuda::getCurrentCUDAStream()));
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

TORCH_LIBRARY_IMPL(fedkern, CUDA, m) {
  m.impl("simplex_project_backward", TORCH_FN(fedkern::simplex_project_backward));
}
