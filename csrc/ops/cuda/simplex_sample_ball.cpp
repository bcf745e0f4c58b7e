#include "ops/simplex_sample_ball.h"

#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include "common/switch_dtype.h"
#include "ops/cuda/simplex_sample_ball_kernel.h"

namespace fedkern {
namespace {

template <typename T>
void sample(const at::Tensor& key, const at::Tensor& center, const at::Tensor& radius,
            int64_t num_samples, BallMethod method, const at::Tensor& result) {
  SimplexSampleBallCudaArguments<T> arguments{};
  arguments.key = key.const_data_ptr<int64_t>();
  arguments.method = method;
  arguments.center = center.const_data_ptr<T>();
  arguments.size = center.size(-1);
  arguments.centers = center.numel() / arguments.size;
  arguments.num_samples = num_samples;
  arguments.result = result.mutable_data_ptr<T>();
  at::Tensor radii;
  if (radius.is_cpu() && radius.dim() == 0) {  // a number
    arguments.radius = *radius.const_data_ptr<double>();
    check_radius(arguments.radius);
  } else {
    radii = radius.expand({arguments.centers}).contiguous();
    arguments.radii = radii.const_data_ptr<double>();
  }
  const at::Tensor scratch = at::empty(
      {simplex_sample_ball_scratch(arguments.size, arguments.centers, num_samples, sizeof(T))},
      center.options().dtype(at::kByte));
  C10_CUDA_CHECK(simplex_sample_ball_cuda(arguments, scratch.mutable_data_ptr(),
                                          c10::cuda::getCurrentCUDAStream()));
}

at::Tensor simplex_sample_ball(const at::Tensor& key, const at::Tensor& center,
                               const at::Tensor& radius, int64_t num_samples,
                               c10::string_view method) {
  const BallMethod chosen = check_simplex_sample_ball(key, center, radius, num_samples, method);
  const c10::cuda::CUDAGuard guard(center.device());
  c10::DimVector shape(center.sizes().begin(), center.sizes().end());
  shape.insert(shape.end() - 1, num_samples);
  at::Tensor result = at::empty(shape, center.options());
  switch_float_or_double(center.scalar_type(), [&](auto zero) {
    sample<decltype(zero)>(key, center.contiguous(), radius.to(at::kDouble), num_samples, chosen,
                           result);
  });
  return result;
}

}  // namespace
}  // namespace fedkern

TORCH_LIBRARY_IMPL(fedkern, CUDA, m) {
  m.impl("simplex_sample_ball", TORCH_FN(fedkern::simplex_sample_ball));
}
