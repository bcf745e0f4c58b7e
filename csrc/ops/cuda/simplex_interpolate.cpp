#include "ops/simplex_interpolate.h"

#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include "common/cuda_tensor.h"
#include "common/switch_dtype.h"
#include "ops/cuda/simplex_interpolate_kernel.h"

namespace fedkern {
namespace {

template <typename scalar_t>
void interpolate(at::TensorList endpoints, const at::Tensor& alpha, bool grouped,
                 at::TensorList results) {
  using T = accumulate_t<scalar_t>;
  const SimplexSizes sizes = simplex_sizes(alpha, grouped);
  const at::Tensor weights = alpha.to(c10::CppTypeToScalarType<T>::value).contiguous();
  const auto list = simplex_list<cuda_t<scalar_t>, cuda_t<scalar_t>>(
      endpoints, results, grouped, [&](int64_t size) {
        return sizes.groups * simplex_interpolate_cuda_tasks<cuda_t<scalar_t>>(size, sizes.points);
      });
  const SimplexInterpolateCudaArguments<cuda_t<scalar_t>> arguments{
      list.data(), static_cast<int64_t>(list.size()), weights.const_data_ptr<T>(), sizes.points,
      sizes.endpoints};
  C10_CUDA_CHECK(simplex_interpolate_cuda(arguments, c10::cuda::getCurrentCUDAStream()));
}

std::vector<at::Tensor> simplex_interpolate(at::TensorList endpoints, const at::Tensor& alpha,
                                            bool grouped) {
  const auto run = [&](at::TensorList from, at::TensorList results) {
    const c10::cuda::CUDAGuard guard(alpha.device());
    switch_dtype(from[0].scalar_type(),
                 [&](auto zero) { interpolate<decltype(zero)>(from, alpha, grouped, results); });
  };
  return run_simplex_interpolate(endpoints, alpha, grouped, run);
}

}  // namespace
}  // namespace fedkern

TORCH_LIBRARY_IMPL(fedkern, CUDA, m) {
  m.impl("simplex_interpolate", TORCH_FN(fedkern::simplex_interpolate));
}
