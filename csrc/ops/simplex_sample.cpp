#include "ops/simplex_sample.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/randint.h>
#include <c10/core/DefaultDtype.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/library.h>

#include <limits>

namespace fedkern {

at::Tensor draw_key(std::optional<at::Generator> generator, at::Device device) {
  using Limits = std::numeric_limits<int64_t>;
  const at::AutoDispatchBelowADInplaceOrView below_autograd;  // a key has no derivative
  const at::Device source = generator && generator->defined() ? generator->device() : device;
  const at::Tensor key = at::randint(Limits::min(), Limits::max(), {}, std::move(generator),
                                     at::TensorOptions().dtype(at::kLong).device(source));
  return source == device ? key : key.to(device, /*non_blocking=*/true);
}

at::Tensor call_simplex_sample(int64_t num_endpoints, at::IntArrayRef size,
                               std::optional<at::Generator> generator,
                               std::optional<at::Device> device,
                               std::optional<at::ScalarType> dtype) {
  static const auto op =
      c10::Dispatcher::singleton()
          .findSchemaOrThrow("fedkern::simplex_sample", "")
          .typed<at::Tensor(const at::Tensor&, c10::SymIntArrayRef, c10::SymInt, at::ScalarType)>();
  const at::Tensor key = draw_key(std::move(generator), device.value_or(at::kCPU));
  return op.call(key, c10::fromIntArrayRefSlow(size), num_endpoints,
                 dtype.value_or(c10::get_default_dtype_as_scalartype()));
}

namespace {

at::Tensor simplex_sample_meta(const at::Tensor& key, c10::SymIntArrayRef size,
                               c10::SymInt num_endpoints, at::ScalarType dtype) {
  check_simplex_sample(key, size, num_endpoints, dtype);
  c10::SymDimVector shape(size.begin(), size.end());
  shape.push_back(std::move(num_endpoints));
  return at::empty_symint(shape, key.options().dtype(dtype));
}

}  // namespace
}  // namespace fedkern

TORCH_LIBRARY_IMPL(fedkern, Meta, m) {
  m.impl("simplex_sample", TORCH_FN(fedkern::simplex_sample_meta));
}
