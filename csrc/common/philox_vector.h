#pragma once

// philox for sixteen lanes, in registers. Of multiply_high in a loop compilers make products of 64
// by 64 bits, which take several times as long as those of 32 by 32.
//
// For files that are compiled once per CPU capability (common/cpu_capability.h).

#include <cstdint>
#include <cstring>

#include "common/philox.h"

#if defined(__SSE2__)
#include <immintrin.h>

namespace fedkern {
namespace detail {

// A register of 32-bit lanes, two in each element. products: of the even lanes, 64 bits each. mix:
// the even lanes of one, the odd lanes of another.
#if defined(CPU_CAPABILITY_AVX512)
typedef uint64_t Lanes __attribute__((vector_size(64)));
FEDKERN_ALWAYS_INLINE Lanes products(Lanes a, Lanes b) {
  return (Lanes)_mm512_mul_epu32((__m512i)a, (__m512i)b);
}
FEDKERN_ALWAYS_INLINE Lanes mix(Lanes even, Lanes odd) {
  return (Lanes)_mm512_mask_blend_epi32(0xaaaa, (__m512i)even, (__m512i)odd);
}
#elif defined(CPU_CAPABILITY_AVX2)
typedef uint64_t Lanes __attribute__((vector_size(32)));
FEDKERN_ALWAYS_INLINE Lanes products(Lanes a, Lanes b) {
  return (Lanes)_mm256_mul_epu32((__m256i)a, (__m256i)b);
}
FEDKERN_ALWAYS_INLINE Lanes mix(Lanes even, Lanes odd) {
  return (Lanes)_mm256_blend_epi32((__m256i)even, (__m256i)odd, 0xaa);
}
#else
typedef uint64_t Lanes __attribute__((vector_size(16)));
FEDKERN_ALWAYS_INLINE Lanes products(Lanes a, Lanes b) {
  return (Lanes)_mm_mul_epu32((__m128i)a, (__m128i)b);
}
FEDKERN_ALWAYS_INLINE Lanes mix(Lanes even, Lanes odd) {
  return (even & 0xffffffff) | (odd & ~uint64_t{0xffffffff});
}
#endif

FEDKERN_ALWAYS_INLINE Lanes all_lanes(uint32_t x) { return Lanes{} + (uint64_t{x} << 32 | x); }

FEDKERN_ALWAYS_INLINE Lanes load(const uint32_t* from) {
  Lanes x;
  std::memcpy(&x, from, sizeof(Lanes));
  return x;
}
FEDKERN_ALWAYS_INLINE void store(uint32_t* to, Lanes x) { std::memcpy(to, &x, sizeof(Lanes)); }

FEDKERN_ALWAYS_INLINE void multiply(Lanes a, Lanes b, Lanes& high, Lanes& low) {
  const Lanes even = products(a, b), odd = products(a >> 32, b);
  high = mix(even >> 32, odd);
  low = mix(even, odd << 32);
}

}  // namespace detail

template <>
FEDKERN_ALWAYS_INLINE void philox<16>(uint32_t (&words)[4][16], uint64_t key) {
  using detail::Lanes;
  constexpr int kWidth = sizeof(Lanes) / sizeof(uint32_t);
  const Lanes multiplier0 = detail::all_lanes(Philox::kMultiplier0);
  const Lanes multiplier1 = detail::all_lanes(Philox::kMultiplier1);
  for (int l = 0; l < 16; l += kWidth) {
    Lanes x0 = detail::load(words[0] + l), x1 = detail::load(words[1] + l);
    Lanes x2 = detail::load(words[2] + l), x3 = detail::load(words[3] + l);
    uint32_t key0 = static_cast<uint32_t>(key), key1 = static_cast<uint32_t>(key >> 32);
    FEDKERN_UNROLL
    for (int round = 0; round < Philox::kRounds; ++round) {
      Lanes high0, low0, high1, low1;
      detail::multiply(x0, multiplier0, high0, low0);
      detail::multiply(x2, multiplier1, high1, low1);
      x0 = high1 ^ x1 ^ detail::all_lanes(key0);
      x1 = low1;
      x2 = high0 ^ x3 ^ detail::all_lanes(key1);
      x3 = low0;
      key0 += Philox::kStep0;
      key1 += Philox::kStep1;
    }
    detail::store(words[0] + l, x0);
    detail::store(words[1] + l, x1);
    detail::store(words[2] + l, x2);
    detail::store(words[3] + l, x3);
  }
}

}  // namespace fedkern

#endif
