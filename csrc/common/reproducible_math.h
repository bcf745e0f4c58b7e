#pragma once

// log and exp that have the same bits on every CPU capability and on CUDA: nothing but additions,
// multiplications, divisions and the bits of a number. For this to hold, files that include this
// header are compiled without contraction (CMakeLists.txt): a * b + c is rounded twice everywhere.
//
// Errors are below 2 ulp. Free of branches: loops over them become vector instructions.

#include <cstdint>
#include <cstring>

#include "common/macros.h"

namespace fedkern {

namespace detail {

// kInteger: the bits of 2^kMantissaBits, whose mantissa holds an integer. kRounder: adding it to a
// number leaves the nearest integer in the lowest bits.
template <typename T>
struct Format;

template <>
struct Format<float> {
  using Bits = uint32_t;
  static constexpr int kMantissaBits = 23, kBias = 127;
  static constexpr Bits kOne = 0x3f800000, kSqrtHalf = 0x3f3504f3, kInteger = 0x4b000000;
  static constexpr float kRounder = 0x1.8p23f;
  static constexpr float kLn2High = 0x1.62e4p-1f, kLn2Low = 0x1.7f7d1cp-20f;
};

template <>
struct Format<double> {
  using Bits = uint64_t;
  static constexpr int kMantissaBits = 52, kBias = 1023;
  static constexpr Bits kOne = 0x3ff0000000000000, kSqrtHalf = 0x3fe6a09e667f3bcd,
                        kInteger = 0x4330000000000000;
  static constexpr double kRounder = 0x1.8p52;
  static constexpr double kLn2High = 0x1.62e42feep-1, kLn2Low = 0x1.a39ef35793c76p-33;
};

template <typename To, typename From>
FEDKERN_HOST_DEVICE To bits_of(From value) {
  static_assert(sizeof(To) == sizeof(From), "same size");
  To result;
  std::memcpy(&result, &value, sizeof(To));
  return result;
}

// highest x^n + ... + lowest
template <typename T>
FEDKERN_HOST_DEVICE T polynomial(T, T lowest) {
  return lowest;
}
template <typename T, typename... Rest>
FEDKERN_HOST_DEVICE T polynomial(T x, T highest, T next, Rest... rest) {
  return polynomial(x, highest * x + next, rest...);
}

// (2 atanh(s) / s - 2) / s^2 at z = s^2 <= 0.0295, minimax.
FEDKERN_HOST_DEVICE float atanh_tail(float z) {
  return polynomial(z, 0x1.31e2f2p-2f, 0x1.995ebap-2f, 0x1.55557ap-1f);
}
FEDKERN_HOST_DEVICE double atanh_tail(double z) {
  return polynomial(z, 0x1.2f0568c8e36cdp-3, 0x1.39a1ba2a5c922p-3, 0x1.74663eee58c93p-3,
                    0x1.c71c52093ca07p-3, 0x1.24924941f1547p-2, 0x1.999999997fdb3p-2,
                    0x1.5555555555592p-1);
}

// (exp(r) - 1 - r) / r^2 for |r| <= ln 2 / 2, minimax.
FEDKERN_HOST_DEVICE float exp_tail(float r) {
  return polynomial(r, 0x1.6db4cep-10f, 0x1.123bdep-7f, 0x1.55545ep-5f, 0x1.55548ep-3f, 0.5f);
}
FEDKERN_HOST_DEVICE double exp_tail(double r) {
  return polynomial(r, 0x1.af86331809467p-26, 0x1.28b0a43ff8fc2p-22, 0x1.71dddf63b0c33p-19,
                    0x1.a0199633e02fep-16, 0x1.a01a01bb0ec20p-13, 0x1.6c16c185c9a15p-10,
                    0x1.111111110d5bdp-7, 0x1.555555554ff98p-5, 0x1.5555555555561p-3,
                    0x1.000000000000cp-1);
}

}  // namespace detail

// x = 2^k (1 + f) with sqrt(1/2) <= 1 + f < sqrt(2); x positive and normal.
template <typename T>
FEDKERN_HOST_DEVICE void split(T x, T& k, T& f) {
  using F = detail::Format<T>;
  using Bits = typename F::Bits;
  const Bits shifted = detail::bits_of<Bits>(x) + (F::kOne - F::kSqrtHalf);
  const Bits exponent = shifted >> F::kMantissaBits;
  const Bits mantissa = shifted & ((Bits{1} << F::kMantissaBits) - 1);
  k = detail::bits_of<T>(exponent | F::kInteger) -
      static_cast<T>((Bits{1} << F::kMantissaBits) + F::kBias);
  f = detail::bits_of<T>(mantissa + F::kSqrtHalf) - 1;
}

// log(2^k (1 + f)) of such parts. With s = f / (2 + f), log(1 + f) = 2 atanh(s) = 2 s + s R, and
// 2 s = f - s f.
template <typename T>
FEDKERN_HOST_DEVICE T log_of_parts(T k, T f) {
  using F = detail::Format<T>;
  const T s = f / (2 + f);
  const T z = s * s;
  const T r = z * detail::atanh_tail(z);
  return k * F::kLn2High + (f - (s * (f - r) - k * F::kLn2Low));
}

// log(x), x positive and normal.
template <typename T>
FEDKERN_HOST_DEVICE T reproducible_log(T x) {
  T k, f;
  split(x, k, f);
  return log_of_parts(k, f);
}

// exp(x) for -80 <= x <= 0: x = n ln 2 + r.
template <typename T>
FEDKERN_HOST_DEVICE T reproducible_exp(T x) {
  using F = detail::Format<T>;
  using Bits = typename F::Bits;
  const T shifted = x * static_cast<T>(1.4426950408889634) + F::kRounder;
  const T n = shifted - F::kRounder;
  const T r = (x - n * F::kLn2High) - n * F::kLn2Low;
  const T value = 1 + (r + r * r * detail::exp_tail(r));
  // n is in the lowest bits of `shifted`; the bits above leave by the upper end
  const Bits exponent = detail::bits_of<Bits>(shifted) << F::kMantissaBits;
  return detail::bits_of<T>(detail::bits_of<Bits>(value) + exponent);
}

}  // namespace fedkern
