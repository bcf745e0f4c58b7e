// Compiled once per CPU capability (common/cpu_capability.h). Tiles of the result are summed in
// registers, so that loads are about half as many as multiply-adds: dot_rows goes along the rows of
// both operands and adds up the lanes of each sum at the end, combine_rows multiplies pieces of B's
// rows with numbers of A.

#include "fl/linear_kernel.h"

#include <type_traits>

#include "common/macros.h"
#include "common/unrolled.h"
#include "common/vector.h"
#include "common/vector_reduce.h"

namespace fedkern {
namespace {

#if defined(CPU_CAPABILITY_AVX512)
// Of 32 registers 24 sum.
constexpr int kDotRows = 4, kDotColumns = 6, kCombineRows = 8, kCombineVectors = 3;
#else
// Of 16 registers 12 sum.
constexpr int kDotRows = 3, kDotColumns = 4, kCombineRows = 6, kCombineVectors = 2;
#endif

// call(n) with n = size, at least 1 and at most kMost, known to the compiler.
template <int kMost, typename Call>
FEDKERN_ALWAYS_INLINE void with_size(int64_t size, const Call& call) {
  if constexpr (kMost == 1) {
    call(std::integral_constant<int, 1>());
  } else if (size >= kMost) {
    call(std::integral_constant<int, kMost>());
  } else {
    with_size<kMost - 1>(size, call);
  }
}

// ---- dot_rows ----------------------------------------------------------------------------------

// Adds the products of `count` numbers of each row, from a and b on: a vector's lanes if kWhole.
template <int kRows, int kColumns, bool kWhole, typename T>
FEDKERN_ALWAYS_INLINE void dot_step(const T* a, const T* b, int64_t depth, int64_t count,
                                    Vector<T> (&sums)[kRows][kColumns]) {
  using V = Vector<T>;
  if (kWhole) count = V::size();
  V rows[kRows];
  unrolled<kRows>([&](auto i) { rows[i] = V::loadu(a + i * depth, count); });
  unrolled<kColumns>([&](auto j) {
    const V column = V::loadu(b + j * depth, count);
    unrolled<kRows>([&](auto i) { sums[i][j] = fmadd(rows[i], column, sums[i][j]); });
  });
}

template <int kRows, int kColumns, typename T>
FEDKERN_ALWAYS_INLINE void dot_tile(const ProductSizes& sizes, const T* a, const T* b,
                                    const T* bias, T* c) {
  constexpr int64_t kLanes = Vector<T>::size();
  Vector<T> sums[kRows][kColumns];
  unrolled<kRows>(
      [&](auto i) { unrolled<kColumns>([&](auto j) { sums[i][j] = Vector<T>(T(0)); }); });
  int64_t p = 0;
  for (; p + kLanes <= sizes.depth; p += kLanes) {
    dot_step<kRows, kColumns, true>(a + p, b + p, sizes.depth, kLanes, sums);
  }
  if (p < sizes.depth) {
    dot_step<kRows, kColumns, false>(a + p, b + p, sizes.depth, sizes.depth - p, sums);
  }
  unrolled<kColumns>([&](auto j) {
    const T start = bias ? bias[j] : T(0);
    unrolled<kRows>(
        [&](auto i) { c[i * sizes.columns + j] = start + quick_sum_of_lanes(sums[i][j]); });
  });
}

template <typename T>
void dot_rows(const ProductSizes& sizes, const T* a, const T* b, const T* bias, T* c) {
  for (int64_t j = sizes.begin; j < sizes.end; j += kDotColumns) {
    with_size<kDotColumns>(sizes.end - j, [&](auto columns) {
      for (int64_t i = 0; i < sizes.rows; i += kDotRows) {
        with_size<kDotRows>(sizes.rows - i, [&](auto rows) {
          dot_tile<rows, columns>(sizes, a + i * sizes.depth, b + j * sizes.depth,
                                  bias ? bias + j : bias, c + i * sizes.columns + j);
        });
      }
    });
  }
}

// ---- combine_rows ------------------------------------------------------------------------------

// kVectors vectors of columns, the last of which has `last` lanes, all of them if kWhole.
template <int kRows, int kVectors, bool kWhole, typename T>
FEDKERN_ALWAYS_INLINE void combine_tile(const ProductSizes& sizes, const T* a, int64_t a_row,
                                        int64_t a_step, const T* b, T* c, int64_t last) {
  using V = Vector<T>;
  const auto count = [&](int k) { return kWhole || k < kVectors - 1 ? V::size() : last; };
  V sums[kRows][kVectors];
  unrolled<kRows>([&](auto i) { unrolled<kVectors>([&](auto k) { sums[i][k] = V(T(0)); }); });
  for (int64_t p = 0; p < sizes.depth; ++p, a += a_step, b += sizes.columns) {
    V columns[kVectors];
    unrolled<kVectors>([&](auto k) { columns[k] = V::loadu(b + k * V::size(), count(k)); });
    unrolled<kRows>([&](auto i) {
      const V factor(a[i * a_row]);
      unrolled<kVectors>([&](auto k) { sums[i][k] = fmadd(factor, columns[k], sums[i][k]); });
    });
  }
  unrolled<kRows>([&](auto i) {
    unrolled<kVectors>(
        [&](auto k) { sums[i][k].store(c + i * sizes.columns + k * V::size(), count(k)); });
  });
}

template <typename T>
void combine_rows(const ProductSizes& sizes, const T* a, int64_t a_row, int64_t a_step, const T* b,
                  T* c) {
  constexpr int64_t kLanes = Vector<T>::size();
  const auto combine = [&](int64_t j, auto vectors, auto whole, int64_t last) {
    for (int64_t i = 0; i < sizes.rows; i += kCombineRows) {
      with_size<kCombineRows>(sizes.rows - i, [&](auto rows) {
        combine_tile<rows, vectors, whole>(sizes, a + i * a_row, a_row, a_step, b + j,
                                           c + i * sizes.columns + j, last);
      });
    }
  };
  int64_t j = sizes.begin;
  while (j + kLanes <= sizes.end) {
    with_size<kCombineVectors>((sizes.end - j) / kLanes, [&](auto vectors) {
      combine(j, vectors, std::true_type(), kLanes);
      j += vectors * kLanes;
    });
  }
  if (j < sizes.end) {
    combine(j, std::integral_constant<int, 1>(), std::false_type(), sizes.end - j);
  }
}

template <typename T>
constexpr LinearKernels<T> kKernels = {kDotColumns, kCombineVectors * Vector<T>::size(),
                                       &dot_rows<T>, &combine_rows<T>};

}  // namespace

FEDKERN_DEFINE_VARIANT(LinearKernelsByDtype, linear_kernels) = {kKernels<float>, kKernels<double>};

}  // namespace fedkern
