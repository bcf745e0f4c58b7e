#include "ops/simplex_sample_ball.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/scalar_tensor.h>
#include <torch/library.h>

namespace fedkern {

at::Tensor call_simplex_sample_ball(const at::Tensor& center,
                                    const std::variant<double, at::Tensor>& radius,
                                    int64_t num_samples, std::string_view method,
                                    std::optional<at::Generator> generator) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("fedkern::simplex_sample_ball", "")
                             .typed<at::Tensor(const at::Tensor&, const at::Tensor&,
                                               const at::Tensor&, c10::SymInt, c10::string_view)>();
  const double* number = std::get_if<double>(&radius);
  // The points are constants: no derivative, and no warning that there is none.
  return op.call(draw_key(std::move(generator), center.device()),
                 center.requires_grad() ? center.detach() : center,
                 number ? at::scalar_tensor(*number, at::kDouble) : std::get<at::Tensor>(radius),
                 num_samples, method);
}

namespace {

at::Tensor simplex_sample_ball_meta(const at::Tensor& key, const at::Tensor& center,
                                    const at::Tensor& radius, c10::SymInt num_samples,
                                    c10::string_view method) {
  check_simplex_sample_ball(key, center, radius, num_samples, method);
  return at::empty_symint(sample_ball_shape(center, num_samples), center.options());
}

}  // namespace
}  // namespace fedkern

TORCH_LIBRARY_IMPL(fedkern, Meta, m) {
  m.impl("simplex_sample_ball", TORCH_FN(fedkern::simplex_sample_ball_meta));
}
