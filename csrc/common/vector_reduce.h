#pragma once

// From a vector's lanes to one number, or to double and back.
//
// For files that are compiled once per CPU capability (common/cpu_capability.h).

#include "common/macros.h"
#include "common/vector.h"

namespace fedkern {

// The lanes in double: as many vectors as that takes.
template <typename T>
struct Wide {
  static constexpr int kParts = sizeof(double) / sizeof(T);
  Vector<double> part[kParts];
};

FEDKERN_ALWAYS_INLINE Wide<double> widen(const Vector<double>& v) { return {v}; }
FEDKERN_ALWAYS_INLINE Vector<double> narrow(const Wide<double>& v) { return v.part[0]; }

#if defined(CPU_CAPABILITY_AVX512)

FEDKERN_ALWAYS_INLINE float max_of_lanes(const Vector<float>& v) { return _mm512_reduce_max_ps(v); }
FEDKERN_ALWAYS_INLINE double max_of_lanes(const Vector<double>& v) {
  return _mm512_reduce_max_pd(v);
}
FEDKERN_ALWAYS_INLINE double sum_of_lanes(const Vector<double>& v) {
  return _mm512_reduce_add_pd(v);
}
FEDKERN_ALWAYS_INLINE float quick_sum_of_lanes(const Vector<float>& v) {
  return _mm512_reduce_add_ps(v);
}
FEDKERN_ALWAYS_INLINE Wide<float> widen(const Vector<float>& v) {
  return {_mm512_cvtps_pd(_mm512_castps512_ps256(v)),
          _mm512_cvtps_pd(_mm512_extractf32x8_ps(v, 1))};
}
FEDKERN_ALWAYS_INLINE Vector<float> narrow(const Wide<float>& v) {
  return _mm512_insertf32x8(_mm512_castps256_ps512(_mm512_cvtpd_ps(v.part[0])),
                            _mm512_cvtpd_ps(v.part[1]), 1);
}

#elif defined(CPU_CAPABILITY_AVX2)

FEDKERN_ALWAYS_INLINE float max_of_lanes(const Vector<float>& v) {
  const __m128 four = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}
FEDKERN_ALWAYS_INLINE double max_of_lanes(const Vector<double>& v) {
  const __m128d two = _mm_max_pd(_mm256_castpd256_pd128(v), _mm256_extractf128_pd(v, 1));
  return _mm_cvtsd_f64(_mm_max_sd(two, _mm_unpackhi_pd(two, two)));
}
FEDKERN_ALWAYS_INLINE double sum_of_lanes(const Vector<double>& v) {
  const __m128d two = _mm_add_pd(_mm256_castpd256_pd128(v), _mm256_extractf128_pd(v, 1));
  return _mm_cvtsd_f64(_mm_add_sd(two, _mm_unpackhi_pd(two, two)));
}
FEDKERN_ALWAYS_INLINE float quick_sum_of_lanes(const Vector<float>& v) {
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
FEDKERN_ALWAYS_INLINE Wide<float> widen(const Vector<float>& v) {
  return {_mm256_cvtps_pd(_mm256_castps256_ps128(v)), _mm256_cvtps_pd(_mm256_extractf128_ps(v, 1))};
}
FEDKERN_ALWAYS_INLINE Vector<float> narrow(const Wide<float>& v) {
  return _mm256_set_m128(_mm256_cvtpd_ps(v.part[1]), _mm256_cvtpd_ps(v.part[0]));
}

#else

template <typename T>
FEDKERN_ALWAYS_INLINE T max_of_lanes(const Vector<T>& v) {
  T most = v.lanes[0];
  for (int i = 1; i < v.size(); ++i) most = v.lanes[i] > most ? v.lanes[i] : most;
  return most;
}
FEDKERN_ALWAYS_INLINE double sum_of_lanes(const Vector<double>& v) {
  return v.lanes[0] + v.lanes[1];
}
FEDKERN_ALWAYS_INLINE float quick_sum_of_lanes(const Vector<float>& v) {
  return (v.lanes[0] + v.lanes[2]) + (v.lanes[1] + v.lanes[3]);
}
FEDKERN_ALWAYS_INLINE Wide<float> widen(const Vector<float>& v) {
  using Lanes = Vector<double>::Lanes;
  return {Lanes{v.lanes[0], v.lanes[1]}, Lanes{v.lanes[2], v.lanes[3]}};
}
FEDKERN_ALWAYS_INLINE Vector<float> narrow(const Wide<float>& v) {
  const Vector<double>&a = v.part[0], &b = v.part[1];
  const auto lane = [](double x) { return static_cast<float>(x); };
  return Vector<float>::Lanes{lane(a.lanes[0]), lane(a.lanes[1]), lane(b.lanes[0]),
                              lane(b.lanes[1])};
}

#endif

FEDKERN_ALWAYS_INLINE double sum_of_lanes(const Vector<float>& v) {
  const Wide<float> wide = widen(v);
  return sum_of_lanes(wide.part[0] + wide.part[1]);
}

// quick_sum_of_lanes adds up in T: of floats a third of the work.
FEDKERN_ALWAYS_INLINE double quick_sum_of_lanes(const Vector<double>& v) { return sum_of_lanes(v); }

template <typename T>
FEDKERN_ALWAYS_INLINE Wide<T> operator+(const Wide<T>& x, const Wide<T>& y) {
  Wide<T> sum;
  for (int i = 0; i < Wide<T>::kParts; ++i) sum.part[i] = x.part[i] + y.part[i];
  return sum;
}

template <typename T>
FEDKERN_ALWAYS_INLINE double sum_of_lanes(const Wide<T>& v) {
  Vector<double> sum = v.part[0];
  for (int i = 1; i < Wide<T>::kParts; ++i) sum = sum + v.part[i];
  return sum_of_lanes(sum);
}

template <typename T>
FEDKERN_ALWAYS_INLINE void store(const Wide<T>& v, double* to) {
  for (int i = 0; i < Wide<T>::kParts; ++i) v.part[i].store(to + i * Vector<double>::size());
}

}  // namespace fedkern
