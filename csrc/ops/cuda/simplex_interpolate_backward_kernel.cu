// Inner products in two stages, without atomics: the order of the sums depends on shapes alone.
//
// Stage 1, one launch for up to kMostTensors tensors: a task is a piece of some points' gradients
// and of some endpoints, a tile of pairs; its products are summed in double, as they are exact
// there for all but float64. Bytes: each row once from memory, again from L2 for each further tile.
// Stage 2, one launch: a block sums the pieces of a pair.

#include "common/accumulate.h"
#include "common/cuda_reduce.cuh"
#include "common/cuda_rows.cuh"
#include "common/cuda_share.cuh"
#include "ops/cuda/simplex_interpolate_backward_kernel.h"
#include "ops/cuda/simplex_interpolate_table.cuh"

namespace fedkern {
namespace {

constexpr int kThreads = 256;
constexpr int kShares = 4;  // of a thread in a row's piece

template <typename scalar_t>
constexpr int64_t kPiece = kThreads * kShares * Vector<scalar_t>::kSize;

// Points by endpoints, for one point and for several.
constexpr int kOnePointEndpoints = 8;
constexpr int kTilePoints = 4, kTileEndpoints = 4;

// A task's rows, and which part of a tile they are.
template <typename scalar_t>
struct Task {
  const scalar_t* grads;
  int64_t grad_stride;
  const scalar_t* endpoints;
  int64_t endpoint_stride;
  int points, num_endpoints;  // as many of the tile as there are
  int64_t left;               // elements from the piece's first one to the end of a row
};

// ---- stage 1 -----------------------------------------------------------------------------------

template <bool kVectors, int kPoints, int kEndpoints, typename scalar_t>
__device__ void multiply_shares(const Task<scalar_t>& task, double (&sums)[kPoints][kEndpoints]) {
  using T = accumulate_t<scalar_t>;
  constexpr int kWidth = Vector<scalar_t>::kSize;
#pragma unroll 1
  for (int share = 0; share < kShares; ++share) {
    const int64_t first = int64_t{share} * kThreads * kWidth + share_offset<kVectors, scalar_t>();
    const int64_t left = task.left - first;
    if (left <= 0) return;
    T grads[kPoints][kWidth];
#pragma unroll
    for (int p = 0; p < kPoints; ++p) {
      if (p >= task.points) break;
      load_share<kVectors, kThreads>(task.grads + p * task.grad_stride + first, left, grads[p]);
    }
#pragma unroll
    for (int m = 0; m < kEndpoints; ++m) {
      if (m >= task.num_endpoints) break;
      T theta[kWidth];
      load_share<kVectors, kThreads>(task.endpoints + m * task.endpoint_stride + first, left,
                                     theta);
#pragma unroll
      for (int p = 0; p < kPoints; ++p) {
        if (p >= task.points) break;
#pragma unroll
        for (int i = 0; i < kWidth; ++i) {
          sums[p][m] += static_cast<double>(grads[p][i]) * static_cast<double>(theta[i]);
        }
      }
    }
  }
}

template <typename scalar_t, int kPoints, int kEndpoints>
__global__ void __launch_bounds__(kThreads)
    multiply_pieces(const __grid_constant__ SimplexTable<scalar_t, const scalar_t> table,
                    int64_t num_groups, int64_t num_points, int64_t num_endpoints,
                    int64_t num_pieces, double* __restrict__ products) {
  const int64_t endpoint_tiles = ceil_div(num_endpoints, kEndpoints);
  const int64_t tiles = endpoint_tiles * ceil_div(num_points, kPoints);
  for (int64_t index = table.first_task + blockIdx.x; index < table.last_task; index += gridDim.x) {
    const auto [place, first_task] = find_tensor(table, index);
    const SimplexTensor<scalar_t, const scalar_t>& tensor = table.tensors[place];
    // Tasks of a tensor: tiles of a piece, which share rows, then pieces, then groups.
    const int64_t pieces = ceil_div(tensor.size, kPiece<scalar_t>);
    const int64_t piece_of_all = quotient(index - first_task, tiles);
    const int64_t tile = index - first_task - piece_of_all * tiles;
    const int64_t group = quotient(piece_of_all, pieces), piece = piece_of_all - group * pieces;
    const int64_t point_tile = quotient(tile, endpoint_tiles);
    const int64_t point = point_tile * kPoints;
    const int64_t endpoint = (tile - point_tile * endpoint_tiles) * kEndpoints;

    const auto &grads = tensor.points, &from = tensor.endpoints;
    const int64_t first = piece * kPiece<scalar_t>;
    const Task<scalar_t> task{grads.at(group, point, first),
                              grads.row_stride,
                              from.at(group, endpoint, first),
                              from.row_stride,
                              static_cast<int>(min(num_points - point, int64_t{kPoints})),
                              static_cast<int>(min(num_endpoints - endpoint, int64_t{kEndpoints})),
                              min(tensor.size - first, kPiece<scalar_t>)};
    double sums[kPoints][kEndpoints] = {};
    if (fits_vectors(grads) && fits_vectors(from)) {
      multiply_shares<true>(task, sums);
    } else {
      multiply_shares<false>(task, sums);
    }
    // The pieces of the tensors before this one come first.
    const int64_t column = quotient(first_task, num_groups * tiles) + piece;
#pragma unroll
    for (int p = 0; p < kPoints; ++p) {
#pragma unroll
      for (int m = 0; m < kEndpoints; ++m) {
        if (p >= task.points || m >= task.num_endpoints) continue;
        const double sum = block_sum<kThreads>(sums[p][m]);
        const int64_t pair = (group * num_points + point + p) * num_endpoints + endpoint + m;
        if (threadIdx.x == 0) products[pair * num_pieces + column] = sum;
      }
    }
  }
}

// ---- stage 2 -----------------------------------------------------------------------------------

__global__ void __launch_bounds__(kThreads)
    sum_pieces(const double* __restrict__ products, int64_t pairs, int64_t num_pieces,
               double* __restrict__ result) {
  for (int64_t pair = blockIdx.x; pair < pairs; pair += gridDim.x) {
    double sum = 0;
    for (int64_t piece = threadIdx.x; piece < num_pieces; piece += kThreads) {
      sum += products[pair * num_pieces + piece];
    }
    sum = block_sum<kThreads>(sum);
    if (threadIdx.x == 0) result[pair] = sum;
  }
}

}  // namespace

// ---- launch ------------------------------------------------------------------------------------

template <typename scalar_t>
int64_t simplex_interpolate_backward_cuda_pieces(int64_t size) {
  return ceil_div(size, kPiece<scalar_t>);
}

int64_t simplex_interpolate_backward_cuda_tiles(int64_t num_points, int64_t num_endpoints) {
  if (num_points == 1) return ceil_div(num_endpoints, kOnePointEndpoints);
  return ceil_div(num_points, kTilePoints) * ceil_div(num_endpoints, kTileEndpoints);
}

template <typename scalar_t>
cudaError_t simplex_interpolate_backward_cuda(
    const SimplexInterpolateBackwardCudaArguments<scalar_t>& arguments, cudaStream_t stream) {
  const auto launch = [&](const SimplexTable<scalar_t, const scalar_t>& table, unsigned blocks) {
    if (arguments.num_points == 1) {
      FEDKERN_LAUNCH((multiply_pieces<scalar_t, 1, kOnePointEndpoints>), blocks, kThreads, 0,
                     stream, table, arguments.num_groups, arguments.num_points,
                     arguments.num_endpoints, arguments.num_pieces, arguments.products);
    } else {
      FEDKERN_LAUNCH((multiply_pieces<scalar_t, kTilePoints, kTileEndpoints>), blocks, kThreads, 0,
                     stream, table, arguments.num_groups, arguments.num_points,
                     arguments.num_endpoints, arguments.num_pieces, arguments.products);
    }
  };
  const cudaError_t error = launch_tables(arguments.tensors, arguments.num_tensors, launch);
  if (error != cudaSuccess) return error;
  const int64_t pairs = arguments.num_groups * arguments.num_points * arguments.num_endpoints;
  FEDKERN_LAUNCH(sum_pieces, grid_size(pairs), kThreads, 0, stream, arguments.products, pairs,
                 arguments.num_pieces, arguments.result);
  return cudaGetLastError();
}

#define INSTANTIATE(scalar_t)                                                   \
  template int64_t simplex_interpolate_backward_cuda_pieces<scalar_t>(int64_t); \
  template cudaError_t simplex_interpolate_backward_cuda(                       \
      const SimplexInterpolateBackwardCudaArguments<scalar_t>&, cudaStream_t);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(__half)
INSTANTIATE(__nv_bfloat16)
#undef INSTANTIATE

}  // namespace fedkern
