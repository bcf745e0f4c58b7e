#pragma once

// Class counts n, the logits' adjustment, the mean's denominator and the sum of the weights: what
// the rows of a group share.

#include <cmath>

#include "common/cuda_launch.h"
#include "common/cuda_reduce.cuh"
#include "ops/cuda/calibrated_ce_kernel.h"
#include "ops/cuda/class_counts.cuh"

namespace fedkern {

struct ClassSums {
  double denominator;  // sum of w_y over the rows that count
  double weight;       // sum_c w_c
};

// How a call is worked on: see choose_plan() in calibrated_ce_kernel.cu.
template <typename T>
struct Plan {
  enum class Path { kOneBlock, kRegisters, kParts, kWalk } path;

  // `prepare` works in tasks: a group's labels are in label_parts parts, the classes in
  // class_ranges ranges. Of each it leaves ClassSums, of each part counts of its own.
  int64_t label_parts;
  int64_t class_ranges;

  int64_t blocks;  // that share the rows of a group
  int team;        // threads that share a row

  // Path::kRegisters and kParts: rows are this far apart.
  int64_t logits_row_stride;
  int64_t gradient_row_stride;
  int64_t row_parts;  // Path::kParts: blocks that share a row

  bool adjacent_rows;  // Path::kWalk: rows, not classes, lie next to each other

  // In the workspace.
  ClassSums* class_sums;  // [groups, label_parts, class_ranges]
  double* losses;         // [groups, blocks], for kParts [groups, rows]: to be added up
  void* parts;            // [groups, rows, row_parts] of RowPart, for kParts
  T* counts;              // [count_vectors, count_parts, counts_stride]: n, or what adds up to it
  int64_t counts_stride;  // C and some, so that each begins on a 16-byte boundary
  unsigned* tickets;      // [groups]: blocks that have finished
};

// ---- one block: a range of classes of one group ------------------------------------------------

// What given counts are multiplied by; 1 if there are none. All of the block call.
template <int kThreads, typename scalar_t, typename T = accumulate_t<scalar_t>>
__device__ T given_counts_unit(const CalibratedCECudaArguments<scalar_t>& arguments,
                               int64_t group) {
  if (!arguments.class_counts) return T(1);
  const T* given = arguments.class_counts + group * arguments.class_counts_stride;
  T largest = 0;
#pragma unroll 1
  for (int64_t c = threadIdx.x; c < arguments.num_classes; c += kThreads) {
    largest = max(largest, given[c]);
  }
  return counts_unit(block_max<kThreads>(largest));
}

// Counts labels[0..size), checks labels and given counts, and writes n of classes [first, first +
// range) to n[0..range) unless it is null. The sums are over these labels and classes. All of the
// block call; all get the sums and see n.
template <int kThreads, typename scalar_t, typename T = accumulate_t<scalar_t>>
__device__ ClassSums count_classes(const CalibratedCECudaArguments<scalar_t>& arguments,
                                   int64_t group, int64_t begin, int64_t size, int64_t first,
                                   int range, unsigned* histogram, T* n) {
  count_labels<kThreads>(arguments.target + group * arguments.rows + begin, size,
                         arguments.num_classes, arguments.ignore_index, first, range, histogram);
  const T unit = given_counts_unit<kThreads>(arguments, group);
  const T* given = nullptr;
  if (arguments.class_counts) {
    given = arguments.class_counts + group * arguments.class_counts_stride;
  }
  const T* weight = arguments.weight ? arguments.weight + group * arguments.weight_stride : nullptr;
  ClassSums sums{};
#pragma unroll 1
  for (int i = threadIdx.x; i < range; i += kThreads) {
    const unsigned occurs = histogram[i];
    const T n_c = given ? given[first + i] : static_cast<T>(occurs);
    assert(std::isfinite(n_c) && n_c >= 0 &&
           "calibrated_ce: class_counts must be finite and not negative");
    assert((occurs == 0 || n_c > 0) &&
           "calibrated_ce: class_counts must be positive for every class that is a label");
    if (n) n[i] = n_c * unit;
    const double w_c = weight ? static_cast<double>(weight[first + i]) : 1;
    if (occurs > 0) sums.denominator += w_c * occurs;
    sums.weight += w_c;
  }
  return {block_sum<kThreads>(sums.denominator), block_sum<kThreads>(sums.weight)};
}

// A group's n in the workspace, or the first of the parts that add up to it. Given counts may be
// the same for all groups: then the first owns them.
template <typename scalar_t, typename T = accumulate_t<scalar_t>>
__device__ T* group_counts(const CalibratedCECudaArguments<scalar_t>& arguments,
                           const Plan<T>& plan, int64_t group) {
  if (!arguments.class_counts) return plan.counts + group * plan.label_parts * plan.counts_stride;
  return plan.counts + (arguments.class_counts_stride != 0 ? group * plan.counts_stride : 0);
}

template <typename scalar_t>
__device__ bool owns_counts(const CalibratedCECudaArguments<scalar_t>& arguments, int64_t group) {
  return !arguments.class_counts || arguments.class_counts_stride != 0 || group == 0;
}

// ---- all groups: the kernel before the rows' ---------------------------------------------------

constexpr int kPrepareThreads = 512;

template <typename scalar_t, typename T = accumulate_t<scalar_t>>
__global__ void __launch_bounds__(kPrepareThreads)
    prepare(const CalibratedCECudaArguments<scalar_t> arguments, const Plan<T> plan) {
  __shared__ unsigned histogram[kRangeClasses];
  const int64_t part_labels = (arguments.rows + plan.label_parts - 1) / plan.label_parts;
  const int64_t tasks = arguments.groups * plan.label_parts * plan.class_ranges;
  for (int64_t task = blockIdx.x; task < tasks; task += gridDim.x) {
    const int64_t group = task / plan.class_ranges / plan.label_parts;
    const int64_t part = task / plan.class_ranges % plan.label_parts;
    const int64_t first = task % plan.class_ranges * kRangeClasses;
    const int64_t begin = min(part * part_labels, arguments.rows);
    T* n = nullptr;
    if (owns_counts(arguments, group) && (part == 0 || !arguments.class_counts)) {
      n = group_counts(arguments, plan, group) + part * plan.counts_stride + first;
    }
    ClassSums sums = count_classes<kPrepareThreads>(
        arguments, group, begin, min(part_labels, arguments.rows - begin), first,
        static_cast<int>(min(arguments.num_classes - first, int64_t{kRangeClasses})), histogram, n);
    if (threadIdx.x == 0) {
      if (part > 0) sums.weight = 0;  // the first part has counted them
      plan.class_sums[task] = sums;
      if (part == 0 && first == 0) plan.tickets[group] = 0;
    }
  }
}

// ---- what the rows' kernels make of it ---------------------------------------------------------

// All threads get the group's sums; with Reduction::kSum and kNone the denominator is 1.
template <int kThreads, typename scalar_t, typename T = accumulate_t<scalar_t>>
__device__ ClassSums class_sums(const CalibratedCECudaArguments<scalar_t>& arguments,
                                const Plan<T>& plan, int64_t group) {
  const int64_t tasks = plan.label_parts * plan.class_ranges;
  ClassSums sums{};
#pragma unroll 1
  for (int64_t i = threadIdx.x; i < tasks; i += kThreads) {
    sums.denominator += plan.class_sums[group * tasks + i].denominator;
    sums.weight += plan.class_sums[group * tasks + i].weight;
  }
  sums = {block_sum<kThreads>(sums.denominator), block_sum<kThreads>(sums.weight)};
  if (arguments.reduction != Reduction::kMean) sums.denominator = 1;
  return sums;
}

// Adds the parts up, into n[0..C) in shared memory. Few classes only; all of the block call.
constexpr int kSharedClasses = 1024;

template <int kThreads, typename scalar_t, typename T = accumulate_t<scalar_t>>
__device__ void share_counts(const CalibratedCECudaArguments<scalar_t>& arguments,
                             const Plan<T>& plan, int64_t group, T* n) {
  const T* from = group_counts(arguments, plan, group);
  const int64_t parts = arguments.class_counts ? 1 : plan.label_parts;
#pragma unroll 1
  for (int c = threadIdx.x; c < arguments.num_classes; c += kThreads) {
    T n_c = 0;  // whole numbers: exact up to 2^24 rows (2^53 in double)
#pragma unroll 4
    for (int64_t part = 0; part < parts; ++part) n_c += from[part * plan.counts_stride + c];
    n[c] = n_c;
  }
  __syncthreads();
}

// What is added to a group's logits; or null: nothing.
template <typename scalar_t, typename T = accumulate_t<scalar_t>>
__device__ const T* group_adjustment(const CalibratedCECudaArguments<scalar_t>& arguments,
                                     int64_t group) {
  if (!arguments.logit_adjustment) return nullptr;
  return arguments.logit_adjustment + group * arguments.logit_adjustment_stride;
}

// The logit of class `c`, whose address is z.
template <typename scalar_t, typename T>
__device__ T adjusted_logit(const scalar_t* z, const T* adjustment, int64_t c) {
  return adjustment ? static_cast<T>(*z) + adjustment[c] : static_cast<T>(*z);
}

// ---- the loss ----------------------------------------------------------------------------------

// The last of the group's `blocks` blocks to come here adds up losses[0..count), which other
// threads have written, in a fixed order. All of the block call, once.
template <int kThreads, typename scalar_t, typename T = accumulate_t<scalar_t>>
__device__ void finish_loss(const CalibratedCECudaArguments<scalar_t>& arguments,
                            const Plan<T>& plan, int64_t group, int64_t blocks,
                            const double* losses, int64_t count, double denominator) {
  if (!is_last_block(&plan.tickets[group], blocks)) return;
  double sum = 0;
#pragma unroll 1
  for (int64_t i = threadIdx.x; i < count; i += kThreads) sum += __ldcg(&losses[i]);
  sum = block_sum<kThreads>(sum);
  if (threadIdx.x == 0) {
    arguments.loss[group] = static_cast<scalar_t>(static_cast<T>(sum / denominator));
  }
}

}  // namespace fedkern
