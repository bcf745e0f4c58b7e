#pragma once

// exp(x) for x <= 0 in vectors, inlined: a call of a vector library would spill every register.
//
// n = round(x / ln 2) and r = x - n ln 2, with ln 2 in two parts, so |r| <= ln 2 / 2; then
// exp(x) = 2^n (1 + r + r^2 q(r)), q a minimax polynomial. Twelve operations in float, seventeen in
// double. Errors are below 1 ulp (1.1 without fused multiplication and addition). Results below the
// least normal number are 0, nan stays nan.
//
// For files that are compiled once per CPU capability (common/cpu_capability.h).

#include <cstdint>
#include <iterator>

#include "common/macros.h"
#include "common/vector.h"

namespace fedkern {

template <typename T>
struct ExpConstants;

template <>
struct ExpConstants<float> {
  static constexpr int kMantissaBits = 23, kBias = 127;
  static constexpr float kLowest = -88.03f;  // a little below -127 ln 2: the power of two becomes 0
  static constexpr float kLn2High = 0x1.62e4p-1f, kLn2Low = 0x1.7f7d1cp-20f;
  // 1 and 1 of 1 + r first, so that the last two steps round like exact sums. Highest first.
  static constexpr float kPolynomial[] = {
      0x1.6a2342p-10f, 0x1.123a6cp-7f, 0x1.5558f4p-5f, 0x1.555490p-3f, 0x1.fffffcp-2f, 1, 1};
  // A step less, for 16-bit types, which see nothing of it: errors are below 2 ulp of float.
  static constexpr float kShortPolynomial[] = {
      0x1.10623p-7f, 0x1.572aep-5f, 0x1.5557bp-3f, 0x1.fffdfap-2f, 1, 1};
};

template <>
struct ExpConstants<double> {
  static constexpr int kMantissaBits = 52, kBias = 1023;
  static constexpr double kLowest = -709.1;
  static constexpr double kLn2High = 0x1.62e42feep-1, kLn2Low = 0x1.a39ef35793c76p-33;
  static constexpr double kPolynomial[] = {0x1.ad7f80e6667c4p-26,
                                           0x1.28ad74417fd98p-22,
                                           0x1.71df254981ce7p-19,
                                           0x1.a0199a0aa93abp-16,
                                           0x1.a01a012a5a00ep-13,
                                           0x1.6c16c1842aca2p-10,
                                           0x1.1111111127be5p-7,
                                           0x1.5555555550879p-5,
                                           0x1.55555555554fap-3,
                                           0x1.000000000000ap-1,
                                           1,
                                           1};
};

// Below it exp_nonpositive is 0; its argument must not be less.
template <typename T>
constexpr T kExpLowest = ExpConstants<T>::kLowest;

namespace detail {

// The bits of each lane moved up to the exponent's place.
#if defined(CPU_CAPABILITY_AVX512)
FEDKERN_ALWAYS_INLINE __m512 to_exponent(__m512 v) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(v), 23));
}
FEDKERN_ALWAYS_INLINE __m512d to_exponent(__m512d v) {
  return _mm512_castsi512_pd(_mm512_slli_epi64(_mm512_castpd_si512(v), 52));
}
#elif defined(CPU_CAPABILITY_AVX2)
FEDKERN_ALWAYS_INLINE __m256 to_exponent(__m256 v) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(v), 23));
}
FEDKERN_ALWAYS_INLINE __m256d to_exponent(__m256d v) {
  return _mm256_castsi256_pd(_mm256_slli_epi64(_mm256_castpd_si256(v), 52));
}
#else
template <typename T>
FEDKERN_ALWAYS_INLINE Vector<T> to_exponent(Vector<T> v) {
  using V = Vector<T>;
  return {(typename V::Lanes)((typename V::Bits)v.lanes << ExpConstants<T>::kMantissaBits)};
}
#endif

}  // namespace detail

// kExpLowest <= x <= 0 or nan.
template <bool kShort, typename T>
FEDKERN_ALWAYS_INLINE Vector<T> exp_nonpositive(const Vector<T>& x) {
  using V = Vector<T>;
  using K = ExpConstants<T>;
  // Adding a number of this size rounds to integers and leaves n + bias in the lowest bits.
  constexpr T kRounder = 3 * (int64_t{1} << (K::kMantissaBits - 1)) + K::kBias;
  const V shifted = fmadd(x, V(static_cast<T>(1.4426950408889634)), V(kRounder));
  const V n = shifted - V(kRounder);
  const V r = fmadd(n, V(-K::kLn2Low), fmadd(n, V(-K::kLn2High), x));
  const auto polynomial = [&r](const auto& coefficients) {
    V p(coefficients[0]);
    for (size_t i = 1; i < std::size(coefficients); ++i) p = fmadd(p, r, V(coefficients[i]));
    return p;
  };
  V p;
  if constexpr (kShort) {
    p = polynomial(K::kShortPolynomial);
  } else {
    p = polynomial(K::kPolynomial);
  }
  return p * V(detail::to_exponent(shifted));
}

}  // namespace fedkern
