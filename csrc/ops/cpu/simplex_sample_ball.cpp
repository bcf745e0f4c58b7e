#include "ops/simplex_sample_ball.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>

#include "common/switch_dtype.h"
#include "ops/cpu/simplex_sample_ball_kernel.h"

namespace fedkern {
namespace {

template <typename T>
void sample(const at::Tensor& key, const at::Tensor& center, const at::Tensor& radius,
            int64_t num_samples, BallMethod method, const at::Tensor& result) {
  SimplexSampleBallArguments<T> arguments{};
  arguments.key = static_cast<uint64_t>(*key.const_data_ptr<int64_t>());
  arguments.method = method;
  arguments.center = center.const_data_ptr<T>();
  arguments.radius = radius.const_data_ptr<double>();
  arguments.radius_each = radius.dim() == 1;
  arguments.size = center.size(-1);
  arguments.num_samples = num_samples;
  arguments.result = result.mutable_data_ptr<T>();

  for (int64_t k = 0; k < radius.numel(); ++k) check_radius(arguments.radius[k]);
  const int64_t centers = center.numel() / arguments.size;
  for (int64_t k = 0; k < centers; ++k) {
    TORCH_CHECK_VALUE(is_center(arguments.center + k * arguments.size, arguments.size),
                      "simplex_sample_ball: center must be finite and not negative and sum to 1 "
                      "within ",
                      kCenterTolerance, "; center ", k, " does not");
  }
  const auto run = std::get<SimplexSampleBallRun<T>>(simplex_sample_ball_kernels());
  // the least points that are worth waking another thread for
  const int64_t grain = std::max<int64_t>(16, 16384 / arguments.size);
  at::parallel_for(0, centers * num_samples, grain,
                   [&](int64_t begin, int64_t end) { run(arguments, begin, end); });
}

at::Tensor simplex_sample_ball(const at::Tensor& key, const at::Tensor& center,
                               const at::Tensor& radius, int64_t num_samples,
                               c10::string_view method) {
  const BallMethod chosen = check_simplex_sample_ball(key, center, radius, num_samples, method);
  c10::DimVector shape(center.sizes().begin(), center.sizes().end());
  shape.insert(shape.end() - 1, num_samples);
  at::Tensor result = at::empty(shape, center.options());
  switch_float_or_double(center.scalar_type(), [&](auto zero) {
    sample<decltype(zero)>(key, center.contiguous(), radius.to(at::kDouble).contiguous(),
                           num_samples, chosen, result);
  });
  return result;
}

}  // namespace
}  // namespace fedkern

TORCH_LIBRARY_IMPL(fedkern, CPU, m) {
  m.impl("simplex_sample_ball", TORCH_FN(fedkern::simplex_sample_ball));
}
