#pragma once

// Loads and stores with cache hints, and atomics, for the types that CUDA has them for. Threads are
// never interrupted, so a plain update is atomic.

#include <cmath>

#include "cuda_emulator/collectives.h"
#include "cuda_emulator/emulator.h"

// ---- cache hints -------------------------------------------------------------------------------

#define CUDA_EMULATOR_LOAD(name)                      \
  template <typename T>                               \
  T name(const T* address) {                          \
    cuda_emulator::check_aligned(address, sizeof(T)); \
    return *address;                                  \
  }
CUDA_EMULATOR_LOAD(__ldg)
CUDA_EMULATOR_LOAD(__ldca)
CUDA_EMULATOR_LOAD(__ldcg)
CUDA_EMULATOR_LOAD(__ldcs)
CUDA_EMULATOR_LOAD(__ldcv)
CUDA_EMULATOR_LOAD(__ldlu)
#undef CUDA_EMULATOR_LOAD

#define CUDA_EMULATOR_STORE(name)                               \
  template <typename T>                                         \
  void name(T* address, const std::type_identity_t<T>& value) { \
    cuda_emulator::check_aligned(address, sizeof(T));           \
    *address = value;                                           \
  }
CUDA_EMULATOR_STORE(__stwb)
CUDA_EMULATOR_STORE(__stcg)
CUDA_EMULATOR_STORE(__stcs)
CUDA_EMULATOR_STORE(__stwt)
#undef CUDA_EMULATOR_STORE

// ---- atomics -----------------------------------------------------------------------------------

namespace cuda_emulator {

template <typename T>
T wrapping_sum(T a, T b) {
  if constexpr (std::is_same_v<T, int>) {
    return static_cast<int>(static_cast<unsigned>(a) + static_cast<unsigned>(b));
  } else {
    return a + b;
  }
}

}  // namespace cuda_emulator

// `expression` of `old` and `value` is stored, `old` is returned.
#define CUDA_EMULATOR_ATOMIC(name, expression, ...)   \
  template <typename T>                               \
    requires cuda_emulator::one_of<T, __VA_ARGS__>    \
  T name(T* address, std::type_identity_t<T> value) { \
    cuda_emulator::check_aligned(address, sizeof(T)); \
    const T old = *address;                           \
    *address = static_cast<T>(expression);            \
    return old;                                       \
  }
CUDA_EMULATOR_ATOMIC(atomicAdd, cuda_emulator::wrapping_sum(old, value), int, unsigned,
                     unsigned long long, float, double)
CUDA_EMULATOR_ATOMIC(atomicSub, static_cast<unsigned>(old) - static_cast<unsigned>(value), int,
                     unsigned)
CUDA_EMULATOR_ATOMIC(atomicMin, value < old ? value : old, int, unsigned, long long,
                     unsigned long long)
CUDA_EMULATOR_ATOMIC(atomicMax, value > old ? value : old, int, unsigned, long long,
                     unsigned long long)
CUDA_EMULATOR_ATOMIC(atomicExch, value, int, unsigned, unsigned long long, float)
CUDA_EMULATOR_ATOMIC(atomicAnd, old& value, int, unsigned, unsigned long long)
CUDA_EMULATOR_ATOMIC(atomicOr, old | value, int, unsigned, unsigned long long)
CUDA_EMULATOR_ATOMIC(atomicXor, old ^ value, int, unsigned, unsigned long long)
CUDA_EMULATOR_ATOMIC(atomicInc, old >= value ? 0 : old + 1, unsigned)
CUDA_EMULATOR_ATOMIC(atomicDec, old == 0 || old > value ? value : old - 1, unsigned)
#undef CUDA_EMULATOR_ATOMIC

template <typename T>
  requires cuda_emulator::one_of<T, int, unsigned, unsigned long long, unsigned short>
T atomicCAS(T* address, std::type_identity_t<T> expected, std::type_identity_t<T> value) {
  cuda_emulator::check_aligned(address, sizeof(T));
  const T old = *address;
  if (old == expected) *address = value;
  return old;
}
