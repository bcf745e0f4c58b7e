#pragma once

// 16-bit floating point, for cuda_fp16.h and cuda_bf16.h.

#include <algorithm>
#include <bit>
#include <cmath>
#include <concepts>
#include <cstdint>

namespace cuda_emulator {

template <int kExponentBits, int kMantissaBits>
class SmallFloat {
 public:
  SmallFloat() = default;  // undefined, as on a GPU
  SmallFloat(double value) : bits_(rounded(value)) {}
  SmallFloat(float value) : bits_(rounded(static_cast<double>(value))) {}
  template <std::integral Integer>
  SmallFloat(Integer value) : SmallFloat(static_cast<double>(value)) {}

  static SmallFloat from_bits(std::uint16_t bits) {
    SmallFloat result;
    result.bits_ = bits;
    return result;
  }
  std::uint16_t bits() const { return bits_; }

  operator float() const {
    constexpr int kExponents = 1 << kExponentBits;
    const int exponent = bits_ >> kMantissaBits & (kExponents - 1);
    const int mantissa = bits_ & ((1 << kMantissaBits) - 1);
    float magnitude;
    if (exponent == kExponents - 1) {
      magnitude = mantissa != 0 ? NAN : INFINITY;
    } else if (exponent == 0) {
      magnitude = std::ldexp(static_cast<float>(mantissa), kSmallest);
    } else {
      // The same number in float's format, which has more bits of each.
      constexpr int kMoreBias = 127 - (kExponents / 2 - 1);
      magnitude =
          std::bit_cast<float>((exponent + kMoreBias) << 23 | mantissa << (23 - kMantissaBits));
    }
    return bits_ >> 15 ? -magnitude : magnitude;
  }

  SmallFloat& operator+=(SmallFloat other) { return *this = *this + other; }
  SmallFloat& operator-=(SmallFloat other) { return *this = *this - other; }
  SmallFloat& operator*=(SmallFloat other) { return *this = *this * other; }
  SmallFloat& operator/=(SmallFloat other) { return *this = *this / other; }

  // Exact in float but for a rounding that the second one hides: float has over twice the bits.
  friend SmallFloat operator+(SmallFloat a, SmallFloat b) { return float(a) + float(b); }
  friend SmallFloat operator-(SmallFloat a, SmallFloat b) { return float(a) - float(b); }
  friend SmallFloat operator*(SmallFloat a, SmallFloat b) { return float(a) * float(b); }
  friend SmallFloat operator/(SmallFloat a, SmallFloat b) { return float(a) / float(b); }
  friend SmallFloat operator-(SmallFloat a) { return from_bits(a.bits_ ^ 0x8000); }
  friend bool operator==(SmallFloat a, SmallFloat b) { return float(a) == float(b); }
  friend bool operator!=(SmallFloat a, SmallFloat b) { return float(a) != float(b); }
  friend bool operator<(SmallFloat a, SmallFloat b) { return float(a) < float(b); }
  friend bool operator<=(SmallFloat a, SmallFloat b) { return float(a) <= float(b); }
  friend bool operator>(SmallFloat a, SmallFloat b) { return float(a) > float(b); }
  friend bool operator>=(SmallFloat a, SmallFloat b) { return float(a) >= float(b); }

 private:
  // Exponents of the smallest normal and the smallest number of all.
  static constexpr int kSmallestNormal = 2 - (1 << (kExponentBits - 1));
  static constexpr int kSmallest = kSmallestNormal - kMantissaBits;
  static constexpr int kInfinity = ((1 << kExponentBits) - 1) << kMantissaBits;

  // To nearest, ties to even.
  static std::uint16_t rounded(double value) {
    if (std::isnan(value)) return 0x7fff;
    const int sign = std::signbit(value) ? 0x8000 : 0;
    const double magnitude = std::fabs(value);
    if (std::isinf(value)) return static_cast<std::uint16_t>(sign | kInfinity);
    if (magnitude == 0) return static_cast<std::uint16_t>(sign);
    const int exponent = std::max(std::ilogb(magnitude), kSmallestNormal);
    if (exponent >= 1 << (kExponentBits - 1)) return static_cast<std::uint16_t>(sign | kInfinity);
    // The mantissa counts steps between neighbours. Its leading bit, and a carry out of it, add to
    // the exponent in front of it, as they should.
    const int steps =
        static_cast<int>(std::nearbyint(std::ldexp(magnitude, kMantissaBits - exponent)));
    return static_cast<std::uint16_t>(sign |
                                      (((exponent - kSmallestNormal) << kMantissaBits) + steps));
  }

  std::uint16_t bits_;
};

}  // namespace cuda_emulator

// Both types have the same functions, with `half` or `bfloat16` in their names.
#define CUDA_EMULATOR_HALF_FUNCTIONS(Half, Half2, half, half2)                         \
  struct alignas(4) Half2 {                                                            \
    Half x, y;                                                                         \
  };                                                                                   \
  inline Half __float2##half(float x) { return Half(x); }                              \
  inline Half __float2##half##_rn(float x) { return Half(x); }                         \
  inline Half __double2##half(double x) { return Half(x); }                            \
  inline Half __int2##half##_rn(int x) { return Half(x); }                             \
  inline float __##half##2float(Half x) { return x; }                                  \
  inline std::uint16_t __##half##_as_ushort(Half x) { return x.bits(); }               \
  inline Half __ushort_as_##half(std::uint16_t bits) { return Half::from_bits(bits); } \
  inline Half2 __floats2##half2##_rn(float x, float y) { return {Half(x), Half(y)}; }  \
  inline Half2 __float22##half2##_rn(float2 v) { return {Half(v.x), Half(v.y)}; }      \
  inline Half2 __float2##half2##_rn(float x) { return {Half(x), Half(x)}; }            \
  inline Half2 __##half##2##half2(Half x) { return {x, x}; }                           \
  inline Half2 __halves2##half2(Half x, Half y) { return {x, y}; }                     \
  inline float2 __##half2##2float2(Half2 v) { return {v.x, v.y}; }                     \
  inline Half __low2##half(Half2 v) { return v.x; }                                    \
  inline Half __high2##half(Half2 v) { return v.y; }                                   \
  inline float __low2float(Half2 v) { return v.x; }                                    \
  inline float __high2float(Half2 v) { return v.y; }                                   \
  inline Half __hadd(Half a, Half b) { return a + b; }                                 \
  inline Half __hsub(Half a, Half b) { return a - b; }                                 \
  inline Half __hmul(Half a, Half b) { return a * b; }                                 \
  inline Half __hdiv(Half a, Half b) { return a / b; }                                 \
  inline Half __hneg(Half a) { return -a; }                                            \
  inline Half __habs(Half a) { return Half::from_bits(a.bits() & 0x7fff); }            \
  inline bool __hisnan(Half a) { return std::isnan(float(a)); }
