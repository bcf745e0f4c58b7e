// Compiled once per CPU capability: raw pointers only, in an anonymous namespace or always inlined,
// so that no code for a newer CPU is merged into what an older one runs.
//
// The gradient is read where the support's bits are set, twice (then from the caches), and the
// result is written once. Rows of up to 32: as many as a vector has lanes at once, so that their
// sums are taken together.

#include "ops/cpu/simplex_project_backward_kernel.h"

#include <cstring>
#include <limits>

#include "common/unrolled.h"
#include "common/vector.h"
#include "common/vector_bits.h"
#include "common/vector_reduce.h"
#include "common/vector_transpose.h"
#include "ops/cpu/simplex_project_rows.h"

namespace fedkern {
namespace {

// ---- rows of up to 32 --------------------------------------------------------------------------

// The bits of a row's support. Byte by byte, which is one load after all: of a copy into zeros the
// processor would not forward the parts.
template <int kBytes>
inline uint32_t bits_of(const uint8_t* support) {
  uint32_t bits = 0;
  for (int i = 0; i < kBytes; ++i) bits |= uint32_t{support[i]} << 8 * i;
  return bits;
}

// As many rows as lanes.
template <int kLength, typename T>
inline void project_batch(const T* grad, const uint8_t* support, T* result) {
  using V = Vector<T>;
  constexpr int kLanes = V::size();
  constexpr int kTiles = (kLength + kLanes - 1) / kLanes;
  constexpr int kBytes = support_bytes(kLength);
  V row[kLanes];
  alignas(64) T counts[kLanes], means[kLanes];
  unrolled<kLanes>([&](auto i) {
    const uint32_t bits = bits_of<kBytes>(support + i * kBytes);
    counts[i] = static_cast<T>(__builtin_popcount(bits));
    unrolled<kTiles>([&](auto tile) {
      const V g = select(bits >> tile * kLanes, V::loadu(grad + i * kLength + tile * kLanes,
                                                         width<V>(kLength - tile * kLanes)));
      row[i] = tile == 0 ? g : row[i] + g;
    });
  });
  (sums_of_rows(row) / V::loadu(counts)).store(means);
#pragma GCC unroll 2
  for (int i = 0; i < kLanes; ++i) {
    const V mean(means[i]);
    uint32_t bits = bits_of<kBytes>(support + i * kBytes);
    if (bits == 0) bits = ~uint32_t{0};  // of no elements the mean is nan, and so are all
    unrolled<kTiles>([&](auto tile) {
      constexpr int64_t kWidth = width<V>(kLength - tile * kLanes);
      const int64_t offset = i * kLength + tile * kLanes;
      select(bits >> tile * kLanes, V::loadu(grad + offset, kWidth) - mean)
          .store(result + offset, kWidth);
    });
  }
}

template <int kLength, typename T>
void project_short(const T* grad, const uint8_t* support, int64_t rows, T* result) {
  constexpr int kBatch = Vector<T>::size(), kBytes = support_bytes(kLength);
  int64_t first = 0;
  for (; first + kBatch <= rows; first += kBatch) {
    project_batch<kLength>(grad + first * kLength, support + first * kBytes,
                           result + first * kLength);
  }
  if (first == rows) return;
  // The last few rows, and more that count for nothing.
  alignas(64) T grad_of_batch[kBatch * kLength] = {}, result_of_batch[kBatch * kLength];
  uint8_t support_of_batch[kBatch * kBytes] = {};
  const int64_t left = rows - first;
  std::memcpy(grad_of_batch, grad + first * kLength, left * kLength * sizeof(T));
  std::memcpy(support_of_batch, support + first * kBytes, left * kBytes);
  project_batch<kLength>(grad_of_batch, support_of_batch, result_of_batch);
  std::memcpy(result + first * kLength, result_of_batch, left * kLength * sizeof(T));
}

// ---- longer rows -------------------------------------------------------------------------------

// The support's bits of the elements [i, i + count) of a row.
inline uint64_t word_of(const uint8_t* support, int64_t i, int64_t count) {
  uint64_t word = 0;
  std::memcpy(&word, support + i / 8, support_bytes(count));
  return word;
}

template <typename T>
inline void project_long(const T* grad, const uint8_t* support, int64_t length, T* result) {
  using V = Vector<T>;
  constexpr int kVectors = kBlock / V::size();
  Wide<T> sum = widen(V(T(0)));
  int64_t size = 0;
  for_each_chunk<kBlock>(length, [&](int64_t i, int64_t count) {
    const uint64_t word = word_of(support, i, count);
    if (word == 0) return;
    size += __builtin_popcountll(word);
    for (int k = 0; k < kVectors; ++k) {
      const int64_t first = k * V::size();
      const V g = V::loadu(grad + i + first, width<V>(count - first));
      sum = sum + widen(select(static_cast<uint32_t>(word >> first), g));
    }
  });
  if (size == 0) {
    for (int64_t i = 0; i < length; ++i) result[i] = std::numeric_limits<T>::quiet_NaN();
    return;
  }
  const V mean(static_cast<T>(sum_of_lanes(sum) / static_cast<double>(size)));
  for_each_chunk<kBlock>(length, [&](int64_t i, int64_t count) {
    const uint64_t word = word_of(support, i, count);
    for (int k = 0; k < kVectors; ++k) {
      const int64_t first = k * V::size(), lanes = width<V>(count - first);
      V value(T(0));
      if (word != 0) {
        value =
            select(static_cast<uint32_t>(word >> first), V::loadu(grad + i + first, lanes) - mean);
      }
      value.store(result + i + first, lanes);
    }
  });
}

// ---- any rows ----------------------------------------------------------------------------------

template <typename T>
void project(const T* grad, const uint8_t* support, int64_t length, int64_t rows, T* result) {
  if (length <= kMostSorted) {
    return call_with_length(
        length, [&](auto known) { project_short<known()>(grad, support, rows, result); });
  }
  for (int64_t row = 0; row < rows; ++row) {
    project_long(grad + row * length, support + row * support_bytes(length), length,
                 result + row * length);
  }
}

template <typename scalar_t>
void run(const SimplexProjectBackwardArguments<scalar_t>& arguments, int64_t begin, int64_t end,
         accumulate_t<scalar_t>* scratch) {
  using T = accumulate_t<scalar_t>;
  const int64_t length = arguments.length;
  project_in_accumulating_type(arguments.grad, arguments.result, length, begin, end, scratch,
                               [&](const T* grad, int64_t first, int64_t rows, T* result) {
                                 project(grad, arguments.support + first * support_bytes(length),
                                         length, rows, result);
                               });
}

}  // namespace

FEDKERN_DEFINE_VARIANT(SimplexProjectBackwardKernels, simplex_project_backward_kernels) = {
    &run<float>, &run<double>, &run<c10::BFloat16>, &run<c10::Half>};

}  // namespace fedkern
