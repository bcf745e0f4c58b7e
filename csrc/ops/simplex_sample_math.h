#pragma once

// Uniform points of the simplex from Philox words: what simplex_sample and simplex_sample_ball
// share, on the CPU and on CUDA.
//
// A word's counter is (block, attempt, point, point >> 32), its key the operator's. So what a point
// becomes depends on nothing but the key and its position in the result. Coordinates come in groups
// whose uniform numbers take one block of four words; the group's index is the block's.
//
// Points are drawn kLanes at a time: one on CUDA, a vector's worth on the CPU. Coordinate j of lane
// l lies at row[j * stride + l].

#include <cstdint>

#include "common/philox.h"
#include "common/reproducible_math.h"

namespace fedkern {

// Words of a uniform number: 32 or 64 random bits.
template <typename T>
constexpr int kWords = sizeof(T) / sizeof(uint32_t);

// Coordinates whose uniform numbers are one Philox block.
template <typename T>
constexpr int kGroup = 4 / kWords<T>;

// Where the words of each lane's point come from.
template <int kLanes>
struct Counters {
  uint32_t attempt[kLanes], point_low[kLanes], point_high[kLanes];

  FEDKERN_HOST_DEVICE void set(int lane, int64_t point, uint32_t attempt_) {
    attempt[lane] = attempt_;
    point_low[lane] = static_cast<uint32_t>(point);
    point_high[lane] = static_cast<uint32_t>(point >> 32);
  }
};

template <int kLanes>
struct Words {
  uint32_t word[4][kLanes];
};

template <int kLanes>
FEDKERN_HOST_DEVICE Words<kLanes> draw_words(uint64_t key, uint32_t block,
                                             const Counters<kLanes>& at) {
  Words<kLanes> words;
  for (int l = 0; l < kLanes; ++l) {
    words.word[0][l] = block;
    words.word[1][l] = at.attempt[l];
    words.word[2][l] = at.point_low[l];
    words.word[3][l] = at.point_high[l];
  }
  philox(words.word, key);
  return words;
}

// ---- numbers from words: double takes both, float the first -------------------------------------

// (w + 1/2) / 2^b for b random bits w: rounded, but small numbers keep all their digits. May be 1.
template <typename T>
FEDKERN_HOST_DEVICE T uniform(uint32_t high, uint32_t low);
template <>
FEDKERN_HOST_DEVICE float uniform<float>(uint32_t high, uint32_t) {
  return (static_cast<float>(high) + 0.5f) * 0x1p-32f;
}
template <>
FEDKERN_HOST_DEVICE double uniform<double>(uint32_t high, uint32_t low) {
  return (static_cast<double>(high) * 0x1p32 + (static_cast<double>(low) + 0.5)) * 0x1p-64;
}

// Uniform on (-1, 1), never 0.
template <typename T>
FEDKERN_HOST_DEVICE T signed_uniform(uint32_t high, uint32_t low) {
  const bool negative = high >> 31;
  const T magnitude = 2 * uniform<T>((negative ? ~high : high), (negative ? ~low : low));
  return negative ? -magnitude : magnitude;
}

// -log(uniform), an exponential variable: positive, and with all its digits at both ends. Where the
// uniform number is near 1, its distance from 1 has the complement's bits.
template <typename T>
FEDKERN_HOST_DEVICE T exponential(uint32_t high, uint32_t low) {
  const bool near_one = high >= 0xb504f334u;  // above sqrt(1/2)
  const T u = uniform<T>(near_one ? ~high : high, near_one ? ~low : low);
  T k, f;
  split(u, k, f);
  return -log_of_parts(near_one ? T(0) : k, near_one ? -u : f);
}

// The same from number i of a block.
template <typename T, int kLanes>
FEDKERN_HOST_DEVICE T signed_uniform(const Words<kLanes>& words, int i, int lane) {
  return signed_uniform<T>(words.word[i * kWords<T>][lane],
                           words.word[(i + 1) * kWords<T> - 1][lane]);
}
template <typename T, int kLanes>
FEDKERN_HOST_DEVICE T exponential(const Words<kLanes>& words, int i, int lane) {
  return exponential<T>(words.word[i * kWords<T>][lane], words.word[(i + 1) * kWords<T> - 1][lane]);
}

// ---- the simplex --------------------------------------------------------------------------------

// Uniform points of the simplex: exponential variables divided by their sum (Dirichlet(1, ..., 1)).
template <typename T, int kLanes>
FEDKERN_HOST_DEVICE void draw_from_simplex(uint64_t key, const Counters<kLanes>& at, int64_t size,
                                           T* row, int64_t stride) {
  T scale[kLanes] = {};
  for (int64_t first = 0; first < size; first += kGroup<T>) {
    const auto words = draw_words(key, static_cast<uint32_t>(first / kGroup<T>), at);
    FEDKERN_UNROLL
    for (int i = 0; i < kGroup<T>; ++i) {
      if (first + i >= size) break;
      for (int l = 0; l < kLanes; ++l) {
        const T e = exponential<T>(words, i, l);
        row[(first + i) * stride + l] = e;
        scale[l] += e;
      }
    }
  }
  for (int l = 0; l < kLanes; ++l) scale[l] = 1 / scale[l];
  for (int64_t j = 0; j < size; ++j) {
    for (int l = 0; l < kLanes; ++l) row[j * stride + l] *= scale[l];
  }
}

}  // namespace fedkern
