#pragma once

// Philox 4x32-10 (Salmon, Moraes, Dror, Shaw, SC 2011): random words as a function of a counter and
// a key. Nothing is kept between calls, so any word can be had, or had again, at any time.

#include <cstdint>

#include "common/macros.h"

namespace fedkern {

struct PhiloxCounter {
  uint32_t word[4];
};

struct PhiloxBlock {
  uint32_t word[4];
};

// The upper half of the product.
FEDKERN_HOST_DEVICE uint32_t multiply_high(uint32_t a, uint32_t b) {
  return static_cast<uint32_t>((uint64_t{a} * b) >> 32);
}

// Free of branches: a loop over counters becomes vector instructions.
FEDKERN_HOST_DEVICE PhiloxBlock philox(const PhiloxCounter& counter, uint64_t key) {
  constexpr uint32_t kMultiplier0 = 0xd2511f53, kMultiplier1 = 0xcd9e8d57;
  constexpr uint32_t kStep0 = 0x9e3779b9, kStep1 = 0xbb67ae85;
  uint32_t key0 = static_cast<uint32_t>(key), key1 = static_cast<uint32_t>(key >> 32);
  uint32_t x0 = counter.word[0], x1 = counter.word[1], x2 = counter.word[2], x3 = counter.word[3];
  FEDKERN_UNROLL
  for (int round = 0; round < 10; ++round) {
    const uint32_t high0 = multiply_high(kMultiplier0, x0), low0 = kMultiplier0 * x0;
    const uint32_t high1 = multiply_high(kMultiplier1, x2), low1 = kMultiplier1 * x2;
    x0 = high1 ^ x1 ^ key0;
    x1 = low1;
    x2 = high0 ^ x3 ^ key1;
    x3 = low0;
    key0 += kStep0;
    key1 += kStep1;
  }
  return {{x0, x1, x2, x3}};
}

}  // namespace fedkern
