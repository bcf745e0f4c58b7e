// One launch for up to kMostTensors tensors. Bytes: endpoints read once and results written once,
// 16 at a time where rows are aligned; for more than kSlice points endpoints are read again, from
// L2 as a rule. A task is a piece of all endpoints of a group for kSlice points; a thread has 16
// bytes of it and takes kPoints points at a time: the first of them reads its elements from memory,
// the others from L1.

#include "common/accumulate.h"
#include "common/cuda_rows.cuh"
#include "common/cuda_share.cuh"
#include "ops/cuda/simplex_interpolate_kernel.h"
#include "ops/cuda/simplex_interpolate_table.cuh"

namespace fedkern {
namespace {

constexpr int kThreads = 256;
constexpr int kSlice = 16;  // points of a task

template <typename scalar_t>
constexpr int64_t kPiece = kThreads * Vector<scalar_t>::kSize;

// What a task has of its tensor: the thread's share of some rows.
template <typename scalar_t>
struct Share {
  const scalar_t* endpoints;
  int64_t endpoint_stride;
  scalar_t* points;
  int64_t point_stride;
  int64_t left;  // elements from the share's first one to the end of a row
};

template <bool kVectors, int kPoints, typename scalar_t, typename T = accumulate_t<scalar_t>>
__device__ void interpolate_share(const Share<scalar_t>& share, const T* __restrict__ alpha,
                                  int num_points, int64_t num_endpoints) {
  constexpr int kWidth = Vector<scalar_t>::kSize;
  for (int first = 0; first < num_points; first += kPoints) {
    T sums[kPoints][kWidth] = {};
#pragma unroll(kPoints == 1 ? 4 : 2)
    for (int64_t m = 0; m < num_endpoints; ++m) {
      T theta[kWidth];
      load_share<kVectors, kThreads>(share.endpoints + m * share.endpoint_stride, share.left,
                                     theta);
#pragma unroll
      for (int p = 0; p < kPoints; ++p) {
        if (first + p >= num_points) break;
        const T weight = alpha[(first + p) * num_endpoints + m];
#pragma unroll
        for (int i = 0; i < kWidth; ++i) sums[p][i] += weight * theta[i];
      }
    }
#pragma unroll
    for (int p = 0; p < kPoints; ++p) {
      if (first + p >= num_points) break;
      store_share<kVectors, kThreads>(share.points + (first + p) * share.point_stride, share.left,
                                      sums[p]);
    }
  }
}

// ---- kernel ------------------------------------------------------------------------------------

template <typename scalar_t, int kPoints>
__global__ void __launch_bounds__(kThreads)
    interpolate(const __grid_constant__ SimplexTable<scalar_t, scalar_t> table,
                const accumulate_t<scalar_t>* __restrict__ alpha, int64_t num_points,
                int64_t num_endpoints) {
  const int64_t slices = ceil_div(num_points, kSlice);
  for (int64_t task = table.first_task + blockIdx.x; task < table.last_task; task += gridDim.x) {
    const auto [index, first_task] = find_tensor(table, task);
    const SimplexTensor<scalar_t, scalar_t>& tensor = table.tensors[index];
    const int64_t pieces = ceil_div(tensor.size, kPiece<scalar_t>);
    const int64_t rest = quotient(task - first_task, pieces);
    const int64_t piece = task - first_task - rest * pieces;
    const int64_t group = quotient(rest, slices), point = (rest - group * slices) * kSlice;
    const int points = static_cast<int>(min(num_points - point, int64_t{kSlice}));
    const auto* weights = alpha + (group * num_points + point) * num_endpoints;

    const auto run = [&](auto vectors) {
      constexpr bool kVectors = decltype(vectors)::value;
      const int64_t first = piece * kPiece<scalar_t> + share_offset<kVectors, scalar_t>();
      const int64_t left = tensor.size - first;
      if (left <= 0) return;
      const auto& from = tensor.endpoints;
      const auto& to = tensor.points;
      const Share<scalar_t> share{from.at(group, 0, first), from.row_stride,
                                  to.at(group, point, first), to.row_stride, left};
      interpolate_share<kVectors, kPoints>(share, weights, points, num_endpoints);
    };
    if (fits_vectors(tensor.endpoints) && fits_vectors(tensor.points)) {
      run(std::true_type());
    } else {
      run(std::false_type());
    }
  }
}

}  // namespace

// ---- launch ------------------------------------------------------------------------------------

template <typename scalar_t>
int64_t simplex_interpolate_cuda_tasks(int64_t size, int64_t num_points) {
  return ceil_div(size, kPiece<scalar_t>) * ceil_div(num_points, kSlice);
}

template <typename scalar_t>
cudaError_t simplex_interpolate_cuda(const SimplexInterpolateCudaArguments<scalar_t>& arguments,
                                     cudaStream_t stream) {
  const auto launch = [&](const SimplexTable<scalar_t, scalar_t>& table, unsigned blocks) {
    if (arguments.num_points == 1) {
      FEDKERN_LAUNCH((interpolate<scalar_t, 1>), blocks, kThreads, 0, stream, table,
                     arguments.alpha, arguments.num_points, arguments.num_endpoints);
    } else {
      FEDKERN_LAUNCH((interpolate<scalar_t, 4>), blocks, kThreads, 0, stream, table,
                     arguments.alpha, arguments.num_points, arguments.num_endpoints);
    }
  };
  return launch_tables(arguments.tensors, arguments.num_tensors, launch);
}

#define INSTANTIATE(scalar_t)                                                                     \
  template int64_t simplex_interpolate_cuda_tasks<scalar_t>(int64_t, int64_t);                    \
  template cudaError_t simplex_interpolate_cuda(const SimplexInterpolateCudaArguments<scalar_t>&, \
                                                cudaStream_t);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(__half)
INSTANTIATE(__nv_bfloat16)
#undef INSTANTIATE

}  // namespace fedkern
