#pragma once

// For files that are compiled once per CPU capability (common/cpu_capability.h).

#include "common/macros.h"
#include "common/vector.h"

namespace fedkern {

// Lane l: v's lane l + kPlaces, round the vector.

#if defined(CPU_CAPABILITY_AVX512)

template <int kPlaces>
FEDKERN_ALWAYS_INLINE Vector<float> rotated(const Vector<float>& v) {
  const __m512i lanes = _mm512_castps_si512(v);
  return _mm512_castsi512_ps(_mm512_alignr_epi32(lanes, lanes, kPlaces));
}
template <int kPlaces>
FEDKERN_ALWAYS_INLINE Vector<double> rotated(const Vector<double>& v) {
  const __m512i lanes = _mm512_castpd_si512(v);
  return _mm512_castsi512_pd(_mm512_alignr_epi64(lanes, lanes, kPlaces));
}

#elif defined(CPU_CAPABILITY_AVX2)

template <int kPlaces>
FEDKERN_ALWAYS_INLINE Vector<float> rotated(const Vector<float>& v) {
  constexpr int k = kPlaces;
  const __m256i places = _mm256_setr_epi32(k, k + 1, k + 2, k + 3, k + 4, k + 5, k + 6, k + 7);
  return _mm256_permutevar8x32_ps(v, places);  // which counts places modulo 8
}
template <int kPlaces>
FEDKERN_ALWAYS_INLINE Vector<double> rotated(const Vector<double>& v) {
  constexpr int k = kPlaces;
  return _mm256_permute4x64_pd(v, k % 4 | (k + 1) % 4 << 2 | (k + 2) % 4 << 4 | (k + 3) % 4 << 6);
}

#else

template <int kPlaces, typename T>
FEDKERN_ALWAYS_INLINE Vector<T> rotated(const Vector<T>& v) {
  Vector<T> result;
  for (int i = 0; i < v.size(); ++i) result.lanes[i] = v.lanes[(i + kPlaces) % v.size()];
  return result;
}

#endif

}  // namespace fedkern
