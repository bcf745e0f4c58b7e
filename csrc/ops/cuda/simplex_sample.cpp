#include "ops/simplex_sample.h"

#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include "common/switch_dtype.h"
#include "ops/cuda/simplex_sample_kernel.h"

namespace fedkern {
namespace {

at::Tensor simplex_sample(const at::Tensor& key, c10::IntArrayRef size, int64_t num_endpoints,
                          at::ScalarType dtype) {
  check_simplex_sample(key, c10::fromIntArrayRefSlow(size), num_endpoints, dtype);
  const c10::cuda::CUDAGuard guard(key.device());
  c10::DimVector shape(size.begin(), size.end());
  shape.push_back(num_endpoints);
  at::Tensor result = at::empty(shape, key.options().dtype(dtype));
  switch_float_or_double(dtype, [&](auto zero) {
    C10_CUDA_CHECK(simplex_sample_cuda(
        key.const_data_ptr<int64_t>(), result.numel() / num_endpoints, num_endpoints,
        result.mutable_data_ptr<decltype(zero)>(), c10::cuda::getCurrentCUDAStream()));
  });
  return result;
}

}  // namespace
}  // namespace fedkern

TORCH_LIBRARY_IMPL(fedkern, CUDA, m) {
  m.impl("simplex_sample", TORCH_FN(fedkern::simplex_sample));
}
