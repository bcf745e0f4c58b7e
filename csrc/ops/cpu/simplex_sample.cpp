#include "ops/simplex_sample.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>

#include "common/switch_dtype.h"
#include "ops/cpu/simplex_sample_kernel.h"

namespace fedkern {
namespace {

template <typename T>
void sample(const at::Tensor& key, const at::Tensor& result) {
  SimplexSampleArguments<T> arguments{};
  arguments.key = static_cast<uint64_t>(*key.const_data_ptr<int64_t>());
  arguments.size = result.size(-1);
  arguments.result = result.mutable_data_ptr<T>();
  const auto run = std::get<SimplexSampleRun<T>>(simplex_sample_kernels());
  // the least points that are worth waking another thread for
  const int64_t grain = std::max<int64_t>(16, 16384 / arguments.size);
  at::parallel_for(0, result.numel() / arguments.size, grain,
                   [&](int64_t begin, int64_t end) { run(arguments, begin, end); });
}

at::Tensor simplex_sample(const at::Tensor& key, c10::IntArrayRef size, int64_t num_endpoints,
                          at::ScalarType dtype) {
  check_simplex_sample(key, c10::fromIntArrayRefSlow(size), num_endpoints, dtype);
  c10::DimVector shape(size.begin(), size.end());
  shape.push_back(num_endpoints);
  at::Tensor result = at::empty(shape, key.options().dtype(dtype));
  switch_float_or_double(dtype, [&](auto zero) { sample<decltype(zero)>(key, result); });
  return result;
}

}  // namespace
}  // namespace fedkern

TORCH_LIBRARY_IMPL(fedkern, CPU, m) { m.impl("simplex_sample", TORCH_FN(fedkern::simplex_sample)); }
