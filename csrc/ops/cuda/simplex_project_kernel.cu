// One launch. Rows of up to 32: a thread a row, sorted in registers by a network, and moved through
// shared memory so that neighbouring threads touch neighbouring elements. Longer rows: a team of
// threads a row, in the steps of the CPU's kernel, each of which walks over the row once:
//
//   maximum     and the maximum of each thread: some elements of the row, and large ones
//   candidates  what lies above the threshold of those few, as bits of the support
//   threshold   Michelot's rounds, which look only where candidates are
//   write       the result, also only looking there
//
// Bytes: x read twice (then from the caches), and once more where candidates are; the result
// written once.

#include "common/ceil_div.h"
#include "common/sorting_network.h"
#include "ops/cuda/simplex_project_kernel.h"
#include "ops/cuda/simplex_project_rows.cuh"

namespace fedkern {
namespace {

// ---- rows of up to 32: a thread a row ----------------------------------------------------------

constexpr int kSortedRows = 128;  // of a block

struct Descending {
  template <typename T>
  FEDKERN_HOST_DEVICE void operator()(T& a, T& b) const {
    const T larger = max(a, b);
    b = min(a, b);
    a = larger;
  }
};

// A row of `length` <= kSize elements, in place; returns the bits of its support.
template <int kSize, typename T>
__device__ unsigned project_sorted(T* row, int length, T z) {
  T values[kSize];
  bool is_nan = false;
#pragma unroll
  for (int i = 0; i < kSize; ++i) {
    values[i] = i < length ? row[i] : static_cast<T>(-INFINITY);
    is_nan |= values[i] != values[i];
  }
  sort<kSize>(values, Descending{});
  const T maximum = values[0];
  is_nan |= !is_finite(maximum);
  T sum = 0, tau = -z;
#pragma unroll
  for (int i = 1; i < kSize; ++i) {
    sum += values[i] - maximum;
    tau = max(tau, (sum - z) * (1 / static_cast<T>(i + 1)));
  }
  unsigned bits = 0;
#pragma unroll
  for (int i = 0; i < kSize; ++i) {
    if (i >= length) break;
    const T d = row[i] - maximum;
    const bool in_support = !is_nan && d > tau;
    bits |= unsigned{in_support} << i;
    row[i] = is_nan ? static_cast<T>(NAN) : in_support ? d - tau : T(0);
  }
  return bits;
}

template <typename scalar_t, int kSize>
__global__ void __launch_bounds__(kSortedRows)
    project_sorted_rows(const SimplexProjectCudaArguments<scalar_t> arguments) {
  using T = accumulate_t<scalar_t>;
  FEDKERN_DYNAMIC_SHARED(T, tile);
  const int length = static_cast<int>(arguments.length);
  const int stride = length | 1;  // odd: neighbouring threads' rows begin in different banks
  const int bytes = static_cast<int>(support_bytes(length));
  const int64_t step = int64_t{gridDim.x} * kSortedRows;
  for (int64_t first = int64_t{blockIdx.x} * kSortedRows; first < arguments.rows; first += step) {
    const int rows = static_cast<int>(min(arguments.rows - first, int64_t{kSortedRows}));
    const scalar_t* from = arguments.x + first * length;
    for (int i = threadIdx.x; i < rows * length; i += kSortedRows) {
      tile[i / length * stride + i % length] = static_cast<T>(from[i]);
    }
    __syncthreads();
    if (static_cast<int>(threadIdx.x) < rows) {
      const int64_t row = first + threadIdx.x;
      const T z = arguments.z[row];
      assert(is_valid_z(z) && "z must be positive, finite and not subnormal");
      const unsigned bits = project_sorted<kSize>(tile + threadIdx.x * stride, length, z);
      for (int i = 0; i < bytes; ++i) {
        arguments.support[row * bytes + i] = static_cast<uint8_t>(bits >> 8 * i);
      }
    }
    __syncthreads();
    scalar_t* to = arguments.result + first * length;
    for (int i = threadIdx.x; i < rows * length; i += kSortedRows) {
      to[i] = static_cast<scalar_t>(tile[i / length * stride + i % length]);
    }
    __syncthreads();  // before the next rows come
  }
}

// ---- longer rows: a team a row -----------------------------------------------------------------

// The bits of a group's elements that are not at most `least`, so of a nan, too; d in `values`.
template <typename T>
__device__ unsigned bits_above(T (&values)[kGroup], T maximum, T least) {
  unsigned bits = 0;
#pragma unroll
  for (int i = 0; i < kGroup; ++i) {
    values[i] -= maximum;
    bits |= unsigned{!(values[i] <= least)} << i;
  }
  return bits;
}

// A lower bound of tau, from each thread's largest d.
template <typename Team, typename T>
__device__ T lower_bound_of(T largest_d, T z) {
  constexpr int kRounds = 4;  // more gain nothing on the whole
  T bound = -z;
  for (int round = 0; round < kRounds; ++round) {
    const bool in = largest_d > bound;
    const double sum = Team::reduce(in ? static_cast<double>(largest_d) : 0.0, Sum{});
    const int size = Team::reduce(in ? 1 : 0, Sum{});
    const T next = static_cast<T>(lower_bound(sum, z, size));
    if (!(next > bound)) break;
    bound = next;
  }
  return bound;
}

template <typename scalar_t, typename Team>
__global__ void __launch_bounds__(Team::kThreads)
    project_rows(const SimplexProjectCudaArguments<scalar_t> arguments) {
  using T = accumulate_t<scalar_t>;
  constexpr int kTeam = Team::kThreads / Team::kRows;
  const int lane = threadIdx.x % kTeam;
  const int64_t length = arguments.length, groups = support_bytes(length);
  const T lowest = static_cast<T>(-INFINITY);
  const int64_t step = int64_t{gridDim.x} * Team::kRows;
  for (int64_t first = int64_t{blockIdx.x} * Team::kRows; first < arguments.rows; first += step) {
    const int64_t row = first + threadIdx.x / kTeam;
    if (row >= arguments.rows) break;  // the whole team
    const scalar_t* x = arguments.x + row * length;
    uint8_t* support = arguments.support + row * groups;
    const bool x_vectors = begins_at_boundary(x);
    const T z = arguments.z[row];
    assert(is_valid_z(z) && "z must be positive, finite and not subnormal");

    T largest = lowest, values[kGroup];
    for (int64_t group = lane; group < groups; group += kTeam) {
      load_group(x, group, length, x_vectors, lowest, values);
#pragma unroll
      for (int i = 0; i < kGroup; ++i) largest = max(largest, values[i]);  // nan shows below
    }
    const T maximum = Team::reduce(largest, Maximum{});

    T tau = static_cast<T>(NAN);
    if (is_finite(maximum)) {
      const T bound = lower_bound_of<Team>(largest - maximum, z);
      TeamSum<T> own;
      for (int64_t group = lane; group < groups; group += kTeam) {
        load_group(x, group, length, x_vectors, lowest, values);
        const unsigned bits = bits_above(values, maximum, bound);
        support[group] = static_cast<uint8_t>(bits);
        own.add(values, bits);
      }
      TeamSum<T> all = own.reduced(Team());
      for (int64_t last_size = 0; all.size != last_size;) {
        last_size = all.size;
        tau = static_cast<T>(threshold(all.sum, z, all.size));
        if (tau != tau) break;
        own = {};
        for (int64_t group = lane; group < groups; group += kTeam) {
          if (support[group] == 0) continue;
          load_group(x, group, length, x_vectors, lowest, values);
          const unsigned bits = bits_above(values, maximum, tau);
          support[group] = static_cast<uint8_t>(bits);
          own.add(values, bits);
        }
        all = own.reduced(Team());
      }
    }

    scalar_t* w = arguments.result + row * length;
    const bool w_vectors = begins_at_boundary(w), is_nan = tau != tau;
    for (int64_t group = lane; group < groups; group += kTeam) {
      unsigned bits = 0;
      if (is_nan) {
        support[group] = 0;
      } else {
        bits = support[group];
      }
      if (bits != 0) load_group(x, group, length, x_vectors, lowest, values);
#pragma unroll
      for (int i = 0; i < kGroup; ++i) {
        const T d = values[i] - maximum;
        values[i] = is_nan ? tau : bits >> i & 1 ? d - tau : T(0);
      }
      store_group(w, group, length, w_vectors, values);
    }
  }
}

// ---- launch ------------------------------------------------------------------------------------

template <int kSize, typename scalar_t>
void launch_sorted(const SimplexProjectCudaArguments<scalar_t>& arguments, cudaStream_t stream) {
  const int64_t blocks = ceil_div(arguments.rows, kSortedRows);
  const size_t shared = kSortedRows * (arguments.length | 1) * sizeof(accumulate_t<scalar_t>);
  FEDKERN_LAUNCH((project_sorted_rows<scalar_t, kSize>), grid_size(blocks), kSortedRows, shared,
                 stream, arguments);
}

}  // namespace

template <typename scalar_t>
cudaError_t simplex_project_cuda(const SimplexProjectCudaArguments<scalar_t>& arguments,
                                 cudaStream_t stream) {
  if (arguments.rows == 0) return cudaSuccess;
  if (arguments.length <= 4) {
    launch_sorted<4>(arguments, stream);
  } else if (arguments.length <= 8) {
    launch_sorted<8>(arguments, stream);
  } else if (arguments.length <= 16) {
    launch_sorted<16>(arguments, stream);
  } else if (arguments.length <= kMostSorted) {
    launch_sorted<kMostSorted>(arguments, stream);
  } else {
    with_team<scalar_t>(arguments.length, [&](auto team) {
      using Team = decltype(team);
      const int64_t blocks = (arguments.rows + Team::kRows - 1) / Team::kRows;
      FEDKERN_LAUNCH((project_rows<scalar_t, Team>), grid_size(blocks), Team::kThreads, 0, stream,
                     arguments);
    });
  }
  return cudaGetLastError();
}

template cudaError_t simplex_project_cuda(const SimplexProjectCudaArguments<float>&, cudaStream_t);
template cudaError_t simplex_project_cuda(const SimplexProjectCudaArguments<double>&, cudaStream_t);
template cudaError_t simplex_project_cuda(const SimplexProjectCudaArguments<__half>&, cudaStream_t);
template cudaError_t simplex_project_cuda(const SimplexProjectCudaArguments<__nv_bfloat16>&,
                                          cudaStream_t);

}  // namespace fedkern
