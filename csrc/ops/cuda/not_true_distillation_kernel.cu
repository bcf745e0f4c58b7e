// Launches: one where a block does a whole group (rows * C <= 16384), else two; nothing read back.
// Bytes: both logits once, the gradient once, where rows fit a team's registers; labels once or
// twice.
//
//   rows                                   threads a row   held of float32; of 16 bits
//   whose classes are not adjacent         1               16 classes
//   C <= 256; 512                          8               all
//   C <= 1024; 2048                        32              all
//   longer                                 256             4096 classes; 8192
//
// Rows that do not begin at 16-byte boundaries are read element by element, of which a thread holds
// 16 (so 8 threads have 128 classes, 32 have 512, 256 have 4096). float64 holds less.
//
// What is not held is read again, from the L2 cache: forth for the maxima, back for the sums, forth
// for the gradient, so that at each turn the last part read is still there. Sums run in a fixed
// order: the same bits each time, on each GPU.

#include <algorithm>
#include <type_traits>

#include "common/accumulate.h"
#include "common/ceil_div.h"
#include "common/cuda_launch.h"
#include "common/cuda_math.cuh"
#include "common/cuda_reduce.cuh"
#include "common/cuda_rows.cuh"
#include "common/cuda_vector.cuh"
#include "ops/cuda/not_true_distillation_kernel.h"
#include "ops/not_true_distillation_math.h"

namespace fedkern {
namespace {

constexpr int kThreads = 256;

// ---- a part of a row, of the student and the teacher, in a team's registers ---------------------

// Vectors of each that a thread holds: as many as leave 128 registers enough for the rest.
template <typename scalar_t, int kTeam, bool kVectors>
constexpr int kSharesOf = sizeof(scalar_t) == 8 ? 2
                          : !kVectors           ? 16 / Vector<scalar_t>::kSize
                          : kTeam > 32          ? 4
                                                : 8;

// A thread's vectors lie in memory as such (kVectors), or their elements lie a team apart. The true
// class, and what is behind the end, are -inf.
template <typename scalar_t, int kTeam, bool kVectors>
class Part {
 public:
  using T = accumulate_t<scalar_t>;
  static constexpr int kWidth = Vector<scalar_t>::kSize;
  static constexpr int kShares = kSharesOf<scalar_t, kTeam, kVectors>;
  static constexpr int kCapacity = kTeam * kShares * kWidth;

  // Classes [0, size) of z and g; `label` counts from the first of them, too, and may be elsewhere.
  __device__ void load(const scalar_t* z, int64_t z_stride, const scalar_t* g, int64_t g_stride,
                       int size, int64_t label) {
    size_ = size;
    // from the first class of this thread's to the label, if that is near enough
    to_label_ = label >= first() && label < kCapacity ? static_cast<int>(label) - first() : -1;
#pragma unroll
    for (int k = 0; k < kShares; ++k) {
      z_[k] = load_share(z, z_stride, k);
      g_[k] = load_share(g, g_stride, k);
    }
#pragma unroll
    for (int k = 0; k < kShares; ++k) {
      if (has_label(k)) {
        mask_label(z_[k], k);
        mask_label(g_[k], k);
      }
    }
  }

  __device__ void raise(T& z_max, T& g_max) const {
    for_each(
        [&](T z, T g) {
          z_max = max(z_max, z);
          g_max = max(g_max, g);
        },
        [] {});
  }

  __device__ NotTrueSums<T> sums(T z_max, T g_max, T inverse_tau) const {
    NotTrueSums<T> sums{}, of_share{};
    for_each(
        [&](T z, T g) {
          const T u = (z - z_max) * inverse_tau, v = (g - g_max) * inverse_tau;
          const T teacher = exponential(v);
          of_share.student += exponential(u);
          of_share.teacher += teacher;
          of_share.distance += teacher == T(0) ? T(0) : teacher * (v - u);
        },
        [&] {  // a chain of additions as long as a part would lose digits
          sums = added(sums, of_share);
          of_share = {};
        });
    return sums;
  }

  // What has been computed from the registers is not worth other registers: the compiler shall
  // compute it again.
  __device__ void forget() {
#pragma unroll
    for (int k = 0; k < kShares; ++k) {
      make_opaque(z_[k]);
      make_opaque(g_[k]);
    }
  }

  __device__ void write_gradient(scalar_t* to, int64_t to_stride, T z_max, T g_max, T inverse_tau,
                                 const NotTrueCoefficients<T>& coefficients) const {
#pragma unroll
    for (int k = 0; k < kShares; ++k) {
      if (!has(k)) continue;
      T z[kWidth], g[kWidth];
      unpack(z_[k], z);
      unpack(g_[k], g);
#pragma unroll
      for (int i = 0; i < kWidth; ++i) {
        const T u = (z[i] - z_max) * inverse_tau, v = (g[i] - g_max) * inverse_tau;
        z[i] = (exponential(u) - coefficients.ratio * exponential(v)) * coefficients.scale;
        if (to_label_ == k * kShareStep + i * kStep) z[i] = 0;
      }
      store_share(to, to_stride, k, z);
    }
  }

 private:
  static constexpr int kStep = kVectors ? 1 : kTeam;  // classes from an element to the next
  static constexpr int kShareStep = kTeam * kWidth;   // from a vector to the next

  __device__ static int first() {
    return static_cast<int>(threadIdx.x % kTeam) * (kVectors ? kWidth : 1);
  }
  __device__ bool has(int k) const { return first() + k * kShareStep < size_; }
  __device__ bool is_whole(int k) const { return first() + k * kShareStep + kWidth <= size_; }
  __device__ bool has_label(int k) const {
    return to_label_ >= k * kShareStep && to_label_ <= k * kShareStep + (kWidth - 1) * kStep;
  }

  __device__ Vector<scalar_t> load_share(const scalar_t* row, int64_t class_stride, int k) const {
    const int c = first() + k * kShareStep;
    if (kVectors && is_whole(k)) return load_past_l1(row + c);
    T values[kWidth];
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      const int c_i = c + i * kStep;
      values[i] = c_i < size_ ? static_cast<T>(row[c_i * class_stride]) : T(-INFINITY);
    }
    return pack<scalar_t>(values);
  }

  __device__ void store_share(scalar_t* row, int64_t class_stride, int k,
                              const T (&values)[kWidth]) const {
    const int c = first() + k * kShareStep;
    if (kVectors && is_whole(k)) {
      store_streaming(row + c, pack<scalar_t>(values));
      return;
    }
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      const int c_i = c + i * kStep;
      if (c_i < size_) row[c_i * class_stride] = static_cast<scalar_t>(values[i]);
    }
  }

  __device__ void mask_label(Vector<scalar_t>& share, int k) const {
    T values[kWidth];
    unpack(share, values);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      if (to_label_ == k * kShareStep + i * kStep) values[i] = -INFINITY;
    }
    share = pack<scalar_t>(values);
  }

  // body(z, g) for this thread's classes, after_share() behind each share.
  template <typename Body, typename AfterShare>
  __device__ void for_each(const Body& body, const AfterShare& after_share) const {
#pragma unroll
    for (int k = 0; k < kShares; ++k) {
      if (!has(k)) continue;
      T z[kWidth], g[kWidth];
      unpack(z_[k], z);
      unpack(g_[k], g);
#pragma unroll
      for (int i = 0; i < kWidth; ++i) body(z[i], g[i]);
      after_share();
    }
  }

  int size_;
  int to_label_;
  Vector<scalar_t> z_[kShares], g_[kShares];
};

template <int kTeam, typename T, typename Combine>
__device__ T team_reduce(T value, const Combine& combine) {
  if constexpr (kTeam <= 32) {
    return lane_reduce<kTeam>(value, combine);
  } else {
    static_assert(kTeam == kThreads, "some lanes, or the block");
    return block_reduce<kTeam>(value, combine);
  }
}

// ---- workspace: several blocks a group ---------------------------------------------------------

struct Workspace {
  double* factors;    // [groups]
  double* losses;     // [groups, blocks]
  unsigned* tickets;  // [groups]: blocks that have finished
};

template <typename scalar_t>
FEDKERN_HOST_DEVICE Workspace
workspace_of(const NotTrueDistillationCudaArguments<scalar_t>& arguments, int64_t blocks) {
  double* const factors = static_cast<double*>(arguments.workspace);
  double* const losses = factors + arguments.groups;
  return {factors, losses, reinterpret_cast<unsigned*>(losses + arguments.groups * blocks)};
}

// ---- kernels -----------------------------------------------------------------------------------

// What the sum of a group's losses is multiplied by. All of the block call; all get it.
template <typename scalar_t>
__device__ double factor_of(const NotTrueDistillationCudaArguments<scalar_t>& arguments,
                            int64_t group) {
  if (arguments.reduction != Reduction::kMean) return 1;
  double count = 0;
#pragma unroll 4
  for (int64_t i = threadIdx.x; i < arguments.rows; i += kThreads) {
    count += arguments.target[group * arguments.rows + i] != arguments.ignore_index;
  }
  return 1 / block_sum<kThreads>(count);
}

template <typename scalar_t>
__global__ void __launch_bounds__(kThreads)
    prepare(const NotTrueDistillationCudaArguments<scalar_t> arguments, int64_t blocks) {
  const Workspace workspace = workspace_of(arguments, blocks);
  const int64_t group = blockIdx.x;
  const double factor = factor_of(arguments, group);
  if (threadIdx.x == 0) {
    workspace.factors[group] = factor;
    workspace.tickets[group] = 0;
  }
}

template <typename scalar_t, int kTeam, bool kVectors>
__global__ void __launch_bounds__(kThreads, 2)
    run_teams(const NotTrueDistillationCudaArguments<scalar_t> arguments) {
  using T = accumulate_t<scalar_t>;
  using Row = Part<scalar_t, kTeam, kVectors>;
  constexpr int kRows = kThreads / kTeam;                  // at once
  constexpr bool kOfAnyLength = kTeam == 1 || kTeam > 32;  // else a part is a row
  const int64_t group = blockIdx.x, blocks = gridDim.y, num_classes = arguments.num_classes;
  const int64_t z_stride = arguments.student_layout.class_stride;
  const int64_t g_stride = arguments.teacher_layout.class_stride;
  const int64_t to_stride = arguments.gradient_layout.class_stride;
  const Workspace workspace = workspace_of(arguments, blocks);
  __shared__ double factor;  // in shared memory: rows need the registers
  const double own_factor = blocks == 1 ? factor_of(arguments, group) : workspace.factors[group];
  if (threadIdx.x == 0) factor = own_factor;
  __syncthreads();
  const T inverse_tau = static_cast<T>(1 / arguments.tau);
  const int last =
      kOfAnyLength ? static_cast<int>((num_classes + Row::kCapacity - 1) / Row::kCapacity) - 1 : 0;

  double loss_sum = 0;
  for (int64_t begin = blockIdx.y * int64_t{kRows}; begin < arguments.rows;
       begin += blocks * kRows) {
    const int64_t row = begin + threadIdx.x / kTeam;
    const bool exists = row < arguments.rows;
    const int64_t label =
        exists ? arguments.target[group * arguments.rows + row] : arguments.ignore_index;
    const bool counts = label != arguments.ignore_index;
    assert((!counts || (label >= 0 && label < num_classes)) &&
           "not_true_distillation: target must hold class indices in [0, C)");
    const bool has_loss = counts && num_classes > 1;
    const RowIndices at = row_indices(arguments.student_layout, group, exists ? row : 0);
    const scalar_t* z = arguments.student + row_offset(arguments.student_layout, at);
    const scalar_t* g = arguments.teacher + row_offset(arguments.teacher_layout, at);

    Row held;
    int place = -1;  // of the part that is held
    const auto hold = [&](int part) {
      if (part == place) return;
      place = part;
      const int64_t first = int64_t{part} * Row::kCapacity, left = num_classes - first;
      held.load(z + first * z_stride, z_stride, g + first * g_stride, g_stride,
                has_loss ? static_cast<int>(min(left, int64_t{Row::kCapacity})) : 0, label - first);
    };

    T z_max = -INFINITY, g_max = -INFINITY;
    for (int part = 0; part <= last; ++part) {
      hold(part);
      held.raise(z_max, g_max);
    }
    z_max = team_reduce<kTeam>(z_max, Maximum{});
    g_max = team_reduce<kTeam>(g_max, Maximum{});

    NotTrueSums<double> sums{};
    for (int part = last; part >= 0; --part) {
      hold(part);
      const NotTrueSums<T> of_part = held.sums(z_max, g_max, inverse_tau);
      sums = added(sums, {of_part.student, of_part.teacher, of_part.distance});
    }
    sums = {team_reduce<kTeam>(sums.student, Sum{}), team_reduce<kTeam>(sums.teacher, Sum{}),
            team_reduce<kTeam>(sums.distance, Sum{})};

    if (arguments.gradient && exists) {
      scalar_t* to = arguments.gradient + row_offset(arguments.gradient_layout, at);
      if (has_loss) {
        const auto coefficients = not_true_coefficients<T>(sums, arguments.tau * factor);
        for (int part = 0; part <= last; ++part) {
          hold(part);
          held.forget();
          held.write_gradient(to + int64_t{part} * Row::kCapacity * to_stride, to_stride, z_max,
                              g_max, inverse_tau, coefficients);
        }
      } else {
        for (int64_t c = threadIdx.x % kTeam; c < num_classes; c += kTeam) {
          to[c * to_stride] = static_cast<scalar_t>(T(0));
        }
      }
    }

    // Last: what is computed in double needs the registers.
    if (exists && threadIdx.x % kTeam == 0) {
      const double loss =
          has_loss ? not_true_loss(sums, log(sums.student / sums.teacher), arguments.tau) : 0;
      loss_sum += loss;
      if (arguments.reduction == Reduction::kNone) {
        arguments.loss[group * arguments.rows + row] = static_cast<scalar_t>(static_cast<T>(loss));
      }
    }
  }

  if (arguments.reduction == Reduction::kNone) return;
  loss_sum = block_sum<kThreads>(loss_sum);
  if (blocks > 1) {
    double* const losses = workspace.losses + group * blocks;
    if (threadIdx.x == 0) losses[blockIdx.y] = loss_sum;
    if (!is_last_block(&workspace.tickets[group], blocks)) return;
    loss_sum = 0;
    for (int64_t i = threadIdx.x; i < blocks; i += kThreads) loss_sum += __ldcg(&losses[i]);
    loss_sum = block_sum<kThreads>(loss_sum);
  }
  if (threadIdx.x == 0) {
    arguments.loss[group] = static_cast<scalar_t>(static_cast<T>(loss_sum * factor));
  }
}

// ---- launch ------------------------------------------------------------------------------------

// Whether every row begins at a 16-byte boundary, its classes next to each other.
template <typename scalar_t>
bool is_aligned(const scalar_t* data, const RowLayout& layout) {
  constexpr int64_t kWidth = Vector<scalar_t>::kSize;
  return layout.class_stride == 1 && reinterpret_cast<uintptr_t>(data) % 16 == 0 &&
         layout.group_stride % kWidth == 0 && layout.batch_stride % kWidth == 0 &&
         layout.position_stride % kWidth == 0;
}

// Calls with(the number of threads that share a row, whether they access vectors), constants both.
template <typename scalar_t, typename With>
void with_team(const NotTrueDistillationCudaArguments<scalar_t>& arguments, const With& with) {
  const auto of_rows = [&](auto vectors) {
    if (arguments.num_classes <= Part<scalar_t, 8, vectors>::kCapacity) {
      with(std::integral_constant<int, 8>(), vectors);
    } else if (arguments.num_classes <= Part<scalar_t, 32, vectors>::kCapacity) {
      with(std::integral_constant<int, 32>(), vectors);
    } else {
      with(std::integral_constant<int, kThreads>(), vectors);
    }
  };
  if (arguments.student_layout.class_stride != 1 && arguments.num_classes > 1) {
    with(std::integral_constant<int, 1>(), std::false_type());
  } else if (is_aligned(arguments.student, arguments.student_layout) &&
             is_aligned(arguments.teacher, arguments.teacher_layout) &&
             (!arguments.gradient || is_aligned(arguments.gradient, arguments.gradient_layout))) {
    of_rows(std::true_type());
  } else {
    of_rows(std::false_type());
  }
}

// Blocks for each group; enough for any GPU, and the same on all.
template <typename scalar_t>
int64_t blocks_of_group(const NotTrueDistillationCudaArguments<scalar_t>& arguments) {
  constexpr int64_t kOneBlockElements = 16384, kMostBlocks = 4096;
  if (arguments.rows * arguments.num_classes <= kOneBlockElements) return 1;
  int64_t blocks = 1;
  with_team(arguments,
            [&](auto team, auto) { blocks = ceil_div(arguments.rows, kThreads / team); });
  return std::min(blocks, std::max<int64_t>(1, kMostBlocks / arguments.groups));
}

}  // namespace

template <typename scalar_t>
size_t not_true_distillation_workspace(
    const NotTrueDistillationCudaArguments<scalar_t>& arguments) {
  if (arguments.groups == 0) return 0;
  const int64_t blocks = blocks_of_group(arguments);
  if (blocks == 1) return 0;
  return arguments.groups * ((1 + blocks) * sizeof(double) + sizeof(unsigned));
}

template <typename scalar_t>
cudaError_t not_true_distillation_forward_cuda(
    const NotTrueDistillationCudaArguments<scalar_t>& arguments, cudaStream_t stream) {
  if (arguments.groups == 0) return cudaSuccess;
  const int64_t blocks = blocks_of_group(arguments);
  const auto groups = static_cast<unsigned>(arguments.groups);
  if (blocks > 1) {
    FEDKERN_LAUNCH(prepare<scalar_t>, groups, kThreads, 0, stream, arguments, blocks);
  }
  const dim3 grid(groups, static_cast<unsigned>(blocks));
  with_team(arguments, [&](auto team, auto vectors) {
    FEDKERN_LAUNCH((run_teams<scalar_t, team, vectors>), grid, kThreads, 0, stream, arguments);
  });
  return cudaGetLastError();
}

#define FEDKERN_INSTANTIATE(scalar_t)                      \
  template size_t not_true_distillation_workspace(         \
      const NotTrueDistillationCudaArguments<scalar_t>&);  \
  template cudaError_t not_true_distillation_forward_cuda( \
      const NotTrueDistillationCudaArguments<scalar_t>&, cudaStream_t);
FEDKERN_INSTANTIATE(float)
FEDKERN_INSTANTIATE(double)
FEDKERN_INSTANTIATE(__half)
FEDKERN_INSTANTIATE(__nv_bfloat16)
#undef FEDKERN_INSTANTIATE

}  // namespace fedkern
