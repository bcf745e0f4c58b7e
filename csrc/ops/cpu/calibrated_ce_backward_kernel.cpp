// Compiled once per CPU capability (common/cpu_capability.h). The gradient is read and written
// once, one multiplication an element. Where classes lie next to each other, row by row; else class
// by class for a tile of rows: positions of one sample, which then lie next to each other.

#include "ops/cpu/calibrated_ce_backward_kernel.h"

#include <ATen/cpu/vec/functional.h>
#include <ATen/cpu/vec/vec.h>

namespace fedkern {
namespace {

constexpr int64_t kTileRows = 256;

// What a row is multiplied by: nothing, if it is ignored, whatever is upstream.
template <typename scalar_t>
inline scalar_t factor_of(const CalibratedCEBackwardArguments<scalar_t>& arguments, int64_t row) {
  if (arguments.target[row] == arguments.ignore_index) return scalar_t(0);
  return arguments.grad_loss[arguments.grad_loss_layout.offset(row)];
}

template <typename scalar_t>
inline void scale_row(const scalar_t* from, scalar_t factor, scalar_t* to, int64_t num_classes) {
  using T = at::vec::vec_scalar_t<scalar_t>;
  const at::vec::Vectorized<T> f(static_cast<T>(factor));
  at::vec::map([f](at::vec::Vectorized<T> g) { return g * f; }, to, from, num_classes);
}

template <typename scalar_t>
inline void scale_tile(const scalar_t* from, const RowLayout& from_layout, const scalar_t* factors,
                       scalar_t* to, const RowLayout& to_layout, int64_t rows,
                       int64_t num_classes) {
  using V = at::vec::Vectorized<at::vec::vec_scalar_t<scalar_t>>;
  const bool adjacent = from_layout.position_stride == 1 && to_layout.position_stride == 1;
  for (int64_t c = 0; c < num_classes; ++c) {
    const scalar_t* in = from + c * from_layout.class_stride;
    scalar_t* out = to + c * to_layout.class_stride;
    if (adjacent) {
      at::vec::map2([](V g, V f) { return g * f; }, out, in, factors, rows);
    } else {
      for (int64_t i = 0; i < rows; ++i) {
        out[i * to_layout.position_stride] = in[i * from_layout.position_stride] * factors[i];
      }
    }
  }
}

template <typename scalar_t>
void run(const CalibratedCEBackwardArguments<scalar_t>& arguments, int64_t begin, int64_t end) {
  const RowLayout &from = arguments.gradient_layout, &to = arguments.result_layout;
  const bool in_place = arguments.gradient == arguments.result;
  const bool by_rows = from.class_stride == 1 && to.class_stride == 1;
  const int64_t tile_rows = by_rows ? 1 : kTileRows;
  scalar_t factors[kTileRows];
  for (int64_t row = begin; row < end;) {
    // A tile ends where the range or the sample ends.
    int64_t rows = from.positions - row % from.positions;
    if (rows > tile_rows) rows = tile_rows;
    if (rows > end - row) rows = end - row;
    bool nothing_to_do = in_place;
    for (int64_t i = 0; i < rows; ++i) {
      factors[i] = factor_of(arguments, row + i);
      if (factors[i] != scalar_t(1)) nothing_to_do = false;
    }
    if (!nothing_to_do) {
      const scalar_t* in = arguments.gradient + from.offset(row);
      scalar_t* out = arguments.result + to.offset(row);
      if (by_rows) {
        scale_row(in, factors[0], out, arguments.num_classes);
      } else {
        scale_tile(in, from, factors, out, to, rows, arguments.num_classes);
      }
    }
    row += rows;
  }
}

}  // namespace

FEDKERN_DEFINE_VARIANT(CalibratedCEBackwardKernels, calibrated_ce_backward_kernels) = {
    &run<float>, &run<double>, &run<c10::BFloat16>, &run<c10::Half>};

}  // namespace fedkern
