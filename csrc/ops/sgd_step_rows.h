#pragma once

// Where the kernels of sgd_step_ find a row, on the CPU as on CUDA.

#include <cstdint>

#include "common/accumulate.h"
#include "common/ceil_div.h"
#include "common/macros.h"

namespace fedkern {

// Part of a row: elements of the gradient, and where the parameters lie that have it.
struct SgdStepPiece {
  int64_t first;  // in the gradient and, the first endpoint, in the parameters
  int64_t size;
  int64_t endpoints;  // M: so many parameters, D apart, share an element; 0: one has it alone
};

// A row of parameters is `plain` elements that have a gradient each, then M endpoints of D that
// share one. M is 0 without alpha.
struct SgdStepSizes {
  int64_t plain;
  int64_t endpoint;   // D
  int64_t endpoints;  // M

  FEDKERN_HOST_DEVICE int64_t param() const { return plain + endpoints * endpoint; }
  FEDKERN_HOST_DEVICE int64_t grad() const { return plain + endpoint; }

  // A row is cut into pieces of `most` gradients or less, none with both kinds of elements.
  FEDKERN_HOST_DEVICE int64_t pieces(int64_t most) const {
    return ceil_div(plain, most) + ceil_div(endpoint, most);
  }
  FEDKERN_HOST_DEVICE SgdStepPiece piece(int64_t index, int64_t most) const {
    const int64_t plain_pieces = ceil_div(plain, most);
    const bool is_plain = index < plain_pieces;
    const int64_t first = is_plain ? index * most : plain + (index - plain_pieces) * most;
    const int64_t left = (is_plain ? plain : plain + endpoint) - first;
    return {first, left < most ? left : most, is_plain ? 0 : endpoints};
  }
};

template <typename scalar_t>
struct SgdStepRow {
  scalar_t* param;
  scalar_t* grad;
  scalar_t* momentum_buffer;  // null: none
  const scalar_t* anchor;     // null: none
  const accumulate_t<scalar_t>* alpha;
};

template <typename scalar_t>
struct SgdStepRows {
  SgdStepSizes sizes;
  int64_t num_rows;
  SgdStepRow<scalar_t> first;
  int64_t param_stride, grad_stride, momentum_stride, anchor_stride, alpha_stride;
  const bool* active;  // null: all

  FEDKERN_HOST_DEVICE bool is_active(int64_t row) const { return !active || active[row]; }
  FEDKERN_HOST_DEVICE SgdStepRow<scalar_t> operator[](int64_t row) const {
    return {first.param + row * param_stride, first.grad + row * grad_stride,
            first.momentum_buffer ? first.momentum_buffer + row * momentum_stride : nullptr,
            first.anchor ? first.anchor + row * anchor_stride : nullptr,
            first.alpha ? first.alpha + row * alpha_stride : nullptr};
  }
};

// Calls run(alpha, first) for each endpoint that shares a piece's gradients, `first` its first
// parameter's place in the row; once, for an alpha of 1, where nothing is shared.
template <typename scalar_t, typename Run>
FEDKERN_HOST_DEVICE void for_each_endpoint(const SgdStepRow<scalar_t>& row,
                                           const SgdStepSizes& sizes, const SgdStepPiece& piece,
                                           const Run& run) {
  if (piece.endpoints == 0) run(accumulate_t<scalar_t>(1), piece.first);
  for (int64_t m = 0; m < piece.endpoints; ++m) {
    run(row.alpha[m], piece.first + m * sizes.endpoint);
  }
}

}  // namespace fedkern
