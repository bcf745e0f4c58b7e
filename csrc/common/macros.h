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

// Before a loop of fixed length: no loop is left of it.
#if defined(__CUDACC__)
#define FEDKERN_UNROLL _Pragma("unroll")
#else
#define FEDKERN_UNROLL _Pragma("GCC unroll 16")
#endif
