// Small kernels for the emulator's own tests: right ones, and ones with a fault that a GPU would
// not always show. All take (input, output, size); blocks are one-dimensional.

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <map>
#include <utility>

#include "common/cuda_launch.h"
#include "common/cuda_reduce.cuh"
#include "planted.h"

namespace planted {
namespace {

constexpr unsigned kAll = 0xffffffffu;

// ---- right -------------------------------------------------------------------------------------

__global__ void block_sums(const float* input, float* output, int size) {
  float sum = 0;
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < size; i += gridDim.x * blockDim.x) {
    sum += input[i];
  }
  sum = fedkern::block_sum<128>(sum);
  if (threadIdx.x == 0) output[blockIdx.x] = sum;
}

__global__ void positions(const int*, int* output, int) {
  const unsigned block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  const unsigned thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  output[block * blockDim.x * blockDim.y * blockDim.z + thread] += 1;
}

// One row of 32 results per operation.
__global__ void warp_collectives(const int* input, int* output, int) {
  const int lane = threadIdx.x, value = input[lane];
  int row = 0;
  const auto write = [&](int result) { output[row++ * 32 + lane] = result; };
  write(__shfl_sync(kAll, value, 5));
  write(__shfl_sync(kAll, value, lane + 1, 8));
  write(__shfl_up_sync(kAll, value, 3));
  write(__shfl_up_sync(kAll, value, 3, 8));
  write(__shfl_down_sync(kAll, value, 3));
  write(__shfl_down_sync(kAll, value, 3, 8));
  write(__shfl_xor_sync(kAll, value, 5));
  write(__shfl_xor_sync(kAll, value, 8, 8));
  write(static_cast<int>(__ballot_sync(kAll, value % 2)));
  write(__any_sync(kAll, value == input[7]));
  write(__all_sync(kAll, value >= 0));
  write(__reduce_add_sync(kAll, value));
  write(__reduce_max_sync(kAll, value));
  write(static_cast<int>(__match_any_sync(kAll, value % 4)));
  write(__syncthreads_count(value % 2));
  write(__syncthreads_or(value == input[7]));
  write(__syncthreads_and(value >= 0));
  // Halves of a warp may go different ways under masks of their own.
  if (lane < 16) {
    write(__shfl_xor_sync(0x0000ffffu, value, 1));
    __syncwarp();
  } else {
    write(__reduce_add_sync(0xffff0000u, value));
    __syncwarp();
  }
}

// double and half types are exchanged as they are.
__global__ void shuffled_types(const double* input, double* output, int) {
  const double value = input[threadIdx.x];
  output[threadIdx.x] = __shfl_xor_sync(kAll, value, 1) +
                        static_cast<float>(__shfl_xor_sync(kAll, __float2half(value), 1)) +
                        static_cast<float>(__shfl_xor_sync(kAll, __float2bfloat16(value), 1));
}

template <typename T>
__global__ void reversed_in_shared(const T* input, T* output, int size) {
  FEDKERN_DYNAMIC_SHARED(T, shared);
  const int i = threadIdx.x;
  shared[i] = input[i];
  __syncthreads();
  output[i] = shared[size - 1 - i];
}

__global__ void atomics(const int* input, int* output, int size) {
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < size; i += gridDim.x * blockDim.x) {
    atomicAdd(&output[0], input[i]);
    atomicMax(&output[1], input[i]);
    atomicMin(&output[2], input[i]);
    atomicXor(&output[3], input[i]);
    if (atomicCAS(&output[4], 0, 1) == 0) atomicAdd(&output[5], 1);
    atomicInc(reinterpret_cast<unsigned*>(&output[6]), 9);
    atomicAdd(reinterpret_cast<float*>(&output[7]), 0.5f);
  }
}

template <typename From, typename To>
__global__ void convert(const From* input, To* output, int size) {
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < size; i += gridDim.x * blockDim.x) {
    output[i] = static_cast<To>(input[i]);
  }
}

__global__ void vector_copy(const float4* input, float4* output, int size) {
  for (int i = threadIdx.x; i < size; i += blockDim.x) {
#if defined(FEDKERN_CUDA_EMULATOR)
    cuda_emulator::check_aligned(&input[i], sizeof(float4));
#endif
    const float4 value = input[i];
    __stcs(&output[i], value);
  }
}

// ---- wrong -------------------------------------------------------------------------------------

__global__ void missing_barrier(const float* input, float* output, int size) {
  FEDKERN_DYNAMIC_SHARED(float, shared);
  const int i = threadIdx.x;
  shared[i] = input[i];
  output[i] = shared[size - 1 - i];  // of a thread that may not have written yet
}

// The second write may overtake the first read; each value read was written, but perhaps too late.
__global__ void missing_second_barrier(const float* input, float* output, int size) {
  FEDKERN_DYNAMIC_SHARED(float, shared);
  const int i = threadIdx.x;
  shared[i] = input[i];
  __syncthreads();
  const float sum = shared[size - 1 - i];
  shared[i] = 2 * input[i];
  __syncthreads();
  output[i] = sum + shared[size - 1 - i];
}

__global__ void uninitialised_static(const float*, float* output, int) {
  __shared__ float shared[32];
  if (threadIdx.x % 2 == 0) shared[threadIdx.x] = 1;
  __syncthreads();
  output[threadIdx.x] = shared[threadIdx.x];
}

__global__ void uninitialised_dynamic(const float*, float* output, int) {
  FEDKERN_DYNAMIC_SHARED(float, shared);
  if (threadIdx.x % 2 == 0) shared[threadIdx.x] = 1;
  __syncthreads();
  output[threadIdx.x] = shared[threadIdx.x];
}

__global__ void barrier_of_some(const float*, float*, int size) {
  if (static_cast<int>(threadIdx.x) < size) __syncthreads();
}

__global__ void barriers_of_two_branches(const float*, float*, int) {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}

__global__ void barrier_meets_shuffle(const float*, float* output, int) {
  if (threadIdx.x == 0) __syncthreads();
  output[threadIdx.x] = __shfl_xor_sync(kAll, 1.0f, 1);
}

__global__ void shuffle_without_some(const float*, float* output, int size) {
  if (static_cast<int>(threadIdx.x) >= size) return;
  output[threadIdx.x] = __shfl_down_sync(kAll, 1.0f, 1);
}

__global__ void shuffle_meets_ballot(const float*, float* output, int) {
  if (threadIdx.x % 2) {
    output[threadIdx.x] = __shfl_xor_sync(kAll, 1.0f, 2);
  } else {
    output[threadIdx.x] = static_cast<float>(__ballot_sync(kAll, 1));
  }
}

__global__ void shuffles_of_two_branches(const float*, float* output, int) {
  if (threadIdx.x % 2) {
    output[threadIdx.x] = __shfl_sync(kAll, 1.0f, 0);
  } else {
    output[threadIdx.x] = __shfl_sync(kAll, 2.0f, 0);
  }
}

__global__ void masks_differ(const float*, float* output, int) {
  const unsigned mask = threadIdx.x == 0 ? 0x7fffffffu : kAll;
  output[threadIdx.x] = __shfl_xor_sync(mask, 1.0f, 1);
}

__global__ void caller_not_in_mask(const float*, float* output, int) {
  output[threadIdx.x] = __shfl_xor_sync(0x0000ffffu, 1.0f, 1);
}

__global__ void width_of_three(const float*, float* output, int) {
  output[threadIdx.x] = __shfl_xor_sync(kAll, 1.0f, 1, 3);
}

__global__ void past_dynamic_shared(const float*, float*, int size) {
  FEDKERN_DYNAMIC_SHARED(float, shared);
  shared[static_cast<int>(threadIdx.x) + size] = 1;
}

template <int kSize>
__global__ void past_static_shared(const float*, float* output, int size) {
  __shared__ float shared[kSize];
  float* volatile address = shared;  // so that only the address can give it away
  address[static_cast<int>(threadIdx.x) + size] = 1;
  __syncthreads();
  output[threadIdx.x] = address[threadIdx.x];
}

__global__ void past_local_array(const float*, float* output, int size) {
  float local[4];
  float* volatile address = local;
  address[size] = 1;
  __syncthreads();
  output[threadIdx.x] = address[0];
}

__global__ void past_global_memory(const float*, float* output, int size) {
  output[static_cast<int>(threadIdx.x) + size] = 1;
}

__global__ void unchecked_vector_load(const float*, float* output, int size) {
  FEDKERN_DYNAMIC_SHARED(float, shared);
  output[threadIdx.x] = reinterpret_cast<const float4*>(shared + size)->x;
}

__global__ void asserts(const float* input, float* output, int) {
  assert(input[threadIdx.x] >= 0 && "input must not be negative");
  output[threadIdx.x] = 1;
}

__global__ void traps(const float*, float*, int) {
  if (threadIdx.x == 3) __trap();
}

// ---- their launches ----------------------------------------------------------------------------

struct Kernel {
  void (*launch)(dim3 grid, dim3 block, std::size_t shared_bytes, const void* input, void* output,
                 int size);
  const void* address;
};

template <typename Input, typename Output>
std::pair<Input, Output> as_arguments(void (*)(Input, Output, int), const void* input,
                                      void* output) {
  return {static_cast<Input>(input), static_cast<Output>(output)};
}

// The name of a kernel, as written, and how it is launched.
#define KERNEL(kernel)                                                                     \
  {                                                                                        \
    #kernel, {                                                                             \
      [](dim3 grid, dim3 block, std::size_t shared_bytes, const void* input, void* output, \
         int size) {                                                                       \
        const auto arguments = as_arguments(kernel, input, output);                        \
        FEDKERN_LAUNCH(kernel, grid, block, shared_bytes, nullptr, arguments.first,        \
                       arguments.second, size);                                            \
      },                                                                                   \
          reinterpret_cast<const void*>(kernel)                                            \
    }                                                                                      \
  }

const std::map<std::string, Kernel>& kernels() {
  static const std::map<std::string, Kernel> kernels = {
      KERNEL(block_sums),
      KERNEL(positions),
      KERNEL(warp_collectives),
      KERNEL(shuffled_types),
      KERNEL(reversed_in_shared<float>),
      KERNEL(reversed_in_shared<double>),
      KERNEL(atomics),
      KERNEL((convert<__half, float>)),
      KERNEL((convert<__nv_bfloat16, float>)),
      KERNEL((convert<float, __half>)),
      KERNEL((convert<float, __nv_bfloat16>)),
      KERNEL((convert<double, __half>)),
      KERNEL((convert<double, __nv_bfloat16>)),
      KERNEL(vector_copy),
      KERNEL(missing_barrier),
      KERNEL(missing_second_barrier),
      KERNEL(uninitialised_static),
      KERNEL(uninitialised_dynamic),
      KERNEL(barrier_of_some),
      KERNEL(barriers_of_two_branches),
      KERNEL(barrier_meets_shuffle),
      KERNEL(shuffle_without_some),
      KERNEL(shuffle_meets_ballot),
      KERNEL(shuffles_of_two_branches),
      KERNEL(masks_differ),
      KERNEL(caller_not_in_mask),
      KERNEL(width_of_three),
      KERNEL(past_dynamic_shared),
      KERNEL(past_static_shared<32>),
      KERNEL(past_local_array),
      KERNEL(past_global_memory),
      KERNEL(unchecked_vector_load),
      KERNEL(asserts),
      KERNEL(traps),
  };
  return kernels;
}

dim3 size_of(Size size) { return dim3(size[0], size[1], size[2]); }

}  // namespace

std::string launch(const std::string& kernel, Size grid, Size block, std::size_t shared_bytes,
                   std::uintptr_t input, std::uintptr_t output, int size) {
  kernels().at(kernel).launch(size_of(grid), size_of(block), shared_bytes,
                              reinterpret_cast<const void*>(input), reinterpret_cast<void*>(output),
                              size);
  return last_error();
}

std::string allow_shared_bytes(const std::string& kernel, int bytes) {
  return cudaGetErrorString(cudaFuncSetAttribute(
      kernels().at(kernel).address, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
}

std::string last_error() { return cudaGetErrorString(cudaGetLastError()); }

}  // namespace planted
