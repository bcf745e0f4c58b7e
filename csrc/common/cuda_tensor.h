#pragma once

// Tensors as the CUDA kernels take them: CUDA's own half types have the same bits as torch's.

#include <ATen/core/Tensor.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace fedkern {

template <typename at_t>
struct CudaType {
  using type = at_t;
};
template <>
struct CudaType<c10::BFloat16> {
  using type = __nv_bfloat16;
};
template <>
struct CudaType<c10::Half> {
  using type = __half;
};
template <typename at_t>
using cuda_t = typename CudaType<at_t>::type;

template <typename at_t>
const cuda_t<at_t>* const_cuda_data(const at::Tensor& tensor) {
  return reinterpret_cast<const cuda_t<at_t>*>(tensor.const_data_ptr<at_t>());
}

template <typename at_t>
cuda_t<at_t>* mutable_cuda_data(const at::Tensor& tensor) {
  return reinterpret_cast<cuda_t<at_t>*>(tensor.mutable_data_ptr<at_t>());
}

}  // namespace fedkern
