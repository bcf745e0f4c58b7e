// One launch. Bytes: the support's bits and, where they are set, the gradient, both read twice
// (then from the caches); the result written once.

#include "ops/cuda/simplex_project_backward_kernel.h"
#include "ops/cuda/simplex_project_rows.cuh"

namespace fedkern {
namespace {

template <typename scalar_t, typename Team>
__global__ void __launch_bounds__(Team::kThreads)
    project_gradients(const SimplexProjectBackwardCudaArguments<scalar_t> arguments) {
  using T = accumulate_t<scalar_t>;
  constexpr int kTeam = Team::kThreads / Team::kRows;
  const int lane = threadIdx.x % kTeam;
  const int64_t length = arguments.length;
  const int64_t step = int64_t{gridDim.x} * Team::kRows;
  for (int64_t first = int64_t{blockIdx.x} * Team::kRows; first < arguments.rows; first += step) {
    // Several teams share a warp: without a row they still take part in its sums.
    const int64_t row = first + threadIdx.x / kTeam;
    const int64_t groups = row < arguments.rows ? support_bytes(length) : 0;
    const scalar_t* grad = arguments.grad + row * length;
    scalar_t* result = arguments.result + row * length;
    const uint8_t* support = arguments.support + row * groups;
    const bool vectors = begins_at_boundary(grad), to_vectors = begins_at_boundary(result);

    T values[kGroup];
    TeamSum<T> own;
    for (int64_t group = lane; group < groups; group += kTeam) {
      const unsigned bits = support[group];
      if (bits == 0) continue;
      load_group(grad, group, length, vectors, T(0), values);
      own.add(values, bits);
    }
    const TeamSum<T> all = own.reduced(Team());
    const T mean = static_cast<T>(all.sum / static_cast<double>(all.size));  // nan if there is none

    for (int64_t group = lane; group < groups; group += kTeam) {
      const unsigned bits = support[group];
      if (bits != 0) load_group(grad, group, length, vectors, T(0), values);
#pragma unroll
      for (int i = 0; i < kGroup; ++i) {
        values[i] = all.size == 0 ? mean : bits >> i & 1 ? values[i] - mean : T(0);
      }
      store_group(result, group, length, to_vectors, values);
    }
  }
}

}  // namespace

template <typename scalar_t>
cudaError_t simplex_project_backward_cuda(
    const SimplexProjectBackwardCudaArguments<scalar_t>& arguments, cudaStream_t stream) {
  if (arguments.rows == 0) return cudaSuccess;
  const auto launch = [&](auto team) {
    using Team = decltype(team);
    const int64_t blocks = (arguments.rows + Team::kRows - 1) / Team::kRows;
    FEDKERN_LAUNCH((project_gradients<scalar_t, Team>), grid_size(blocks), Team::kThreads, 0,
                   stream, arguments);
  };
  if (arguments.length <= kMostSorted) {
    launch(Team<kMostSorted / kGroup>());
  } else {
    with_team<scalar_t>(arguments.length, launch);
  }
  return cudaGetLastError();
}

template cudaError_t simplex_project_backward_cuda(
    const SimplexProjectBackwardCudaArguments<float>&, cudaStream_t);
template cudaError_t simplex_project_backward_cuda(
    const SimplexProjectBackwardCudaArguments<double>&, cudaStream_t);
template cudaError_t simplex_project_backward_cuda(
    const SimplexProjectBackwardCudaArguments<__half>&, cudaStream_t);
template cudaError_t simplex_project_backward_cuda(
    const SimplexProjectBackwardCudaArguments<__nv_bfloat16>&, cudaStream_t);

}  // namespace fedkern
