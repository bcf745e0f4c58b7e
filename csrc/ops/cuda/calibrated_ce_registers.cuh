#pragma once

// Rows whose classes lie next to each other, without class weights and with the "label" gradient:
// what training runs on, in float32, bfloat16 and float16.
//
// A team of threads (some lanes of a warp, or a block) holds a row in registers: it is read once,
// in 16-byte accesses of which each thread has 4 to 16 on the way, and its gradient is written
// once. Rows need no alignment: what lies before the first and after the last 16-byte boundary, the
// edges, is read element by element. Per element: two exponentials (half the registers of keeping
// them; 16-bit logits stay packed), about 20 instructions. What is computed in double, once a row,
// is done for all rows of a block at once, a thread each: the gradient's coefficients by the first
// warp, the losses by the last, while the others write.

#include <cfloat>
#include <type_traits>

#include "common/cuda_math.cuh"
#include "common/cuda_vector.cuh"
#include "ops/cuda/calibrated_ce_classes.cuh"

namespace fedkern {

// ---- a row, or as much of it as a team can hold ------------------------------------------------

template <typename scalar_t, int kTeam, int kVectors>
class TeamRow {
 public:
  using T = accumulate_t<scalar_t>;
  static constexpr int kWidth = Vector<scalar_t>::kSize;
  static constexpr int kEdges = (2 * (kWidth - 1) + kTeam - 1) / kTeam;
  static constexpr int kCapacity = kTeam * kVectors * kWidth;

  // Classes z[0..size), at most kCapacity, plus adjustment[0..size) unless that is null. They are
  // not read unless `counts`: then all are 0.
  __device__ TeamRow(const scalar_t* z, int size, bool counts, const T* adjustment)
      : adjustment_(counts ? adjustment : nullptr) {
    const int lane = threadIdx.x % kTeam;
    const int head = min(elements_to_boundary(z), size);
    const int vectors = (size - head) / kWidth;
    first_ = head + lane * kWidth;
    vectors_left_ = vectors - lane;
#pragma unroll
    for (int k = 0; k < kVectors; ++k) {
      z_[k] = Vector<scalar_t>{};
      if (counts && has(k)) z_[k] = load_past_l1(z + first_ + k * kStep);
    }
#pragma unroll
    for (int k = 0; k < kEdges; ++k) {
      const int edge = lane + k * kTeam;
      const bool exists = edge < size - vectors * kWidth;
      edge_class_[k] = !exists ? -1 : edge < head ? edge : edge + vectors * kWidth;
      edge_[k] =
          counts && exists ? adjusted_logit(z + edge_class_[k], adjustment, edge_class_[k]) : T(0);
    }
    if constexpr (kHoldsSums) {
      if (!adjustment_) return;
#pragma unroll
      for (int k = 0; k < kVectors; ++k) {
        if (!has(k)) continue;
        T z_k[kWidth];
        unpack(z_[k], z_k);
        adjust(k, z_k);
        z_[k] = pack<scalar_t>(z_k);
      }
    }
  }

  // The maximum of this thread's classes.
  __device__ T maximum() const {
    T m = -INFINITY;
#pragma unroll
    for (int k = 0; k < kVectors; ++k) {
      if (!has(k)) continue;
      T z[kWidth];
      logits(k, z);
#pragma unroll
      for (int i = 0; i < kWidth; ++i) m = max(m, z[i]);
    }
#pragma unroll
    for (int k = 0; k < kEdges; ++k) {
      if (has_edge(k)) m = max(m, edge_[k]);
    }
    return m;
  }

  // Adds this thread's classes to its sums.
  __device__ void add_to(RowSums<T>& sums, T maximum, const T* n, T n_y) const {
    const auto add = [&](T z, T n_c) {
      constexpr T kLowest = std::is_same_v<T, double> ? -DBL_MAX : -FLT_MAX;  // 0 * -inf is nan
      const T d = z - maximum;
      const T e = exponential(d);
      const T weighted_e = (n_c - n_y) * e;
      sums.s += e;
      sums.a += weighted_e;
      sums.b += weighted_e * max(d, kLowest);
    };
#pragma unroll
    for (int k = 0; k < kVectors; ++k) {
      if (!has(k)) continue;
      T z[kWidth], n_c[kWidth];
      logits(k, z);
      load_counts(n, k, n_c);
#pragma unroll
      for (int i = 0; i < kWidth; ++i) add(z[i], n_c[i]);
    }
#pragma unroll
    for (int k = 0; k < kEdges; ++k) {
      if (has_edge(k)) add(edge_[k], n[edge_class_[k]]);
    }
  }

  // Adds what label smoothing needs beside.
  __device__ void add_distances_to(RowSums<T>& sums, T maximum) const {
#pragma unroll
    for (int k = 0; k < kVectors; ++k) {
      if (!has(k)) continue;
      T z[kWidth];
      logits(k, z);
#pragma unroll
      for (int i = 0; i < kWidth; ++i) sums.v += z[i] - maximum;
    }
#pragma unroll
    for (int k = 0; k < kEdges; ++k) {
      if (has_edge(k)) sums.v += edge_[k] - maximum;
    }
  }

  // What has been computed from the registers is not worth other registers: the compiler shall
  // compute it again.
  __device__ void forget() {
#pragma unroll
    for (int k = 0; k < kVectors; ++k) make_opaque(z_[k]);
  }

  // `label` counts from this row's first class.
  __device__ void write_gradient(scalar_t* g, T maximum, const T* n, int64_t label,
                                 const GradientCoefficients<T>& coefficients) const {
    const auto gradient = [&](T z, T n_c) {
      const T e = exponential(z - maximum);
      return class_gradient<Calibration::kLabel, false>(e, n_c, n_c, coefficients) -
             coefficients.smoothing;
    };
    const bool aligned = reinterpret_cast<uintptr_t>(g + first_) % 16 == 0;  // as z is, mostly
    // From the first vector's first class to the label, if that is near enough.
    const int to_label =
        label >= first_ && label - first_ < kCapacity ? static_cast<int>(label) - first_ : -1;
#pragma unroll
    for (int k = 0; k < kVectors; ++k) {
      if (!has(k)) continue;
      T values[kWidth], n_c[kWidth];
      logits(k, values);
      load_counts(n, k, n_c);
#pragma unroll
      for (int i = 0; i < kWidth; ++i) values[i] = gradient(values[i], n_c[i]);
      if (static_cast<unsigned>(to_label - k * kStep) < kWidth) {
#pragma unroll
        for (int i = 0; i < kWidth; ++i) {
          if (to_label == k * kStep + i) values[i] -= coefficients.label;
        }
      }
      scalar_t* to = g + first_ + k * kStep;
      if (aligned) {
        store_streaming(to, pack<scalar_t>(values));
      } else {
#pragma unroll
        for (int i = 0; i < kWidth; ++i) to[i] = static_cast<scalar_t>(values[i]);
      }
    }
#pragma unroll
    for (int k = 0; k < kEdges; ++k) {
      if (!has_edge(k)) continue;
      const int c = edge_class_[k];
      const T value = gradient(edge_[k], n[c]);
      g[c] = static_cast<scalar_t>(label == c ? value - coefficients.label : value);
    }
  }

 private:
  static constexpr int kStep = kTeam * kWidth;  // classes from a vector to the thread's next
  // A logit and its adjustment fit where the logit was; else they are added at each use.
  static constexpr bool kHoldsSums = std::is_same_v<scalar_t, T>;

  __device__ bool has(int k) const { return k * kTeam < vectors_left_; }
  __device__ bool has_edge(int k) const { return edge_class_[k] >= 0; }

  // A vector's part of a class vector: 16 bytes at a time where it is `aligned`.
  __device__ static void load_classes(const T* from, bool aligned, T (&to)[kWidth]) {
    constexpr int kSize = Vector<T>::kSize;
    if (aligned) {
#pragma unroll
      for (int i = 0; i < kWidth; i += kSize) {
        T part[kSize];
        unpack(load_cached(from + i), part);
#pragma unroll
        for (int j = 0; j < kSize; ++j) to[i + j] = part[j];
      }
    } else {
#pragma unroll
      for (int i = 0; i < kWidth; ++i) to[i] = from[i];
    }
  }

  // Vector k's n, which begins on a boundary.
  __device__ void load_counts(const T* n, int k, T (&n_c)[kWidth]) const {
    load_classes(n + first_ + k * kStep, first_ % Vector<T>::kSize == 0, n_c);
  }

  // Vector k's logits.
  __device__ void logits(int k, T (&z)[kWidth]) const {
    unpack(z_[k], z);
    if (!kHoldsSums && adjustment_) adjust(k, z);
  }

  __device__ void adjust(int k, T (&z)[kWidth]) const {
    T b[kWidth];
    const T* from = adjustment_ + first_ + k * kStep;
    load_classes(from, reinterpret_cast<uintptr_t>(from) % 16 == 0, b);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) z[i] += b[i];
  }

  const T* adjustment_;     // or null
  int first_;               // class of this thread's first vector, which may not be there
  int vectors_left_;        // in the row, from it on
  int edge_class_[kEdges];  // or -1
  Vector<scalar_t> z_[kVectors];
  T edge_[kEdges];
};

// What is subtracted from logits: see shifted().
template <typename T>
__device__ T reference(T maximum) {
  return maximum == -INFINITY ? T(0) : maximum;
}

// Without weights the sum of w_c is C.
template <typename scalar_t>
__device__ LabelSmoothing
unweighted_smoothing(const CalibratedCECudaArguments<scalar_t>& arguments) {
  const double num_classes = static_cast<double>(arguments.num_classes);
  return {1 - arguments.label_smoothing, arguments.label_smoothing / num_classes, num_classes};
}

template <int kLanes>
__device__ RowSums<double> lane_sum(const RowSums<double>& own, bool with_v) {
  return {lane_reduce<kLanes>(own.s, Sum{}), lane_reduce<kLanes>(own.a, Sum{}),
          lane_reduce<kLanes>(own.b, Sum{}), with_v ? lane_reduce<kLanes>(own.v, Sum{}) : 0.0};
}

template <typename T>
__device__ RowSums<double> in_double(const RowSums<T>& sums) {
  return {sums.s, sums.a, sums.b, sums.v};
}

// ---- Path::kRegisters: a team a row ------------------------------------------------------------

// What the teams of a block leave to the threads that serve rows: in shared memory, since the teams
// need their registers.
template <typename T>
struct ServedRow {
  int64_t label;  // -1: the row does not count
  T maximum;
  T z_y;
  T n_y;
};

struct ServedGroup {
  double factor;  // 1 over the mean's denominator, else 1
  LabelSmoothing smoothing;
};

// sums[0..parts) are to be added up.
template <typename T>
__device__ void serve_gradient(const RowSums<double>* sums, int parts, const ServedRow<T>& row,
                               const ServedGroup& group, GradientCoefficients<T>& coefficients) {
  coefficients = {};
  if (row.label < 0) return;
  RowSums<double> row_sums = sums[0];
  for (int i = 1; i < parts; ++i) row_sums = added(row_sums, sums[i]);
  coefficients = rounded<T>(gradient_coefficients(Calibration::kLabel, row_sums, row.n_y, 1,
                                                  group.smoothing, group.factor));
}

template <typename T>
__device__ double serve_loss(const RowSums<double>* sums, int parts, const ServedRow<T>& row,
                             const ServedGroup& group) {
  if (row.label < 0) return 0;
  RowSums<double> row_sums = sums[0];
  for (int i = 1; i < parts; ++i) row_sums = added(row_sums, sums[i]);
  return row_loss(row_sums, row.z_y - row.maximum, row.n_y, 1, group.smoothing);
}

// How many threads share a row of C classes, in blocks of how many, and what each holds of it. Of
// 65536 registers `blocks` blocks leave each thread 80 to 128, enough for its vectors and for what
// is computed in double.
template <typename scalar_t, int team>
struct TeamShape;

// Chosen for Hopper; compiled for others, the same code takes a few registers more.
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ == 900
constexpr bool kHopper = true;
#else
constexpr bool kHopper = false;
#endif

// Lanes: 32 classes a thread.
template <typename scalar_t>
struct LaneShape {
  static constexpr bool kPacked = sizeof(scalar_t) == 2;
  static constexpr int kVectors = kPacked ? 4 : 8;
  static constexpr int kThreads = kPacked ? 256 : 128;
  static constexpr int kBlocks = (kPacked ? 3 : 5) - (kHopper ? 0 : 1);
};
template <typename scalar_t>
struct TeamShape<scalar_t, 8> : LaneShape<scalar_t> {};
template <typename scalar_t>
struct TeamShape<scalar_t, 32> : LaneShape<scalar_t> {};

// A block a row; while one waits for its row another computes.
template <typename scalar_t>
struct TeamShape<scalar_t, 256> {
  static constexpr int kVectors = 8;
  static constexpr int kThreads = 256;
  static constexpr int kBlocks = 2;
};

// As much of a row as a multiprocessor's registers can hold: with logits to adjust, they would
// spill.
template <typename scalar_t>
struct TeamShape<scalar_t, 512> {
  static constexpr int kVectors = 16;
  static constexpr int kThreads = 512;
  static constexpr int kBlocks = 1;
};

template <typename scalar_t, int kTeam>
using ShapedRow = TeamRow<scalar_t, kTeam, TeamShape<scalar_t, kTeam>::kVectors>;

// A row that is longer than a block's registers is read in chunks, and again from the last to the
// first: what was read last is still in registers, then in the L2 cache.
template <typename scalar_t, int kTeam, typename T = accumulate_t<scalar_t>>
__global__ void __launch_bounds__(TeamShape<scalar_t, kTeam>::kThreads,
                                  TeamShape<scalar_t, kTeam>::kBlocks)
    run_teams(const CalibratedCECudaArguments<scalar_t> arguments, const Plan<T> plan) {
  using Row = ShapedRow<scalar_t, kTeam>;
  constexpr int kThreads = TeamShape<scalar_t, kTeam>::kThreads;
  constexpr int kRows = kThreads / kTeam;  // at once
  constexpr int kLanes = kTeam < 32 ? kTeam : 32;
  constexpr int kParts = kTeam / kLanes;  // warps a row
  constexpr bool kShared = kTeam <= 32;   // short rows: n is in shared memory
  constexpr bool kChunked = kParts > 1;   // rows of any length
  static_assert(kRows <= 32 && kThreads >= 64, "a warp has a lane for each row");
  static_assert(kShared == (Row::kCapacity <= kSharedClasses), "several parts of n are added up");
  __shared__ T maxima[kThreads / kLanes];
  // Twice, in turns: losses are computed when other warps have gone on to the next rows.
  __shared__ RowSums<double> sums_of[2][kThreads / kLanes];
  __shared__ ServedRow<T> served_rows[2][kRows];
  __shared__ GradientCoefficients<T> coefficients_of[kRows];
  __shared__ double losses[32];
  __shared__ ServedGroup shared;
  FEDKERN_DYNAMIC_SHARED(T, shared_n);

  const int64_t group = blockIdx.x, block = blockIdx.y;
  const T* n = group_counts(arguments, plan, group);
  if (kShared) {
    share_counts<kThreads>(arguments, plan, group, shared_n);
    n = shared_n;
  }
  const double denominator = class_sums<kThreads>(arguments, plan, group).denominator;
  if (threadIdx.x == 0) shared = {1 / denominator, unweighted_smoothing(arguments)};
  if (threadIdx.x < 32) losses[threadIdx.x] = 0;
  __syncthreads();

  // Chunks of about the same size, that begin as far from a boundary as the row.
  const int64_t num_classes = arguments.num_classes;
  const int chunks =
      kChunked ? static_cast<int>((num_classes + Row::kCapacity - 1) / Row::kCapacity) : 1;
  const int chunk = static_cast<int>(kChunked ? ((num_classes + chunks - 1) / chunks + 31) / 32 * 32
                                              : num_classes);

  const int team = kRows == 1 ? 0 : threadIdx.x / kTeam;  // in a warp's uniform registers, if 0
  int turn = 0;
  for (int64_t first = block * kRows; first < arguments.rows; first += plan.blocks * kRows) {
    turn ^= 1;
    const int64_t row = first + team;
    const bool exists = row < arguments.rows;
    const int64_t label =
        exists ? arguments.target[group * arguments.rows + row] : arguments.ignore_index;
    const bool counts = label != arguments.ignore_index;
    const scalar_t* z = arguments.logits + group * arguments.logits_layout.group_stride +
                        row * plan.logits_row_stride;
    const T* adjustment = kTeam == 512 ? nullptr : group_adjustment(arguments, group);
    const auto load = [&](int i) {
      const int64_t begin = int64_t{i} * chunk, left = num_classes - begin;
      return Row(z + begin, exists ? static_cast<int>(left < chunk ? left : chunk) : 0, counts,
                 adjustment ? adjustment + begin : nullptr);
    };
    Row held = load(0);
    const T n_y = counts ? n[label] : T(1);
    if (threadIdx.x % kTeam == 0) {
      served_rows[turn][team] = {counts ? label : -1, 0,
                                 counts ? adjusted_logit(z + label, adjustment, label) : T(0), n_y};
    }

    // The team's maximum and sums.
    T maximum = -INFINITY;
    RowSums<T> own{};
    for (int i = 0; i < chunks; ++i) {
      if (kChunked && i > 0) held = load(i);
      const T before = maximum;
      maximum = lane_reduce<kLanes>(max(maximum, held.maximum()), Maximum{});
      if (kParts > 1) {
        maxima[threadIdx.x / 32] = maximum;
        __syncthreads();
        maximum = maxima[team * kParts + threadIdx.x % 32 % kParts];
        maximum = lane_reduce<kParts>(maximum, Maximum{});
        if (kChunked) __syncthreads();  // before the next chunk's maxima
      }
      held.forget();
      if (kChunked && i > 0) {
        // One thread of the team stands for all the classes that were before.
        const T by = reference(before) - reference(maximum);
        own = shifted(own, by, exponential(by), threadIdx.x == 0 ? T(i * chunk) : T(0));
      }
      RowSums<T> part{};
      held.add_to(part, reference(maximum), n + int64_t{i} * chunk, n_y);
      own = added(own, part);
      if (arguments.label_smoothing != 0) held.add_distances_to(own, reference(maximum));
    }
    maximum = reference(maximum);
    const RowSums<double> sums = lane_sum<kLanes>(in_double(own), arguments.label_smoothing != 0);
    if (threadIdx.x % kLanes == 0) sums_of[turn][threadIdx.x / kLanes] = sums;
    if (threadIdx.x % kTeam == 0) served_rows[turn][team].maximum = maximum;
    __syncthreads();

    // The first warp computes the gradient's coefficients, a lane a row.
    const int served = threadIdx.x % 32;
    if (arguments.gradient) {
      if (threadIdx.x < kRows) {
        serve_gradient(&sums_of[turn][served * kParts], kParts, served_rows[turn][served], shared,
                       coefficients_of[served]);
      }
      __syncthreads();
      held.forget();
      const ServedRow<T>& of = served_rows[turn][team];
      scalar_t* g = arguments.gradient + group * arguments.gradient_layout.group_stride +
                    row * plan.gradient_row_stride;
      for (int i = chunks - 1; i >= 0; --i) {
        if (kChunked && i < chunks - 1) held = load(i);
        const int64_t begin = int64_t{i} * chunk;
        held.write_gradient(g + begin, of.maximum, n + begin, of.label - begin,
                            coefficients_of[team]);
      }
    }

    // The last warp computes the losses.
    if (threadIdx.x >= kThreads - 32 && served < kRows && first + served < arguments.rows) {
      const double loss =
          serve_loss(&sums_of[turn][served * kParts], kParts, served_rows[turn][served], shared);
      losses[served] += loss;
      if (arguments.reduction == Reduction::kNone) {
        arguments.loss[group * arguments.rows + first + served] =
            static_cast<scalar_t>(static_cast<T>(loss));
      }
    }
  }

  if (arguments.reduction == Reduction::kNone) return;
  __syncthreads();
  const double loss = block_sum<kThreads>(threadIdx.x < 32 ? losses[threadIdx.x] : 0.0);
  if (threadIdx.x == 0) plan.losses[group * plan.blocks + block] = loss;
  finish_loss<kThreads>(arguments, plan, group, plan.blocks, plan.losses + group * plan.blocks,
                        plan.blocks, denominator);
}

// ---- Path::kParts: several blocks a row --------------------------------------------------------

constexpr int kPartThreads = 256;
constexpr int kPartClasses = 4096;

template <typename scalar_t>
using PartRow =
    TeamRow<scalar_t, kPartThreads, kPartClasses / kPartThreads / Vector<scalar_t>::kSize>;

template <typename T>
struct RowPart {
  T maximum;
  T classes;
  RowSums<double> sums;
};

// A block a part: counts the labels of its classes, too, which saves a kernel; the blocks of a
// group's first row leave them to the next kernel.
template <typename scalar_t, typename T = accumulate_t<scalar_t>>
__global__ void __launch_bounds__(kPartThreads, 2)
    run_parts(const CalibratedCECudaArguments<scalar_t> arguments, const Plan<T> plan) {
  __shared__ unsigned histogram[kPartClasses];
  __shared__ __align__(16) T n[kPartClasses];
  const int64_t group = blockIdx.x, row = blockIdx.y, part = blockIdx.z;
  const int64_t first = part * kPartClasses;
  const int range = static_cast<int>(min(arguments.num_classes - first, int64_t{kPartClasses}));
  const ClassSums class_sums =
      count_classes<kPartThreads>(arguments, group, 0, arguments.rows, first, range, histogram, n);
  if (row == 0 && owns_counts(arguments, group)) {
    T* counts = group_counts(arguments, plan, group);
    for (int i = threadIdx.x; i < range; i += kPartThreads) counts[first + i] = n[i];
  }
  if (row == 0 && threadIdx.x == 0) {
    plan.class_sums[group * plan.row_parts + part] = class_sums;
    if (part == 0) plan.tickets[group] = 0;
  }

  const int64_t* target = arguments.target + group * arguments.rows;
  const int64_t label = target[row];
  if (label == arguments.ignore_index) return;
  T n_y = 0;
  if (arguments.class_counts) {
    n_y = arguments.class_counts[group * arguments.class_counts_stride + label] *
          given_counts_unit<kPartThreads>(arguments, group);
  } else {
    for (int64_t i = threadIdx.x; i < arguments.rows; i += kPartThreads) n_y += target[i] == label;
    n_y = block_sum<kPartThreads>(n_y);
  }

  const scalar_t* z = arguments.logits + group * arguments.logits_layout.group_stride +
                      row * plan.logits_row_stride + first;
  const T* adjustment = group_adjustment(arguments, group);
  const PartRow<scalar_t> held(z, range, true, adjustment ? adjustment + first : nullptr);
  const T maximum = block_max<kPartThreads>(held.maximum());
  RowSums<T> own{};
  held.add_to(own, reference(maximum), n, n_y);
  if (arguments.label_smoothing != 0) held.add_distances_to(own, reference(maximum));
  const RowSums<double> sums{
      block_sum<kPartThreads, double>(own.s), block_sum<kPartThreads, double>(own.a),
      block_sum<kPartThreads, double>(own.b), block_sum<kPartThreads, double>(own.v)};
  if (threadIdx.x == 0) {
    const int64_t index = (group * arguments.rows + row) * plan.row_parts + part;
    static_cast<RowPart<T>*>(plan.parts)[index] = {maximum, static_cast<T>(range), sums};
  }
}

// All lanes of a warp get the whole row's sums and maximum.
template <typename T>
__device__ RowPart<T> merged(const RowPart<T>* parts, int64_t count) {
  const int64_t lane = threadIdx.x % 32;
  T maximum = -INFINITY;
  for (int64_t i = lane; i < count; i += 32) maximum = max(maximum, parts[i].maximum);
  maximum = lane_reduce<32>(maximum, Maximum{});
  RowSums<double> sums{};
  for (int64_t i = lane; i < count; i += 32) {
    const T by = reference(parts[i].maximum) - reference(maximum);
    sums = added(sums, shifted<double>(parts[i].sums, by, exponential(by), parts[i].classes));
  }
  return {reference(maximum), 0, lane_sum<32>(sums, true)};
}

template <typename scalar_t, typename T = accumulate_t<scalar_t>>
__global__ void __launch_bounds__(kPartThreads, 2)
    finish_parts(const CalibratedCECudaArguments<scalar_t> arguments, const Plan<T> plan) {
  __shared__ T maximum;
  __shared__ GradientCoefficients<T> coefficients;
  const int64_t group = blockIdx.x, row = blockIdx.y, part = blockIdx.z;
  const int64_t first = part * kPartClasses;
  const int range = static_cast<int>(min(arguments.num_classes - first, int64_t{kPartClasses}));
  const T* n = group_counts(arguments, plan, group);
  const double denominator = class_sums<kPartThreads>(arguments, plan, group).denominator;
  const int64_t label = arguments.target[group * arguments.rows + row];
  const bool counts = label != arguments.ignore_index;
  const scalar_t* z = arguments.logits + group * arguments.logits_layout.group_stride +
                      row * plan.logits_row_stride;
  const T* adjustment = group_adjustment(arguments, group);
  const PartRow<scalar_t> held(z + first, range, counts && arguments.gradient,
                               adjustment ? adjustment + first : nullptr);

  if (threadIdx.x < 32) {
    double loss = 0;
    GradientCoefficients<T> k{};
    RowPart<T> whole{};
    if (counts) {
      whole = merged(static_cast<const RowPart<T>*>(plan.parts) +
                         (group * arguments.rows + row) * plan.row_parts,
                     plan.row_parts);
      const LabelSmoothing smoothing = unweighted_smoothing(arguments);
      k = rounded<T>(gradient_coefficients(Calibration::kLabel, whole.sums, n[label], 1, smoothing,
                                           1 / denominator));
      loss = row_loss(whole.sums, adjusted_logit(z + label, adjustment, label) - whole.maximum,
                      n[label], 1, smoothing);
    }
    if (threadIdx.x == 0) {
      coefficients = k;
      maximum = whole.maximum;
      if (part == 0 && arguments.reduction == Reduction::kNone) {
        arguments.loss[group * arguments.rows + row] = static_cast<scalar_t>(static_cast<T>(loss));
      } else if (part == 0) {
        plan.losses[group * arguments.rows + row] = loss;
      }
    }
  }
  __syncthreads();
  if (arguments.gradient) {
    scalar_t* g = arguments.gradient + group * arguments.gradient_layout.group_stride +
                  row * plan.gradient_row_stride;
    held.write_gradient(g + first, maximum, n + first, label - first, coefficients);
  }
  if (arguments.reduction == Reduction::kNone) return;
  finish_loss<kPartThreads>(arguments, plan, group, arguments.rows * plan.row_parts,
                            plan.losses + group * arguments.rows, arguments.rows, denominator);
}

}  // namespace fedkern
