// Bytes as on the CPU: the norm reads the gradient, the update reads it again, from L2 if it fits.
//
// Launch 1: a row's pieces, 16 bytes a thread, are dealt to at most kMostParts blocks, and each
// leaves one sum of squares. Launch 2: the same blocks add their row's sums, always in the same
// order, and step with their pieces. Without clipping there is launch 2 alone.

#include "common/cuda_launch.h"
#include "common/cuda_reduce.cuh"
#include "common/cuda_rows.cuh"
#include "common/cuda_share.cuh"
#include "ops/cuda/sgd_step_kernel.h"

namespace fedkern {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMostParts = 1024;  // of a row: they fill any GPU, and are quickly added

template <typename scalar_t>
constexpr int64_t kPiece = kThreads * Vector<scalar_t>::kSize;

// The blocks that share a row.
FEDKERN_HOST_DEVICE int64_t num_parts(const SgdStepSizes& sizes, int64_t piece) {
  const int64_t pieces = sizes.pieces(piece);
  return pieces < kMostParts ? pieces : kMostParts;
}

// Whether what a piece needs begins at 16-byte boundaries.
template <typename scalar_t>
__device__ bool fits_vectors(const SgdStepRow<scalar_t>& row, const SgdStepSizes& sizes,
                             const SgdStepPiece& piece) {
  const auto address = [&](const scalar_t* of_row) {
    return of_row ? reinterpret_cast<uintptr_t>(of_row + piece.first) : 0;
  };
  const uintptr_t apart = piece.endpoints == 0 ? 0 : sizes.endpoint * sizeof(scalar_t);
  return (address(row.grad) | address(row.param) | address(row.momentum_buffer) |
          address(row.anchor) | apart) %
             16 ==
         0;
}

// ---- launch 1: the norm ------------------------------------------------------------------------

template <bool kVectors, typename scalar_t>
__device__ double squares_of_share(const SgdStepRow<scalar_t>& row, const SgdStepSizes& sizes,
                                   const SgdStepPiece& piece, accumulate_t<scalar_t> pull) {
  using T = accumulate_t<scalar_t>;
  constexpr int kWidth = Vector<scalar_t>::kSize;
  const int64_t offset = share_offset<kVectors, scalar_t>(), left = piece.size - offset;
  T grad[kWidth];
  load_share<kVectors, kThreads>(row.grad + piece.first + offset, left, grad);
  T squares = 0;
#pragma unroll
  for (int i = 0; i < kWidth; ++i) squares += grad[i] * grad[i];
  double sum = 0;
  for_each_endpoint(row, sizes, piece, [&](T alpha, int64_t first) {
    if (!row.anchor) {  // nan for a weight of 0 and infinite gradients
      sum += static_cast<double>(alpha) * static_cast<double>(alpha) * squares;
      return;
    }
    T param[kWidth], anchor[kWidth], pulled = 0;
    load_share<kVectors, kThreads>(row.param + first + offset, left, param);
    load_share<kVectors, kThreads>(row.anchor + first + offset, left, anchor);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      const T x = fmadd(pull, param[i] - anchor[i], alpha * grad[i]);
      pulled += x * x;
    }
    sum += pulled;
  });
  return sum;
}

template <typename scalar_t>
__global__ void __launch_bounds__(kThreads)
    sum_squares(const __grid_constant__ SgdStepCudaArguments<scalar_t> arguments) {
  const SgdStepRows<scalar_t>& rows = arguments.rows;
  const SgdStepSizes& sizes = rows.sizes;
  const int64_t pieces = sizes.pieces(kPiece<scalar_t>), parts = num_parts(sizes, kPiece<scalar_t>);
  for (int64_t task = blockIdx.x; task < rows.num_rows * parts; task += gridDim.x) {
    const int64_t index = quotient(task, parts), part = task - index * parts;
    if (!rows.is_active(index)) continue;
    const SgdStepRow<scalar_t> row = rows[index];
    double sum = 0;
    for (int64_t i = part; i < pieces; i += parts) {
      const SgdStepPiece piece = sizes.piece(i, kPiece<scalar_t>);
      const auto pull = arguments.factors.pull;
      sum += fits_vectors(row, sizes, piece) ? squares_of_share<true>(row, sizes, piece, pull)
                                             : squares_of_share<false>(row, sizes, piece, pull);
    }
    sum = block_sum<kThreads>(sum);
    if (threadIdx.x == 0) arguments.sums[task] = sum;
  }
}

// ---- launch 2: the update ----------------------------------------------------------------------

template <bool kVectors, typename scalar_t>
__device__ void update_share(const SgdStepRow<scalar_t>& row, const SgdStepSizes& sizes,
                             const SgdStepPiece& piece, const SgdStepTerms& terms,
                             SgdStepFactors<accumulate_t<scalar_t>> factors, bool active,
                             bool zero_grad) {
  using T = accumulate_t<scalar_t>;
  constexpr int kWidth = Vector<scalar_t>::kSize;
  const int64_t offset = share_offset<kVectors, scalar_t>(), left = piece.size - offset;
  scalar_t* const grads = row.grad + piece.first + offset;
  T grad[kWidth];
  load_share<kVectors, kThreads>(grads, left, grad);
  if (zero_grad) {
    const T zeros[kWidth] = {};
    store_share<kVectors, kThreads, /*kKept=*/true>(grads, left, zeros);
  }
  if (!active) return;
  const T clip = factors.grad;
  for_each_endpoint(row, sizes, piece, [&](T alpha, int64_t first) {
    const int64_t at = first + offset;
    T param[kWidth], anchor[kWidth] = {}, momentum[kWidth] = {};
    load_share<kVectors, kThreads>(row.param + at, left, param);
    if (terms.pull) load_share<kVectors, kThreads>(row.anchor + at, left, anchor);
    if (terms.momentum) load_share<kVectors, kThreads>(row.momentum_buffer + at, left, momentum);
    factors.grad = clip * alpha;
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      sgd_step(terms, factors, grad[i], anchor[i], param[i], momentum[i]);
    }
    store_share<kVectors, kThreads, /*kKept=*/true>(row.param + at, left, param);
    if (terms.momentum) {
      store_share<kVectors, kThreads, /*kKept=*/true>(row.momentum_buffer + at, left, momentum);
    }
  });
}

template <typename scalar_t>
__global__ void __launch_bounds__(kThreads)
    update(const __grid_constant__ SgdStepCudaArguments<scalar_t> arguments) {
  using T = accumulate_t<scalar_t>;
  const SgdStepRows<scalar_t>& rows = arguments.rows;
  const SgdStepSizes& sizes = rows.sizes;
  const int64_t pieces = sizes.pieces(kPiece<scalar_t>), parts = num_parts(sizes, kPiece<scalar_t>);
  for (int64_t task = blockIdx.x; task < rows.num_rows * parts; task += gridDim.x) {
    const int64_t index = quotient(task, parts), part = task - index * parts;
    const bool active = rows.is_active(index);
    if (!active && !arguments.zero_grad) continue;
    SgdStepFactors<T> factors = arguments.factors;
    if (active && arguments.sums) {
      const double* const sums = arguments.sums + index * parts;
      double sum = 0;
      for (int64_t i = threadIdx.x; i < parts; i += kThreads) sum += sums[i];
      const double clip = clip_factor(block_sum<kThreads>(sum), arguments.max_norm);
      factors.grad = static_cast<T>(clip);
      factors.pull = static_cast<T>(clip * factors.pull);
    }
    const SgdStepRow<scalar_t> row = rows[index];
    for (int64_t i = part; i < pieces; i += parts) {
      const SgdStepPiece piece = sizes.piece(i, kPiece<scalar_t>);
      if (fits_vectors(row, sizes, piece)) {
        update_share<true>(row, sizes, piece, arguments.terms, factors, active,
                           arguments.zero_grad);
      } else {
        update_share<false>(row, sizes, piece, arguments.terms, factors, active,
                            arguments.zero_grad);
      }
    }
  }
}

}  // namespace

// ---- launch ------------------------------------------------------------------------------------

template <typename scalar_t>
int64_t sgd_step_cuda_sums(const SgdStepRows<scalar_t>& rows) {
  return rows.num_rows * num_parts(rows.sizes, kPiece<scalar_t>);
}

template <typename scalar_t>
cudaError_t sgd_step_cuda(const SgdStepCudaArguments<scalar_t>& arguments, cudaStream_t stream) {
  const unsigned blocks = grid_size(sgd_step_cuda_sums(arguments.rows));
  if (arguments.sums) {
    FEDKERN_LAUNCH(sum_squares<scalar_t>, blocks, kThreads, 0, stream, arguments);
    const cudaError_t error = cudaGetLastError();
    if (error != cudaSuccess) return error;
  }
  FEDKERN_LAUNCH(update<scalar_t>, blocks, kThreads, 0, stream, arguments);
  return cudaGetLastError();
}

#define INSTANTIATE(scalar_t)                                                  \
  template int64_t sgd_step_cuda_sums<scalar_t>(const SgdStepRows<scalar_t>&); \
  template cudaError_t sgd_step_cuda(const SgdStepCudaArguments<scalar_t>&, cudaStream_t);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(__half)
INSTANTIATE(__nv_bfloat16)
#undef INSTANTIATE

}  // namespace fedkern
