#pragma once

// Rows of any layout, dtype, weights and calibration, and groups so small that one block does all.
//
// Some threads share a row, each walks down its classes: online row statistics in a first read, the
// gradient in a second, which the caches serve. Where rows lie next to each other ([N, C, d1, ...],
// a transposed matrix) neighbouring threads have neighbouring rows, else neighbouring classes.

#include "common/cuda_math.cuh"
#include "common/cuda_rows.cuh"
#include "ops/cuda/calibrated_ce_classes.cuh"

namespace fedkern {

constexpr int kWalkThreads = 512;

// What one group's rows share.
template <typename T>
struct WalkGroup {
  int64_t index;
  const T* n;
  const T* w;           // or null: all 1
  const T* adjustment;  // or null: all 0
  LabelSmoothing smoothing;
  double factor;  // of the gradient
};

template <typename scalar_t, typename T = accumulate_t<scalar_t>>
__device__ WalkGroup<T> walk_group(const CalibratedCECudaArguments<scalar_t>& arguments,
                                   int64_t group, const T* n, const ClassSums& sums) {
  const double everywhere = arguments.label_smoothing / static_cast<double>(arguments.num_classes);
  return {group,
          n,
          arguments.weight ? arguments.weight + group * arguments.weight_stride : nullptr,
          group_adjustment(arguments, group),
          {1 - arguments.label_smoothing, everywhere, sums.weight},
          1 / sums.denominator};
}

// ---- one thread's classes of a row -------------------------------------------------------------

// A running maximum, and the sums at it. Sums of sums: a chain of additions as long as a row would
// lose digits.
template <typename T>
struct OnlineSums {
  T maximum;
  T weight;  // sum w_c
  RowSums<T> sums;
  RowSums<T> part;  // of the last classes: not in sums yet

  __device__ static T reference(T maximum) { return maximum == -INFINITY ? T(0) : maximum; }

  __device__ void move_to(T new_maximum) {
    const T by = reference(maximum) - reference(new_maximum);
    gather();
    sums = shifted(sums, by, exponential(by), weight);
    maximum = new_maximum;
  }

  __device__ void gather() {
    sums = added(sums, part);
    part = {};
  }

  __device__ void add(T z, T n_c, T w_c, T n_y) {
    const T d = z - reference(maximum);
    const T e = exponential(d);
    const T weighted_e = w_c * (n_c - n_y) * e;
    part.s += e;
    part.a += weighted_e;
    part.b += zero_or_product(weighted_e, d);
    part.v += zero_or_product(w_c, d);
    weight += w_c;
  }
};

// Every `step`-th class from `first` on.
template <typename scalar_t, typename T = accumulate_t<scalar_t>>
__device__ OnlineSums<T> walk_sums(const WalkGroup<T>& group, const scalar_t* z,
                                   int64_t class_stride, int64_t num_classes, int64_t first,
                                   int64_t step, T n_y) {
  constexpr int kInFlight = 4, kPart = 32;  // kPart times kInFlight classes are a part
  OnlineSums<T> own{-INFINITY, 0, {}, {}};
  int taken = 0;
  for (int64_t c = first; c < num_classes; c += kInFlight * step) {
    if (++taken % kPart == 0) own.gather();
    T z_c[kInFlight];
    T maximum = own.maximum;
#pragma unroll
    for (int k = 0; k < kInFlight; ++k) {
      const int64_t c_k = c + k * step;
      z_c[k] = c_k < num_classes ? adjusted_logit(z + c_k * class_stride, group.adjustment, c_k)
                                 : T(-INFINITY);
      maximum = max(maximum, z_c[k]);
    }
    if (maximum > own.maximum) own.move_to(maximum);
#pragma unroll
    for (int k = 0; k < kInFlight; ++k) {
      const int64_t c_k = c + k * step;
      if (c_k < num_classes) own.add(z_c[k], group.n[c_k], group.w ? group.w[c_k] : T(1), n_y);
    }
  }
  return own;
}

template <Calibration kCalibration, typename scalar_t, typename T = accumulate_t<scalar_t>>
__device__ void walk_gradient(const WalkGroup<T>& group, const scalar_t* z, int64_t z_stride,
                              scalar_t* g, int64_t g_stride, int64_t num_classes, int64_t first,
                              int64_t step, int64_t label, T maximum,
                              const GradientCoefficients<T>& k) {
#pragma unroll 4
  for (int64_t c = first; c < num_classes; c += step) {
    const T e = exponential(adjusted_logit(z + c * z_stride, group.adjustment, c) - maximum);
    T g_c = class_gradient<kCalibration, true>(e, group.n[c], group.w ? group.w[c] : T(1), k);
    if (c == label) g_c -= k.label;
    g[c * g_stride] = static_cast<scalar_t>(g_c);
  }
}

// ---- a block's rows of a group -----------------------------------------------------------------

// Rows of block `block` of `blocks`. Returns the sum of the losses that this thread has computed.
template <typename scalar_t, typename T = accumulate_t<scalar_t>>
__device__ double walk_rows(const CalibratedCECudaArguments<scalar_t>& arguments,
                            const WalkGroup<T>& group, int64_t block, int64_t blocks, int team,
                            bool adjacent_rows) {
  // A thread's sums; of a row's first thread then the row's, then its coefficients.
  union Slot {
    RowSums<double> sums;
    GradientCoefficients<T> coefficients;
  };
  __shared__ T maxima[kWalkThreads];
  __shared__ Slot slots[kWalkThreads];
  const int thread = threadIdx.x, rows_at_once = kWalkThreads / team;
  const int own_row = adjacent_rows ? thread % rows_at_once : thread / team;
  const int lane = adjacent_rows ? thread / rows_at_once : thread % team;
  // From a row's slots to the next lane's, from the rows' first slots to the next row's.
  const int lane_step = adjacent_rows ? rows_at_once : 1, row_step = adjacent_rows ? 1 : team;
  const int64_t num_classes = arguments.num_classes;

  double loss_sum = 0;
  for (int64_t begin = block * rows_at_once; begin < arguments.rows;
       begin += blocks * rows_at_once) {
    const auto label_of = [&](int64_t row) {
      return row < arguments.rows ? arguments.target[group.index * arguments.rows + row]
                                  : arguments.ignore_index;
    };
    const auto logits_of = [&](int64_t row) {
      const RowIndices at = row_indices(arguments.logits_layout, group.index, row);
      return arguments.logits + row_offset(arguments.logits_layout, at);
    };
    const int64_t row = begin + own_row, label = label_of(row);
    const bool counts = label != arguments.ignore_index;
    const scalar_t* z = logits_of(row);
    const int64_t z_stride = arguments.logits_layout.class_stride;
    OnlineSums<T> own{-INFINITY, 0, {}, {}};
    if (counts) {
      own = walk_sums(group, z, z_stride, num_classes, lane, team, group.n[label]);
    }

    // The row's maximum, then its sums: pairs of lanes, pairs of pairs, ...
    maxima[thread] = own.maximum;
    __syncthreads();
    for (int half = team / 2; half > 0; half /= 2) {
      if (lane < half) {
        maxima[thread] = max(maxima[thread], maxima[thread + half * lane_step]);
      }
      __syncthreads();
    }
    own.move_to(maxima[own_row * row_step]);
    const T maximum = OnlineSums<T>::reference(own.maximum);
    RowSums<double>& sums = slots[thread].sums;
    sums = {own.sums.s, own.sums.a, own.sums.b, own.sums.v};
    __syncthreads();
    for (int half = team / 2; half > 0; half /= 2) {
      if (lane < half) {
        const RowSums<double>& other = slots[thread + half * lane_step].sums;
        sums = added(sums, other);
      }
      __syncthreads();
    }

    // A thread a row.
    const int64_t served = begin + thread;
    if (thread < rows_at_once && served < arguments.rows) {
      Slot& slot = slots[thread * row_step];
      const int64_t y = label_of(served);
      double loss = 0;
      if (y == arguments.ignore_index) {
        slot.coefficients = {};
      } else {
        const RowSums<double> row_sums = slot.sums;
        const T n_y = group.n[y], w_y = group.w ? group.w[y] : T(1);
        const T d_y = adjusted_logit(logits_of(served) + y * z_stride, group.adjustment, y) -
                      OnlineSums<T>::reference(maxima[thread * row_step]);
        slot.coefficients = rounded<T>(gradient_coefficients(arguments.calibration, row_sums, n_y,
                                                             w_y, group.smoothing, group.factor));
        loss = row_loss(row_sums, d_y, n_y, w_y, group.smoothing);
      }
      loss_sum += loss;
      if (arguments.reduction == Reduction::kNone) {
        arguments.loss[group.index * arguments.rows + served] =
            static_cast<scalar_t>(static_cast<T>(loss));
      }
    }
    __syncthreads();

    if (!arguments.gradient || row >= arguments.rows) continue;
    const RowIndices at = row_indices(arguments.gradient_layout, group.index, row);
    scalar_t* g = arguments.gradient + row_offset(arguments.gradient_layout, at);
    const int64_t g_stride = arguments.gradient_layout.class_stride;
    if (!counts) {
      for (int64_t c = lane; c < num_classes; c += team) {
        g[c * g_stride] = static_cast<scalar_t>(T(0));
      }
      continue;
    }
    const GradientCoefficients<T> k = slots[own_row * row_step].coefficients;
    if (arguments.calibration == Calibration::kLabel) {
      walk_gradient<Calibration::kLabel>(group, z, z_stride, g, g_stride, num_classes, lane, team,
                                         label, maximum, k);
    } else {
      walk_gradient<Calibration::kGradient>(group, z, z_stride, g, g_stride, num_classes, lane,
                                            team, label, maximum, k);
    }
  }
  return loss_sum;
}

// ---- Path::kWalk: several blocks a group -------------------------------------------------------

template <typename scalar_t, typename T = accumulate_t<scalar_t>>
__global__ void __launch_bounds__(kWalkThreads, 1)
    run_walk(const CalibratedCECudaArguments<scalar_t> arguments, const Plan<T> plan) {
  FEDKERN_DYNAMIC_SHARED(T, shared_n);
  const int64_t index = blockIdx.x, block = blockIdx.y;
  const T* n = group_counts(arguments, plan, index);
  if (arguments.num_classes <= kSharedClasses) {
    share_counts<kWalkThreads>(arguments, plan, index, shared_n);
    n = shared_n;
  }
  const ClassSums sums = class_sums<kWalkThreads>(arguments, plan, index);
  const WalkGroup<T> group = walk_group(arguments, index, n, sums);
  double loss = walk_rows(arguments, group, block, plan.blocks, plan.team, plan.adjacent_rows);
  if (arguments.reduction == Reduction::kNone) return;
  loss = block_sum<kWalkThreads>(loss);
  if (threadIdx.x == 0) plan.losses[index * plan.blocks + block] = loss;
  finish_loss<kWalkThreads>(arguments, plan, index, plan.blocks, plan.losses + index * plan.blocks,
                            plan.blocks, sums.denominator);
}

// ---- Path::kOneBlock: a block a group, one launch for all --------------------------------------

constexpr int kOneBlockClasses = 1024;
constexpr int64_t kOneBlockElements = 16384;

template <typename scalar_t, typename T = accumulate_t<scalar_t>>
__global__ void __launch_bounds__(kWalkThreads, 1)
    run_one_block(const CalibratedCECudaArguments<scalar_t> arguments, const Plan<T> plan) {
  __shared__ unsigned histogram[kOneBlockClasses];
  __shared__ T n[kOneBlockClasses];
  for (int64_t index = blockIdx.x; index < arguments.groups; index += gridDim.x) {
    ClassSums sums{};
    if (arguments.rows > 0) {
      sums = count_classes<kWalkThreads>(arguments, index, 0, arguments.rows, 0,
                                         static_cast<int>(arguments.num_classes), histogram, n);
    }
    if (arguments.reduction != Reduction::kMean) sums.denominator = 1;
    double loss = walk_rows(arguments, walk_group<scalar_t, T>(arguments, index, n, sums), 0, 1,
                            plan.team, plan.adjacent_rows);
    if (arguments.reduction == Reduction::kNone) continue;
    loss = block_sum<kWalkThreads>(loss);
    if (threadIdx.x == 0) {
      arguments.loss[index] = static_cast<scalar_t>(static_cast<T>(loss / sums.denominator));
    }
  }
}

}  // namespace fedkern
