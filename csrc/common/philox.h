#pragma once

// Philox 4x32-10 (Salmon, Moraes, Dror, Shaw, SC 2011): random words as a function of a counter and
// a key. Nothing is kept between calls, so any word can be had, or had again, at any time.

#include <cstdint>

#include "common/macros.h"

namespace fedkern {

struct Philox {
  static constexpr int kRounds = 10;
  static constexpr uint32_t kMultiplier0 = 0xd2511f53, kMultiplier1 = 0xcd9e8d57;
  static constexpr uint32_t kStep0 = 0x9e3779b9, kStep1 = 0xbb67ae85;
};

// The upper half of the product.
FEDKERN_HOST_DEVICE uint32_t multiply_high(uint32_t a, uint32_t b) {
  return static_cast<uint32_t>((uint64_t{a} * b) >> 32);
}

// Replaces counters by their words: word i of lane l lies at words[i][l].
template <int kLanes>
FEDKERN_HOST_DEVICE void philox(uint32_t (&words)[4][kLanes], uint64_t key) {
  for (int l = 0; l < kLanes; ++l) {
    uint32_t key0 = static_cast<uint32_t>(key), key1 = static_cast<uint32_t>(key >> 32);
    uint32_t x0 = words[0][l], x1 = words[1][l], x2 = words[2][l], x3 = words[3][l];
    FEDKERN_UNROLL
    for (int round = 0; round < Philox::kRounds; ++round) {
      const uint32_t high0 = multiply_high(Philox::kMultiplier0, x0);
      const uint32_t high1 = multiply_high(Philox::kMultiplier1, x2);
      const uint32_t low0 = Philox::kMultiplier0 * x0, low1 = Philox::kMultiplier1 * x2;
      x0 = high1 ^ x1 ^ key0;
      x1 = low1;
      x2 = high0 ^ x3 ^ key1;
      x3 = low0;
      key0 += Philox::kStep0;
      key1 += Philox::kStep1;
    }
    words[0][l] = x0;
    words[1][l] = x1;
    words[2][l] = x2;
    words[3][l] = x3;
  }
}

}  // namespace fedkern
