#include "ops/simplex_interpolate_backward.h"

#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include "common/cuda_tensor.h"
#include "common/switch_dtype.h"
#include "ops/cuda/simplex_interpolate_backward_kernel.h"

namespace fedkern {
namespace {

template <typename scalar_t>
void multiply(at::TensorList grads, at::TensorList endpoints, bool grouped,
              const at::Tensor& result) {
  const int64_t groups = result.size(0), points = result.size(1), num_endpoints = result.size(2);
  const int64_t tiles = simplex_interpolate_backward_cuda_tiles(points, num_endpoints);
  int64_t num_pieces = 0;
  const auto list = simplex_list<cuda_t<scalar_t>, const cuda_t<scalar_t>>(
      endpoints, grads, grouped, [&](int64_t size) {
        const int64_t pieces = simplex_interpolate_backward_cuda_pieces<cuda_t<scalar_t>>(size);
        num_pieces += pieces;
        return groups * pieces * tiles;
      });
  const at::Tensor products = at::empty({result.numel(), num_pieces}, result.options());
  const SimplexInterpolateBackwardCudaArguments<cuda_t<scalar_t>> arguments{
      list.data(),
      static_cast<int64_t>(list.size()),
      groups,
      points,
      num_endpoints,
      num_pieces,
      products.mutable_data_ptr<double>(),
      result.mutable_data_ptr<double>()};
  C10_CUDA_CHECK(simplex_interpolate_backward_cuda(arguments, c10::cuda::getCurrentCUDAStream()));
}

at::Tensor simplex_interpolate_backward(at::TensorList grads, at::TensorList endpoints,
                                        bool grouped, at::ScalarType dtype) {
  const auto run = [&](at::TensorList from_grads, at::TensorList from_endpoints,
                       const at::Tensor& result) {
    const c10::cuda::CUDAGuard guard(result.device());
    switch_dtype(from_grads[0].scalar_type(), [&](auto zero) {
      multiply<decltype(zero)>(from_grads, from_endpoints, grouped, result);
    });
  };
  return run_simplex_interpolate_backward(grads, endpoints, grouped, dtype, run);
}

}  // namespace
}  // namespace fedkern

TORCH_LIBRARY_IMPL(fedkern, CUDA, m) {
  m.impl("simplex_interpolate_backward", TORCH_FN(fedkern::simplex_interpolate_backward));
}
