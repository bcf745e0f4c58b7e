#pragma once

// Lanes as bits of an integer, lane i as bit i: comparisons to bits, and bits to what they select.
//
// For files that are compiled once per CPU capability (common/cpu_capability.h).

#include <cstdint>

#include "common/macros.h"
#include "common/vector.h"

namespace fedkern {

// The bits of the first `count` lanes, at most 32.
FEDKERN_ALWAYS_INLINE uint32_t first_bits(int64_t count) {
  return static_cast<uint32_t>((uint64_t{1} << count) - 1);
}

// greater(a, b): a > b, so not where either is nan. above(a, b): not a <= b, so also where either
// is nan. select(bits, v): v, and 0 where a bit is not set. append(bits, v, to): writes the lanes
// whose bits are set next to each other, nothing beyond, and returns how many.
#if defined(CPU_CAPABILITY_AVX512)

FEDKERN_ALWAYS_INLINE uint32_t greater(const Vector<float>& a, const Vector<float>& b) {
  return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ);
}
FEDKERN_ALWAYS_INLINE uint32_t greater(const Vector<double>& a, const Vector<double>& b) {
  return _mm512_cmp_pd_mask(a, b, _CMP_GT_OQ);
}
FEDKERN_ALWAYS_INLINE uint32_t above(const Vector<float>& a, const Vector<float>& b) {
  return _mm512_cmp_ps_mask(a, b, _CMP_NLE_UQ);
}
FEDKERN_ALWAYS_INLINE uint32_t above(const Vector<double>& a, const Vector<double>& b) {
  return _mm512_cmp_pd_mask(a, b, _CMP_NLE_UQ);
}

FEDKERN_ALWAYS_INLINE Vector<float> select(uint32_t bits, const Vector<float>& v) {
  return _mm512_maskz_mov_ps(static_cast<__mmask16>(bits), v);
}
FEDKERN_ALWAYS_INLINE Vector<double> select(uint32_t bits, const Vector<double>& v) {
  return _mm512_maskz_mov_pd(static_cast<__mmask8>(bits), v);
}

// Compressed in a register: compressing stores are slow on some processors.
FEDKERN_ALWAYS_INLINE int64_t append(uint32_t bits, const Vector<float>& v, float* to) {
  const int64_t count = __builtin_popcount(bits);
  Vector<float>(_mm512_maskz_compress_ps(static_cast<__mmask16>(bits), v)).store(to, count);
  return count;
}
FEDKERN_ALWAYS_INLINE int64_t append(uint32_t bits, const Vector<double>& v, double* to) {
  const int64_t count = __builtin_popcount(bits);
  Vector<double>(_mm512_maskz_compress_pd(static_cast<__mmask8>(bits), v)).store(to, count);
  return count;
}

#else

#if defined(CPU_CAPABILITY_AVX2)

FEDKERN_ALWAYS_INLINE uint32_t greater(const Vector<float>& a, const Vector<float>& b) {
  return _mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GT_OQ));
}
FEDKERN_ALWAYS_INLINE uint32_t greater(const Vector<double>& a, const Vector<double>& b) {
  return _mm256_movemask_pd(_mm256_cmp_pd(a, b, _CMP_GT_OQ));
}
FEDKERN_ALWAYS_INLINE uint32_t above(const Vector<float>& a, const Vector<float>& b) {
  return _mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_NLE_UQ));
}
FEDKERN_ALWAYS_INLINE uint32_t above(const Vector<double>& a, const Vector<double>& b) {
  return _mm256_movemask_pd(_mm256_cmp_pd(a, b, _CMP_NLE_UQ));
}

FEDKERN_ALWAYS_INLINE Vector<float> select(uint32_t bits, const Vector<float>& v) {
  const __m256i lane = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  const __m256i set = _mm256_and_si256(_mm256_set1_epi32(static_cast<int>(bits)), lane);
  return _mm256_and_ps(v, _mm256_castsi256_ps(_mm256_cmpeq_epi32(set, lane)));
}
FEDKERN_ALWAYS_INLINE Vector<double> select(uint32_t bits, const Vector<double>& v) {
  const __m256i lane = _mm256_setr_epi64x(1, 2, 4, 8);
  const __m256i set = _mm256_and_si256(_mm256_set1_epi64x(bits), lane);
  return _mm256_and_pd(v, _mm256_castsi256_pd(_mm256_cmpeq_epi64(set, lane)));
}

#else

template <typename T>
FEDKERN_ALWAYS_INLINE uint32_t greater(const Vector<T>& a, const Vector<T>& b) {
  uint32_t bits = 0;
  for (int i = 0; i < a.size(); ++i) bits |= uint32_t{a.lanes[i] > b.lanes[i]} << i;
  return bits;
}
template <typename T>
FEDKERN_ALWAYS_INLINE uint32_t above(const Vector<T>& a, const Vector<T>& b) {
  uint32_t bits = 0;
  for (int i = 0; i < a.size(); ++i) bits |= uint32_t{!(a.lanes[i] <= b.lanes[i])} << i;
  return bits;
}

template <typename T>
FEDKERN_ALWAYS_INLINE Vector<T> select(uint32_t bits, const Vector<T>& v) {
  Vector<T> selected(T(0));
  for (int i = 0; i < v.size(); ++i) selected.lanes[i] = bits >> i & 1 ? v.lanes[i] : T(0);
  return selected;
}

#endif

template <typename T>
FEDKERN_ALWAYS_INLINE int64_t append(uint32_t bits, const Vector<T>& v, T* to) {
  alignas(64) T lanes[Vector<T>::size()];
  v.store(lanes);
  int64_t count = 0;
  for (; bits; bits &= bits - 1) to[count++] = lanes[__builtin_ctz(bits)];
  return count;
}

#endif

}  // namespace fedkern
