#pragma once

// 16 bytes at a time: the widest access of a thread, and what fills the memory's bandwidth.

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>

namespace fedkern {

// Raw bits, which the compiler keeps in four registers; unpack() and pack() tell what they mean.
template <typename scalar_t>
struct alignas(16) Vector {
  static constexpr int kSize = 16 / sizeof(scalar_t);
  uint4 bits;
};

// How many elements lie between `address` and the next 16-byte boundary.
template <typename scalar_t>
__device__ int elements_to_boundary(const scalar_t* address) {
  constexpr int kSize = Vector<scalar_t>::kSize;
  const int past =
      static_cast<int>(reinterpret_cast<uintptr_t>(address) / sizeof(scalar_t) % kSize);
  return (kSize - past) % kSize;
}

// ---- memory <-> vector -------------------------------------------------------------------------

// What many rows need: kept in the L1 cache.
template <typename scalar_t>
__device__ Vector<scalar_t> load_cached(const scalar_t* address) {
  return {*reinterpret_cast<const uint4*>(address)};
}

// What is read once, or once more from the L2 cache: leaves L1 to others.
template <typename scalar_t>
__device__ Vector<scalar_t> load_past_l1(const scalar_t* address) {
  return {__ldcg(reinterpret_cast<const uint4*>(address))};
}

template <typename scalar_t>
__device__ void store_cached(scalar_t* address, const Vector<scalar_t>& vector) {
  *reinterpret_cast<uint4*>(address) = vector.bits;
}

// What this kernel does not read again: the first to leave the caches.
template <typename scalar_t>
__device__ void store_streaming(scalar_t* address, const Vector<scalar_t>& vector) {
  __stcs(reinterpret_cast<uint4*>(address), vector.bits);
}

// Keeps the compiler from knowing what is in the vector, so from keeping what it has computed of
// it.
template <typename scalar_t>
__device__ void make_opaque(Vector<scalar_t>& vector) {
  uint4& bits = vector.bits;
  asm volatile("" : "+r"(bits.x), "+r"(bits.y), "+r"(bits.z), "+r"(bits.w));
}

// ---- vector <-> accumulating type --------------------------------------------------------------

namespace detail {

template <typename To, typename From>
__device__ To bit_cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From), "the same bits");
  To to;
  memcpy(&to, &from, sizeof(to));
  return to;
}

// The elements in 32 or, of float64, 64 bits.
__device__ inline void unpack(uint32_t bits, float (&to)[1], const float*) {
  to[0] = bit_cast<float>(bits);
}
__device__ inline void unpack(uint32_t bits, float (&to)[2], const __nv_bfloat16*) {
  to[0] = bit_cast<float>(bits << 16);
  to[1] = bit_cast<float>(bits & 0xffff0000u);
}
__device__ inline void unpack(uint32_t bits, float (&to)[2], const __half*) {
  const float2 both = __half22float2(bit_cast<__half2>(bits));
  to[0] = both.x;
  to[1] = both.y;
}

__device__ inline uint32_t pack(const float (&from)[1], const float*) {
  return bit_cast<uint32_t>(from[0]);
}
__device__ inline uint32_t pack(const float (&from)[2], const __nv_bfloat16*) {
  return bit_cast<uint32_t>(__floats2bfloat162_rn(from[0], from[1]));
}
__device__ inline uint32_t pack(const float (&from)[2], const __half*) {
  return bit_cast<uint32_t>(__floats2half2_rn(from[0], from[1]));
}

}  // namespace detail

template <typename scalar_t>
__device__ void unpack(const Vector<scalar_t>& from, float (&to)[Vector<scalar_t>::kSize]) {
  constexpr int kEach = Vector<scalar_t>::kSize / 4;
  const uint32_t bits[4] = {from.bits.x, from.bits.y, from.bits.z, from.bits.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    float values[kEach];
    detail::unpack(bits[i], values, static_cast<const scalar_t*>(nullptr));
#pragma unroll
    for (int j = 0; j < kEach; ++j) to[i * kEach + j] = values[j];
  }
}

template <typename scalar_t>
__device__ Vector<scalar_t> pack(const float (&from)[Vector<scalar_t>::kSize]) {
  constexpr int kEach = Vector<scalar_t>::kSize / 4;
  uint32_t bits[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    float values[kEach];
#pragma unroll
    for (int j = 0; j < kEach; ++j) values[j] = from[i * kEach + j];
    bits[i] = detail::pack(values, static_cast<const scalar_t*>(nullptr));
  }
  return {{bits[0], bits[1], bits[2], bits[3]}};
}

// float64, in the same way.
__device__ inline void unpack(const Vector<double>& from, double (&to)[2]) {
  memcpy(to, &from, sizeof(to));
}

template <typename scalar_t>
__device__ Vector<double> pack(const double (&from)[2]) {
  return detail::bit_cast<Vector<double>>(from);
}

}  // namespace fedkern
