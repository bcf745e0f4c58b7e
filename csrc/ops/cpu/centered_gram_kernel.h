#pragma once

#include <cstdint>

#include "common/cpu_capability.h"

namespace fedkern {

// Statistics are centred a piece at a time: so many columns, of the rows of a block or two.
constexpr int64_t kPieceColumns = 256, kMostBlockRows = 120;

struct Range {
  int64_t begin, end;

  int64_t size() const { return end - begin; }
};

template <typename T>
struct CenteredGramKernels {
  // The means of some columns of stats [num_rows, num_columns], contiguous.
  void (*means)(const T* stats, int64_t num_rows, int64_t num_columns, Range columns,
                double* means);
  // Writes the products, over some columns, of the rows of a block with those of another that does
  // not come before it, [rows.size(), others.size()], `stride` apart. Of those of a block with
  // itself, what is below the diagonal is undefined. scratch: 2 kMostBlockRows x kPieceColumns.
  void (*products)(const T* stats, int64_t num_columns, const double* means, Range rows,
                   Range others, Range columns, double* scratch, double* products, int64_t stride);
};

struct CenteredGramKernelsByDtype {
  CenteredGramKernels<float> of_float;
  CenteredGramKernels<double> of_double;
};
FEDKERN_DECLARE_VARIANTS(CenteredGramKernelsByDtype, centered_gram_kernels)

}  // namespace fedkern
