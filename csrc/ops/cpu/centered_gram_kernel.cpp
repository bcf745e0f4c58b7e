// Compiled once per CPU capability (common/cpu_capability.h). K rows have K (K + 1) / 2 products of
// D multiply-adds in float64. A piece of the rows is centred into scratch; kTile x kTile products
// of rows are summed in registers over its columns: 2 kTile loads from the caches for kTile^2
// multiply-adds.

#include "ops/cpu/centered_gram_kernel.h"

#include "common/macros.h"
#include "common/vector.h"
#include "common/vector_reduce.h"

namespace fedkern {
namespace {

using V = Vector<double>;

#if defined(CPU_CAPABILITY_AVX512)
constexpr int kTile = 4;  // of 32 registers 16 sum
#else
constexpr int kTile = 3;  // of 16 registers 9 sum
#endif

FEDKERN_ALWAYS_INLINE int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }

FEDKERN_ALWAYS_INLINE void fill_with_zeros(double* to, int64_t size) {
  for (int64_t i = 0; i < size; ++i) to[i] = 0;
}

static_assert(kMostBlockRows % kTile == 0 && kPieceColumns % V::size() == 0);

// Numbers are counted from the first row's: an offset of all rows costs the means no digits.
template <typename T>
void means(const T* stats, int64_t num_rows, int64_t num_columns, Range columns, double* means) {
  const int64_t size = columns.size();
  double sums[kPieceColumns];
  for (int64_t first = 0; first < size; first += kPieceColumns) {
    const int64_t count = min(kPieceColumns, size - first);
    const T* const piece = stats + columns.begin + first;
    fill_with_zeros(sums, count);
    for (int64_t i = 1; i < num_rows; ++i) {
      const T* const row = piece + i * num_columns;
      for (int64_t c = 0; c < count; ++c) {
        sums[c] += static_cast<double>(row[c]) - static_cast<double>(piece[c]);
      }
    }
    for (int64_t c = 0; c < count; ++c) {
      means[first + c] = piece[c] + sums[c] / static_cast<double>(num_rows);
    }
  }
}

// Rows of a piece, kPieceColumns apart, with zeros after the last column and, up to a tile, after
// the last row.
template <typename T>
void center(const T* stats, int64_t num_columns, const double* means, Range rows, Range columns,
            double* to) {
  for (int64_t i = rows.begin; i < rows.end; ++i, to += kPieceColumns) {
    const T* const from = stats + i * num_columns + columns.begin;
    const int64_t count = columns.size();
    for (int64_t c = 0; c < count; ++c) to[c] = from[c] - means[columns.begin + c];
    fill_with_zeros(to + count, kPieceColumns - count);
  }
  for (int64_t i = rows.size(); i % kTile != 0; ++i, to += kPieceColumns) {
    fill_with_zeros(to, kPieceColumns);
  }
}

FEDKERN_ALWAYS_INLINE void add_tile(const double* rows, const double* others, int64_t count,
                                    double (&products)[kTile][kTile]) {
  V sums[kTile][kTile];
  for (auto& of_row : sums) {
    for (V& sum : of_row) sum = V(0.0);
  }
  for (int64_t c = 0; c < count; c += V::size()) {
    V other[kTile];
    for (int j = 0; j < kTile; ++j) other[j] = V::loadu(others + j * kPieceColumns + c);
    for (int i = 0; i < kTile; ++i) {
      const V row = V::loadu(rows + i * kPieceColumns + c);
      for (int j = 0; j < kTile; ++j) sums[i][j] = fmadd(row, other[j], sums[i][j]);
    }
  }
  for (int i = 0; i < kTile; ++i) {
    for (int j = 0; j < kTile; ++j) products[i][j] = sum_of_lanes(sums[i][j]);
  }
}

template <typename T>
void products(const T* stats, int64_t num_columns, const double* means, Range rows, Range others,
              Range columns, double* scratch, double* products, int64_t stride) {
  const bool diagonal = rows.begin == others.begin;
  double* const centered = scratch;
  double* const centered_others = diagonal ? scratch : scratch + kMostBlockRows * kPieceColumns;
  for (int64_t i = 0; i < rows.size(); ++i) fill_with_zeros(products + i * stride, others.size());
  for (int64_t begin = columns.begin; begin < columns.end; begin += kPieceColumns) {
    const Range piece{begin, min(begin + kPieceColumns, columns.end)};
    center(stats, num_columns, means, rows, piece, centered);
    if (!diagonal) center(stats, num_columns, means, others, piece, centered_others);
    for (int64_t i = 0; i < rows.size(); i += kTile) {
      const int64_t height = min(kTile, rows.size() - i);
      for (int64_t j = diagonal ? i : 0; j < others.size(); j += kTile) {
        const int64_t width = min(kTile, others.size() - j);
        double tile[kTile][kTile];
        add_tile(centered + i * kPieceColumns, centered_others + j * kPieceColumns, piece.size(),
                 tile);
        for (int64_t a = 0; a < height; ++a) {
          double* const sums = products + (i + a) * stride + j;
          for (int64_t b = 0; b < width; ++b) sums[b] += tile[a][b];
        }
      }
    }
  }
}

}  // namespace

FEDKERN_DEFINE_VARIANT(CenteredGramKernelsByDtype, centered_gram_kernels) = {
    {&means<float>, &products<float>}, {&means<double>, &products<double>}};

}  // namespace fedkern
