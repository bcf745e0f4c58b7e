// Compiled once per CPU capability (common/cpu_capability.h). Rows lie anywhere in a data set that
// no cache holds, so that a row must be asked for long before it is read.

#include "fl/read_batch_kernel.h"

#include "common/macros.h"
#include "common/vector.h"

namespace fedkern {
namespace {

using V = Vector<float>;

constexpr int64_t kAhead = 8, kLine = 64;

FEDKERN_ALWAYS_INLINE void prefetch(const uint8_t* row, int64_t size) {
  for (int64_t i = 0; i < size; i += kLine) __builtin_prefetch(row + i);
}

FEDKERN_ALWAYS_INLINE V load_bytes(const uint8_t* from) {
#if defined(CPU_CAPABILITY_AVX512)
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(bytes));
#elif defined(CPU_CAPABILITY_AVX2)
  const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from));
  return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes));
#else
  return V::Lanes{float(from[0]), float(from[1]), float(from[2]), float(from[3])};
#endif
}

// Rounded once, as a division is: a test tries all bytes.
FEDKERN_ALWAYS_INLINE V divided_by_255(const V& x) {
#if defined(CPU_CAPABILITY_AVX2) || defined(CPU_CAPABILITY_AVX512)
  const V reciprocal(1.0f / 255);
  const V quotient = x * reciprocal;
  const V rest = fmadd(quotient, V(-255.0f), x);
  return fmadd(rest, reciprocal, quotient);
#else
  return x / V(255.0f);
#endif
}

void read(const uint8_t* stored, int64_t size, const int64_t* indices, int64_t num_rows,
          float* batch) {
  for (int64_t i = 0; i < kAhead && i < num_rows; ++i) prefetch(stored + indices[i] * size, size);
  for (int64_t i = 0; i < num_rows; ++i, batch += size) {
    if (i + kAhead < num_rows) prefetch(stored + indices[i + kAhead] * size, size);
    const uint8_t* const row = stored + indices[i] * size;
    int64_t j = 0;
    for (; j + V::size() <= size; j += V::size()) {
      divided_by_255(load_bytes(row + j)).store(batch + j);
    }
    for (; j < size; ++j) batch[j] = static_cast<float>(row[j]) / 255.0f;
  }
}

}  // namespace

FEDKERN_DEFINE_VARIANT(ReadBatchKernels, read_batch_kernels) = {&read};

}  // namespace fedkern
