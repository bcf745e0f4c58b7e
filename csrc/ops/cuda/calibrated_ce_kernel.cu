// Launches: one where a group fits one block (any number of groups), else two; no copies, no memory
// set, nothing read back. Bytes: logits once, gradient once, labels once or a few times.
//
//   path        rows, classes                           kernels               threads a row
//   kOneBlock   a group's rows * C <= 16384, C <= 1024  run_one_block         1 to 512
//   kRegisters  class_stride 1, no class weights, ...   prepare, run_teams    8 to 512, by C
//   kParts      of these, few and long                  run_parts,            256 for each 4096
//                                                       finish_parts          classes
//   kWalk       all others                              prepare, run_walk     1 to 512
//
// Longest rows that run_teams holds in registers, so reads once: 8192 classes of float32, 16384 of
// 16 bits in blocks of 256 threads, four times that in blocks of 512 (which adjust no logits). Of
// longer ones the part that is not held is read again, from the L2 cache. The other kernels read
// twice, the second time from a cache. Sums run in a fixed order: the same bits each time.

#include <algorithm>
#include <optional>

#include "common/ceil_div.h"
#include "ops/cuda/calibrated_ce_registers.cuh"
#include "ops/cuda/calibrated_ce_walk.cuh"

namespace fedkern {
namespace {

int multiprocessors() {
  int device = 0, count = 1;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device);
  return count;
}

// Blocks of `kernel` that a multiprocessor runs at once. Asked once, of the first device and for
// the most shared memory: the number of blocks shows in the loss's last bits, so it must not depend
// on what was called before.
template <auto kernel, int kThreads>
int resident_blocks() {
  static const int blocks = [] {
    int count = 1;
    cudaOccupancyMaxActiveBlocksPerMultiprocessor(&count, kernel, kThreads,
                                                  kSharedClasses * sizeof(double));
    return std::max(count, 1);
  }();
  return blocks;
}

// ---- plan --------------------------------------------------------------------------------------

// Blocks for each group, so that all their `steps` take the GPU's resident blocks as few rounds as
// possible.
int64_t blocks_for(int64_t groups, int64_t steps, int64_t resident) {
  const int64_t most = std::min(steps, std::max<int64_t>(1, resident / groups));
  return ceil_div(steps, ceil_div(steps, most));
}

// The distance of a group's rows, if it is the same for all.
std::optional<int64_t> row_stride(const RowLayout& layout) {
  if (layout.positions == 1) return layout.batch_stride;
  if (layout.samples == 1 || layout.batch_stride == layout.positions * layout.position_stride) {
    return layout.position_stride;
  }
  return std::nullopt;
}

// The logits of one class, and of the next row: whichever lies next.
bool has_adjacent_rows(const RowLayout& layout, int64_t num_classes) {
  return layout.class_stride != 1 && num_classes > 1;
}

// Whether run_teams and run_parts can do it; then sets the strides of rows.
template <typename scalar_t, typename T = accumulate_t<scalar_t>>
bool fits_registers(const CalibratedCECudaArguments<scalar_t>& arguments, Plan<T>& plan) {
  if (std::is_same_v<scalar_t, double> || arguments.weight ||
      arguments.calibration != Calibration::kLabel) {
    return false;
  }
  const RowLayout &from = arguments.logits_layout, &to = arguments.gradient_layout;
  const auto logits_stride = row_stride(from);
  if (!logits_stride || has_adjacent_rows(from, arguments.num_classes)) return false;
  plan.logits_row_stride = *logits_stride;
  if (!arguments.gradient) return true;
  const auto gradient_stride = row_stride(to);
  if (!gradient_stride || has_adjacent_rows(to, arguments.num_classes)) return false;
  plan.gradient_row_stride = *gradient_stride;
  return true;
}

// Threads that share a row in run_walk.
int walk_team(int64_t rows, int64_t num_classes, bool adjacent_rows, int64_t threads_wanted) {
  const int most = adjacent_rows ? kWalkThreads / 32 : kWalkThreads;
  int team = 1;
  while (team < most && team < num_classes &&
         (rows * team < threads_wanted || (!adjacent_rows && team * 8 < num_classes))) {
    team *= 2;
  }
  return team;
}

// Calls with(the number of threads that share a row in run_teams, as a constant).
template <typename scalar_t, typename With>
void with_team(const CalibratedCECudaArguments<scalar_t>& arguments, const With& with) {
  if constexpr (!std::is_same_v<scalar_t, double>) {
    const int64_t num_classes = arguments.num_classes;
    if (num_classes <= ShapedRow<scalar_t, 8>::kCapacity) {
      with(std::integral_constant<int, 8>());
    } else if (num_classes <= ShapedRow<scalar_t, 32>::kCapacity) {
      with(std::integral_constant<int, 32>());
    } else if (num_classes <= 2 * ShapedRow<scalar_t, 256>::kCapacity ||
               arguments.logit_adjustment) {
      with(std::integral_constant<int, 256>());
    } else {
      with(std::integral_constant<int, 512>());
    }
  }
}

template <typename scalar_t, typename T = accumulate_t<scalar_t>>
Plan<T> choose_plan(const CalibratedCECudaArguments<scalar_t>& arguments) {
  using Path = typename Plan<T>::Path;
  constexpr int64_t kPartLabels = 4096;  // a part of the labels, and of their counts
  const int64_t rows = arguments.rows, num_classes = arguments.num_classes;
  Plan<T> plan{};
  plan.adjacent_rows = has_adjacent_rows(arguments.logits_layout, num_classes);
  plan.label_parts = 1;
  plan.row_parts = 1;
  plan.counts_stride = ceil_div(num_classes, 32) * 32;

  if (rows == 0 || (num_classes <= kOneBlockClasses && rows * num_classes <= kOneBlockElements)) {
    plan.path = Path::kOneBlock;
    plan.team = 1;  // whatever the layout: the same sums
    while (plan.team * 2 * std::max<int64_t>(rows, 1) <= kWalkThreads && plan.team < num_classes)
      plan.team *= 2;
    return plan;
  }

  const int64_t processors = multiprocessors();
  if (num_classes <= kSharedClasses) {
    plan.label_parts = std::clamp<int64_t>(
        rows / kPartLabels, 1, std::clamp<int64_t>(2 * kPartLabels / num_classes, 1, 256));
  }
  plan.class_ranges = ceil_div(num_classes, kRangeClasses);
  if (!fits_registers(arguments, plan)) {
    plan.path = Path::kWalk;
    plan.team =
        walk_team(arguments.groups * rows, num_classes, plan.adjacent_rows, processors * 1024);
    plan.blocks = blocks_for(arguments.groups, ceil_div(rows, kWalkThreads / plan.team),
                             processors * resident_blocks<run_walk<scalar_t, T>, kWalkThreads>());
    return plan;
  }
  if (num_classes > 2 * kPartClasses && arguments.groups * rows * 2 <= processors) {
    plan.path = Path::kParts;
    plan.row_parts = ceil_div(num_classes, kPartClasses);
    plan.class_ranges = plan.row_parts;
    plan.blocks = rows;
    return plan;
  }
  plan.path = Path::kRegisters;
  with_team(arguments, [&](auto team) {
    using Shape = TeamShape<scalar_t, team>;
    plan.team = team;
    plan.blocks =
        blocks_for(arguments.groups, ceil_div(rows, Shape::kThreads / team),
                   processors * resident_blocks<run_teams<scalar_t, team, T>, Shape::kThreads>());
  });
  return plan;
}

// Lays the workspace out; returns its size.
template <typename scalar_t, typename T = accumulate_t<scalar_t>>
size_t place(const CalibratedCECudaArguments<scalar_t>& arguments, Plan<T>& plan) {
  if (plan.path == Plan<T>::Path::kOneBlock) return 0;
  size_t size = 0;
  const auto take = [&](auto*& pointer, int64_t count, size_t element_size) {
    pointer = reinterpret_cast<std::remove_reference_t<decltype(pointer)>>(
        static_cast<char*>(arguments.workspace) + size);
    size += (static_cast<size_t>(count) * element_size + 255) / 256 * 256;
  };
  const int64_t groups = arguments.groups;
  const int64_t count_vectors = !arguments.class_counts         ? groups * plan.label_parts
                                : arguments.class_counts_stride ? groups
                                                                : 1;
  take(plan.class_sums, groups * plan.label_parts * plan.class_ranges, sizeof(ClassSums));
  take(plan.losses, groups * plan.blocks, sizeof(double));
  if (plan.path == Plan<T>::Path::kParts) {
    take(plan.parts, groups * arguments.rows * plan.row_parts, sizeof(RowPart<T>));
  }
  take(plan.counts, count_vectors * plan.counts_stride, sizeof(T));
  take(plan.tickets, groups, sizeof(unsigned));
  return size;
}

// ---- launch ------------------------------------------------------------------------------------

// Groups come first: there may be more of them than the other dimensions of a grid allow.
dim3 plan_grid(int64_t groups, int64_t blocks, int64_t parts = 1) {
  return dim3(static_cast<unsigned>(groups), static_cast<unsigned>(blocks),
              static_cast<unsigned>(parts));
}

template <typename scalar_t, typename T>
cudaError_t launch_rows(const CalibratedCECudaArguments<scalar_t>& arguments, const Plan<T>& plan,
                        cudaStream_t stream) {
  const dim3 grid = plan_grid(arguments.groups, plan.blocks);
  const size_t counts_bytes = arguments.num_classes * sizeof(T);
  if (plan.path == Plan<T>::Path::kRegisters) {
    with_team(arguments, [&](auto team) {
      FEDKERN_LAUNCH((run_teams<scalar_t, team>), grid, (TeamShape<scalar_t, team>::kThreads),
                     team <= 32 ? counts_bytes : 0, stream, arguments, plan);
    });
  } else {
    FEDKERN_LAUNCH(run_walk<scalar_t>, grid, kWalkThreads,
                   arguments.num_classes <= kSharedClasses ? counts_bytes : 0, stream, arguments,
                   plan);
  }
  return cudaGetLastError();
}

template <typename scalar_t, typename T>
cudaError_t launch_parts(const CalibratedCECudaArguments<scalar_t>& arguments, const Plan<T>& plan,
                         cudaStream_t stream) {
  if constexpr (!std::is_same_v<scalar_t, double>) {
    const dim3 blocks = plan_grid(arguments.groups, arguments.rows, plan.row_parts);
    FEDKERN_LAUNCH(run_parts<scalar_t>, blocks, kPartThreads, 0, stream, arguments, plan);
    const cudaError_t error = cudaGetLastError();
    if (error != cudaSuccess) return error;
    FEDKERN_LAUNCH(finish_parts<scalar_t>, blocks, kPartThreads, 0, stream, arguments, plan);
  }
  return cudaGetLastError();
}

}  // namespace

template <typename scalar_t>
size_t calibrated_ce_workspace(const CalibratedCECudaArguments<scalar_t>& arguments) {
  if (arguments.groups == 0) return 0;
  auto plan = choose_plan(arguments);
  return place(arguments, plan);
}

template <typename scalar_t>
cudaError_t calibrated_ce_forward_cuda(const CalibratedCECudaArguments<scalar_t>& arguments,
                                       cudaStream_t stream) {
  if (arguments.groups == 0) return cudaSuccess;
  auto plan = choose_plan(arguments);
  place(arguments, plan);
  using Path = typename decltype(plan)::Path;
  if (plan.path == Path::kOneBlock) {
    FEDKERN_LAUNCH(run_one_block<scalar_t>, grid_size(arguments.groups), kWalkThreads, 0, stream,
                   arguments, plan);
    return cudaGetLastError();
  }
  if (plan.path == Path::kParts) return launch_parts(arguments, plan, stream);
  FEDKERN_LAUNCH(prepare<scalar_t>,
                 grid_size(arguments.groups * plan.label_parts * plan.class_ranges),
                 kPrepareThreads, 0, stream, arguments, plan);
  const cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess) return error;
  return launch_rows(arguments, plan, stream);
}

#define FEDKERN_INSTANTIATE(scalar_t)                                                         \
  template size_t calibrated_ce_workspace(const CalibratedCECudaArguments<scalar_t>&);        \
  template cudaError_t calibrated_ce_forward_cuda(const CalibratedCECudaArguments<scalar_t>&, \
                                                  cudaStream_t);
FEDKERN_INSTANTIATE(float)
FEDKERN_INSTANTIATE(double)
FEDKERN_INSTANTIATE(__half)
FEDKERN_INSTANTIATE(__nv_bfloat16)
#undef FEDKERN_INSTANTIATE

}  // namespace fedkern
