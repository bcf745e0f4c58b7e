// One launch. Bytes: the gradient read once and written once, 16 bytes at a time where it can be;
// nothing where it is scaled in place by one. A block of 256 threads has some rows, or a piece of
// one: where classes lie next to each other its threads do, too, else they have neighbouring rows.

#include <algorithm>

#include "common/accumulate.h"
#include "common/cuda_launch.h"
#include "common/cuda_rows.cuh"
#include "common/cuda_vector.cuh"
#include "ops/cuda/calibrated_ce_backward_kernel.h"

namespace fedkern {
namespace {

constexpr int kThreads = 256;
constexpr int kInFlight = 4;  // vectors of a thread

// Work is cut into tasks: rows_at_once rows, `piece` classes of each.
struct Cut {
  int team;  // threads that share a row
  int64_t piece;
  int64_t pieces;
  bool vectors;        // 16 bytes at a time
  bool adjacent_rows;  // rows, not classes, lie next to each other
};

// ---- a row's piece -----------------------------------------------------------------------------

// Classes [0, size), 0 where `ignored`, whatever the gradient and the factor are. from and to lie
// in the same way to 16-byte boundaries.
template <typename scalar_t, typename T = accumulate_t<scalar_t>>
__device__ void scale_vectors(const scalar_t* from, scalar_t* to, int64_t size, int lane, int team,
                              T factor, bool ignored) {
  constexpr int kWidth = Vector<scalar_t>::kSize;
  const auto scaled = [&](T g) { return ignored ? T(0) : g * factor; };
  const int64_t head = min(int64_t{elements_to_boundary(from)}, size);
  const int64_t vectors = (size - head) / kWidth;
  for (int64_t first = lane; first < vectors; first += kInFlight * team) {
    Vector<scalar_t> g[kInFlight];
#pragma unroll
    for (int k = 0; k < kInFlight; ++k) {
      const int64_t v = first + k * team;
      g[k] = Vector<scalar_t>{};
      if (!ignored && v < vectors) g[k] = load_past_l1(from + head + v * kWidth);
    }
#pragma unroll
    for (int k = 0; k < kInFlight; ++k) {
      const int64_t v = first + k * team;
      if (v >= vectors) continue;
      T values[kWidth];
      unpack(g[k], values);
#pragma unroll
      for (int i = 0; i < kWidth; ++i) values[i] = scaled(values[i]);
      store_streaming(to + head + v * kWidth, pack<scalar_t>(values));
    }
  }
  const int64_t edges = size - vectors * kWidth;
  for (int64_t edge = lane; edge < edges; edge += team) {
    const int64_t c = edge < head ? edge : edge + vectors * kWidth;
    to[c] = static_cast<scalar_t>(scaled(static_cast<T>(from[c])));
  }
}

template <typename scalar_t, typename T = accumulate_t<scalar_t>>
__device__ void scale_elements(const scalar_t* from, int64_t from_stride, scalar_t* to,
                               int64_t to_stride, int64_t size, int lane, int team, T factor,
                               bool ignored) {
#pragma unroll 4
  for (int64_t c = lane; c < size; c += team) {
    const T g = static_cast<T>(from[c * from_stride]);
    to[c * to_stride] = static_cast<scalar_t>(ignored ? T(0) : g * factor);
  }
}

// ---- kernel ------------------------------------------------------------------------------------

template <typename scalar_t>
__global__ void __launch_bounds__(kThreads, 2)
    scale_rows(const CalibratedCEBackwardCudaArguments<scalar_t> arguments, const Cut cut) {
  using T = accumulate_t<scalar_t>;
  const bool in_place = arguments.gradient == arguments.result;
  const RowLayout& upstream = arguments.grad_loss_layout;
  const bool one_factor =
      upstream.group_stride == 0 && upstream.batch_stride == 0 && upstream.position_stride == 0;
  if (in_place && one_factor && static_cast<T>(*arguments.grad_loss) == T(1)) return;

  const int rows_at_once = kThreads / cut.team;
  const int own_row = cut.adjacent_rows ? threadIdx.x % rows_at_once : threadIdx.x / cut.team;
  const int lane = cut.adjacent_rows ? threadIdx.x / rows_at_once : threadIdx.x % cut.team;
  const int64_t tasks = (arguments.rows + rows_at_once - 1) / rows_at_once * cut.pieces;
  for (int64_t task = blockIdx.x; task < tasks; task += gridDim.x) {
    const int64_t step = cut.pieces == 1 ? task : quotient(task, cut.pieces);
    const int64_t row = step * rows_at_once + own_row;
    if (row >= arguments.rows) continue;
    const T factor =
        static_cast<T>(arguments.grad_loss[row_offset(upstream, row_indices(upstream, row))]);
    if (in_place && factor == T(1)) continue;  // what is ignored is 0 already
    const bool ignored = arguments.target[row] == arguments.ignore_index;
    const int64_t first = (task - step * cut.pieces) * cut.piece;
    const int64_t size = min(arguments.num_classes - first, cut.piece);
    const int64_t from_stride = arguments.gradient_layout.class_stride;
    const int64_t to_stride = arguments.result_layout.class_stride;
    const RowIndices at = row_indices(arguments.gradient_layout, row);
    const scalar_t* from =
        arguments.gradient + row_offset(arguments.gradient_layout, at) + first * from_stride;
    scalar_t* to = arguments.result + row_offset(arguments.result_layout, at) + first * to_stride;
    if (cut.vectors) {
      scale_vectors<scalar_t>(from, to, size, lane, cut.team, factor, ignored);
    } else {
      scale_elements<scalar_t>(from, from_stride, to, to_stride, size, lane, cut.team, factor,
                               ignored);
    }
  }
}

// ---- launch ------------------------------------------------------------------------------------

// Whether rows of both tensors lie in the same way to 16-byte boundaries.
template <typename scalar_t>
bool fits_vectors(const CalibratedCEBackwardCudaArguments<scalar_t>& arguments) {
  constexpr int64_t kWidth = Vector<scalar_t>::kSize;
  const RowLayout &from = arguments.gradient_layout, &to = arguments.result_layout;
  const auto alike = [](int64_t a, int64_t b) { return (a - b) % kWidth == 0; };
  return from.class_stride == 1 && to.class_stride == 1 &&
         (reinterpret_cast<uintptr_t>(arguments.gradient) -
          reinterpret_cast<uintptr_t>(arguments.result)) %
                 16 ==
             0 &&
         alike(from.group_stride, to.group_stride) && alike(from.batch_stride, to.batch_stride) &&
         alike(from.position_stride, to.position_stride);
}

}  // namespace

template <typename scalar_t>
cudaError_t calibrated_ce_backward_cuda(
    const CalibratedCEBackwardCudaArguments<scalar_t>& arguments, cudaStream_t stream) {
  if (arguments.rows == 0) return cudaSuccess;
  // What a thread has of a row, at most and, if the row has as much, at least.
  constexpr int64_t kMost = 8 * kInFlight * Vector<scalar_t>::kSize;
  constexpr int64_t kLeast = 2 * Vector<scalar_t>::kSize;
  const int64_t num_classes = arguments.num_classes;
  Cut cut{};
  cut.vectors = fits_vectors(arguments);
  cut.adjacent_rows = arguments.gradient_layout.class_stride != 1 && num_classes > 1;
  cut.team = 1;
  const int widest = cut.adjacent_rows ? kThreads / 32 : kThreads;
  while (cut.team < widest && cut.team * kLeast < num_classes) cut.team *= 2;
  cut.piece = cut.team * kMost;
  cut.pieces = (num_classes + cut.piece - 1) / cut.piece;
  const int64_t rows_at_once = kThreads / cut.team;
  const int64_t tasks = (arguments.rows + rows_at_once - 1) / rows_at_once * cut.pieces;
  FEDKERN_LAUNCH(scale_rows<scalar_t>, grid_size(tasks), kThreads, 0, stream, arguments, cut);
  return cudaGetLastError();
}

template cudaError_t calibrated_ce_backward_cuda(const CalibratedCEBackwardCudaArguments<float>&,
                                                 cudaStream_t);
template cudaError_t calibrated_ce_backward_cuda(const CalibratedCEBackwardCudaArguments<double>&,
                                                 cudaStream_t);
template cudaError_t calibrated_ce_backward_cuda(const CalibratedCEBackwardCudaArguments<__half>&,
                                                 cudaStream_t);
template cudaError_t calibrated_ce_backward_cuda(
    const CalibratedCEBackwardCudaArguments<__nv_bfloat16>&, cudaStream_t);

}  // namespace fedkern
