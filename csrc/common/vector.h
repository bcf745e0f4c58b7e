#pragma once

// Vector<T>: a register of float or double lanes, for files that are compiled once per CPU
// capability (common/cpu_capability.h).
//
// With AVX it is at::vec::Vectorized. at::vec's own fallback keeps lanes in arrays, which the
// compiler does not get back into registers; here the compiler's vector types do that job, with the
// same names and meanings.

#include <ATen/cpu/vec/functional.h>
#include <ATen/cpu/vec/vec.h>

#include <cstdint>
#include <cstring>

#include "common/macros.h"

namespace fedkern {

#if defined(CPU_CAPABILITY_AVX2) || defined(CPU_CAPABILITY_AVX512)

template <typename T>
using Vector = at::vec::Vectorized<T>;

using at::vec::clamp_max;
using at::vec::clamp_min;
using at::vec::fmadd;

#else

template <typename T>
struct LanesOf;
template <>
struct LanesOf<float> {
  typedef float Type __attribute__((vector_size(16)));
  typedef int32_t Bits __attribute__((vector_size(16)));
};
template <>
struct LanesOf<double> {
  typedef double Type __attribute__((vector_size(16)));
  typedef int64_t Bits __attribute__((vector_size(16)));
};

template <typename T>
struct Vector {
  using value_type = T;
  using Lanes = typename LanesOf<T>::Type;
  using Bits = typename LanesOf<T>::Bits;

  Lanes lanes;

  Vector() = default;
  Vector(T value) : lanes(Lanes{} + value) {}
  Vector(Lanes lanes) : lanes(lanes) {}

  static constexpr int size() { return 16 / sizeof(T); }

  static Vector loadu(const void* from, int64_t count = size()) {
    Vector v(T(0));
    std::memcpy(&v.lanes, from, count < size() ? count * sizeof(T) : 16);
    return v;
  }
  void store(void* to, int64_t count = size()) const {
    std::memcpy(to, &lanes, count < size() ? count * sizeof(T) : 16);
  }
  // The first lanes of b, the rest of a.
  static Vector set(const Vector& a, Vector b, int64_t count) {
    for (int64_t i = count; i < size(); ++i) b.lanes[i] = a.lanes[i];
    return b;
  }
  // b where the mask's bits are set, else a.
  static Vector blendv(const Vector& a, const Vector& b, const Vector& mask) {
    return {(Bits)mask.lanes ? b.lanes : a.lanes};
  }

  friend Vector operator+(const Vector& a, const Vector& b) { return {a.lanes + b.lanes}; }
  friend Vector operator-(const Vector& a, const Vector& b) { return {a.lanes - b.lanes}; }
  friend Vector operator*(const Vector& a, const Vector& b) { return {a.lanes * b.lanes}; }
  friend Vector operator/(const Vector& a, const Vector& b) { return {a.lanes / b.lanes}; }
  friend Vector operator>(const Vector& a, const Vector& b) { return {(Lanes)(a.lanes > b.lanes)}; }
  friend Vector operator==(const Vector& a, const Vector& b) {
    return {(Lanes)(a.lanes == b.lanes)};
  }
};

template <typename T>
inline Vector<T> clamp_min(const Vector<T>& a, const Vector<T>& least) {
  return {a.lanes < least.lanes ? least.lanes : a.lanes};
}
template <typename T>
inline Vector<T> clamp_max(const Vector<T>& a, const Vector<T>& most) {
  return {a.lanes > most.lanes ? most.lanes : a.lanes};
}
template <typename T>
inline Vector<T> fmadd(const Vector<T>& a, const Vector<T>& b, const Vector<T>& c) {
  return a * b + c;
}

#endif

}  // namespace fedkern
