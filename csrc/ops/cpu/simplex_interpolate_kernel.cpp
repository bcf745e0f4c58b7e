// Compiled once per CPU capability (common/cpu_capability.h). Bytes: endpoints read once, results
// written once; M multiply-adds a result, which memory hides. A tile of the result, some points by
// some chunks of elements, stays in registers while the endpoints pass by.

#include "ops/cpu/simplex_interpolate_kernel.h"

#include "common/vector.h"
#include "common/vector_chunk.h"
#include "ops/cpu/simplex_interpolate_tasks.h"

namespace fedkern {
namespace {

// A piece of one group's rows. Where rows lie, in elements.
template <typename scalar_t>
struct Piece {
  const scalar_t* endpoints;
  int64_t endpoint_stride;
  scalar_t* points;
  int64_t point_stride;
  const accumulate_t<scalar_t>* alpha;  // [G, M]
  int64_t num_points, num_endpoints;
  int64_t size;
};

constexpr int kTilePoints = 4;

// kChunks chunks of kPoints points, from element `first` on; `count` elements of each chunk.
template <int kPoints, int kChunks, typename scalar_t>
inline void interpolate_tile(const Piece<scalar_t>& piece, int64_t point, int64_t first,
                             int64_t count) {
  using C = Chunk<scalar_t>;
  using V = typename C::V;
  V sums[kPoints][kChunks][C::kParts];
  for (auto& of_point : sums) {
    for (auto& of_chunk : of_point) {
      for (auto& part : of_chunk) part = V(0);
    }
  }
  const accumulate_t<scalar_t>* alpha = piece.alpha + point * piece.num_endpoints;
  const scalar_t* endpoint = piece.endpoints + first;
  for (int64_t m = 0; m < piece.num_endpoints; ++m, endpoint += piece.endpoint_stride) {
    for (int c = 0; c < kChunks; ++c) {
      const C theta = C::load(endpoint + c * C::kSize, count);
      for (int p = 0; p < kPoints; ++p) {
        const V weight(alpha[p * piece.num_endpoints + m]);
        for (int i = 0; i < C::kParts; ++i) {
          sums[p][c][i] = fmadd(theta.part[i], weight, sums[p][c][i]);
        }
      }
    }
  }
  for (int p = 0; p < kPoints; ++p) {
    scalar_t* to = piece.points + (point + p) * piece.point_stride + first;
    for (int c = 0; c < kChunks; ++c, to += C::kSize) {
      C result;
      for (int i = 0; i < C::kParts; ++i) result.part[i] = sums[p][c][i];
      result.store(to, count);
    }
  }
}

// kPoints points from `point` on.
template <int kPoints, int kChunks, typename scalar_t>
inline void interpolate_points(const Piece<scalar_t>& piece, int64_t point) {
  constexpr int64_t kSize = Chunk<scalar_t>::kSize, kTile = kChunks * kSize;
  int64_t first = 0;
  for (; first + kTile <= piece.size; first += kTile) {
    interpolate_tile<kPoints, kChunks>(piece, point, first, kSize);
  }
  for (; first < piece.size; first += kSize) {
    const int64_t left = piece.size - first;
    interpolate_tile<kPoints, 1>(piece, point, first, left < kSize ? left : kSize);
  }
}

template <typename scalar_t>
void run(const SimplexInterpolateArguments<scalar_t>& arguments, int64_t begin, int64_t end) {
  // As many sums as fit into sixteen registers with what they are computed from.
  constexpr int kParts = Chunk<scalar_t>::kParts, kMostSums = 8;
  const int64_t num_points = arguments.num_points, num_endpoints = arguments.num_endpoints;
  const auto run_task = [&](int64_t, const auto& tensor, int64_t group, int64_t first,
                            int64_t size) {
    const auto& from = tensor.endpoints;
    const auto& to = tensor.points;
    const Piece<scalar_t> piece{from.at(group, 0, first),
                                from.row_stride,
                                to.at(group, 0, first),
                                to.row_stride,
                                arguments.alpha + group * num_points * num_endpoints,
                                num_points,
                                num_endpoints,
                                size};
    int64_t point = 0;
    for (; point + kTilePoints <= num_points; point += kTilePoints) {
      interpolate_points<kTilePoints, kMostSums / kTilePoints / kParts>(piece, point);
    }
    for (; point < num_points; ++point) interpolate_points<1, kMostSums / kParts>(piece, point);
  };
  for_each_task(arguments.tensors, begin, end, run_task);
}

}  // namespace

FEDKERN_DEFINE_VARIANT(SimplexInterpolateKernels, simplex_interpolate_kernels) = {
    &run<float>, &run<double>, &run<c10::BFloat16>, &run<c10::Half>};

}  // namespace fedkern
