// Two launches. In the first a block takes the pairs i < k of a set whose k are kThreads points
// next to each other: a thread a k, kRows points i at a time in its registers. Coordinates go
// through shared memory, kChunk of them at a time, so that any number will do; projections are made
// on the way. A pair costs a subtraction and a multiply-add a coordinate, and a reciprocal. In the
// second launch a thread sums the blocks' parts of a set in order.

#include <cmath>

#include "common/ceil_div.h"
#include "common/cuda_launch.h"
#include "common/cuda_reduce.cuh"
#include "ops/cuda/simplex_riesz_energy_kernel.h"

namespace fedkern {
namespace {

constexpr int kThreads = 128;
constexpr int kRows = 32;
constexpr int kChunk = 16;

using Arguments = SimplexRieszEnergyArguments;

// ---- points ------------------------------------------------------------------------------------

// What is subtracted from a point's scores: of all supports, the true one gives the greatest.
__device__ double tau_of(const Arguments& arguments, int64_t point, double size) {
  if (!arguments.sums || point >= arguments.num_points) return 0;
  const double* const sums = arguments.sums + point * arguments.dimensions;
  double tau = sums[0] - size;
  for (int64_t d = 1; d < arguments.dimensions; ++d) {
    const double candidate = (sums[d] - size) / static_cast<double>(d + 1);
    tau = candidate > tau ? candidate : tau;  // nan: the first has it already
  }
  return tau;
}

__device__ double coordinate(const Arguments& arguments, int64_t point, int64_t d, double tau,
                             double size) {
  if (point >= arguments.num_points || d >= arguments.dimensions) return 0;
  const double x = arguments.points[point * arguments.dimensions + d];
  if (!arguments.sums) return x;
  const double above = x - tau;
  return (above < 0 ? 0 : above) / size;
}

// ---- pairs -------------------------------------------------------------------------------------

// kReciprocal: the exponent is -1.
template <typename T, bool kReciprocal>
__global__ void __launch_bounds__(kThreads) sum_pairs(const Arguments arguments) {
  __shared__ T of_rows[kChunk][kRows];
  __shared__ T of_columns[kChunk][kThreads];
  __shared__ double tau_of_rows[kRows];
  const int64_t blocks = ceil_div(arguments.num_points, kThreads);
  for (int64_t task = blockIdx.x; task < arguments.num_sets * blocks; task += gridDim.x) {
    const int64_t set = task / blocks;
    if (arguments.wanted && !arguments.wanted[set]) continue;
    const double size = arguments.sizes ? arguments.sizes[set] : 1;
    const int64_t begin = task % blocks * kThreads, own = begin + threadIdx.x;
    const int64_t end = min(begin + kThreads, arguments.num_points);
    const double tau = tau_of(arguments, own, size);
    double sum = 0;
    for (int64_t first = 0; first < end; first += kRows) {
      if (threadIdx.x < kRows) {
        tau_of_rows[threadIdx.x] = tau_of(arguments, first + threadIdx.x, size);
      }
      T squares[kRows] = {};
      for (int64_t chunk = 0; chunk < arguments.dimensions; chunk += kChunk) {
        __syncthreads();  // tau_of_rows is there; the last chunk has been read
#pragma unroll 4
        for (int d = 0; d < kChunk; ++d) {
          of_columns[d][threadIdx.x] =
              static_cast<T>(coordinate(arguments, own, chunk + d, tau, size));
        }
#pragma unroll 1
        for (int e = threadIdx.x; e < kChunk * kRows; e += kThreads) {
          const int d = e / kRows, row = e % kRows;
          of_rows[d][row] =
              static_cast<T>(coordinate(arguments, first + row, chunk + d, tau_of_rows[row], size));
        }
        __syncthreads();
        const int count = static_cast<int>(min(arguments.dimensions - chunk, int64_t{kChunk}));
#pragma unroll 4
        for (int d = 0; d < count; ++d) {
          const T mine = of_columns[d][threadIdx.x];
#pragma unroll
          for (int row = 0; row < kRows; ++row) {
            const T difference = of_rows[d][row] - mine;
            squares[row] += difference * difference;
          }
        }
      }
      T of_these = 0;
#pragma unroll
      for (int row = 0; row < kRows; ++row) {
        if (first + row >= own || own >= arguments.num_points) continue;
        const T least = static_cast<T>(arguments.least);
        const T square = squares[row] < least ? least : squares[row];
        if constexpr (kReciprocal) {
          of_these += 1 / square;
        } else {
          of_these += exp(static_cast<T>(arguments.exponent) * log(square));  // pow() would spill
        }
      }
      sum += of_these;
      __syncthreads();  // tau_of_rows has been read
    }
    sum = block_sum<kThreads>(sum);
    if (threadIdx.x == 0) arguments.parts[task] = sum;
  }
}

// ---- sets --------------------------------------------------------------------------------------

__global__ void __launch_bounds__(kThreads) sum_parts(const Arguments arguments) {
  const int64_t blocks = ceil_div(arguments.num_points, kThreads);
  const double points = static_cast<double>(arguments.num_points);
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t set = blockIdx.x * int64_t{kThreads} + threadIdx.x; set < arguments.num_sets;
       set += stride) {
    double energy = INFINITY;
    if (!arguments.wanted || arguments.wanted[set]) {
      double sum = 0;
      for (int64_t b = 0; b < blocks; ++b) sum += arguments.parts[set * blocks + b];
      energy = log(sum / (points * (points - 1) / 2));
    }
    arguments.energies[set] = energy;
  }
}

}  // namespace

int64_t simplex_riesz_energy_parts(int64_t num_points) { return ceil_div(num_points, kThreads); }

cudaError_t simplex_riesz_energy_cuda(const SimplexRieszEnergyArguments& arguments,
                                      cudaStream_t stream) {
  if (arguments.num_sets == 0) return cudaSuccess;
  const int64_t blocks = arguments.num_sets * simplex_riesz_energy_parts(arguments.num_points);
  const auto kernel = arguments.screen           ? sum_pairs<float, true>
                      : arguments.exponent == -1 ? sum_pairs<double, true>
                                                 : sum_pairs<double, false>;
  FEDKERN_LAUNCH(kernel, grid_size(blocks), kThreads, 0, stream, arguments);
  if (const cudaError_t error = cudaGetLastError(); error != cudaSuccess) return error;
  const int64_t set_blocks = ceil_div(arguments.num_sets, kThreads);
  FEDKERN_LAUNCH(sum_parts, grid_size(set_blocks), kThreads, 0, stream, arguments);
  return cudaGetLastError();
}

}  // namespace fedkern
