#pragma once

// Marks a formula that the CPU and the CUDA kernels share.
#if defined(__CUDACC__)
#define FEDKERN_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define FEDKERN_HOST_DEVICE inline
#endif
