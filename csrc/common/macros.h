#pragma once

// Never a function of its own in the object file. The same header is compiled for several CPU
// capabilities; of equal functions the linker keeps one, and it must not be the AVX-512 one.
#define FEDKERN_ALWAYS_INLINE inline __attribute__((always_inline))

// Marks a formula that the CPU and the CUDA kernels share.
#if defined(__CUDACC__)
#define FEDKERN_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define FEDKERN_HOST_DEVICE FEDKERN_ALWAYS_INLINE
#endif

// Before a loop of fixed length: no loop is left of it. nvcc compiles for the host, too, and
// neither of its two front ends there knows the other's pragma.
#if defined(__CUDA_ARCH__)
#define FEDKERN_UNROLL _Pragma("unroll")
#elif defined(__CUDACC__)
#define FEDKERN_UNROLL
#else
#define FEDKERN_UNROLL _Pragma("GCC unroll 16")
#endif
