// Compiled once per CPU capability (common/cpu_capability.h). Bytes: gradients and endpoints read
// once, G M multiply-adds in double an element. A tile of inner products, some points by some
// endpoints, stays in registers while a piece of their rows passes by.

#include "ops/cpu/simplex_interpolate_backward_kernel.h"

#include "common/vector.h"
#include "common/vector_chunk.h"
#include "common/vector_reduce.h"
#include "ops/cpu/simplex_interpolate_tasks.h"

namespace fedkern {
namespace {

// A piece of one group's rows. Where rows lie, in elements.
template <typename scalar_t>
struct Piece {
  const scalar_t* endpoints;
  int64_t endpoint_stride;
  const scalar_t* grads;
  int64_t grad_stride;
  int64_t num_points, num_endpoints;
  int64_t size;
  double* products;  // [G, M]
};

// A chunk's elements in double.
template <typename scalar_t>
struct WideChunk {
  using C = Chunk<scalar_t>;
  static constexpr int kParts = C::kParts * Wide<typename C::T>::kParts;
  Vector<double> part[kParts];

  static FEDKERN_ALWAYS_INLINE WideChunk load(const scalar_t* from, int64_t count) {
    const C chunk = C::load(from, count);
    WideChunk wide;
    for (int i = 0; i < C::kParts; ++i) {
      const auto parts = widen(chunk.part[i]);
      for (int k = 0; k < kParts / C::kParts; ++k) {
        wide.part[i * (kParts / C::kParts) + k] = parts.part[k];
      }
    }
    return wide;
  }
};

// One tile of inner products. A row's chunks are added to the same two sums in turn.
template <int kPoints, int kEndpoints, typename scalar_t>
inline void multiply_tile(const Piece<scalar_t>& piece, int64_t point, int64_t endpoint) {
  using C = WideChunk<scalar_t>;
  constexpr int kSums = C::kParts < 2 ? C::kParts : 2;
  Vector<double> sums[kPoints][kEndpoints][kSums];
  for (auto& of_point : sums) {
    for (auto& of_pair : of_point) {
      for (auto& sum : of_pair) sum = Vector<double>(0.);
    }
  }
  const scalar_t* grads = piece.grads + point * piece.grad_stride;
  const scalar_t* endpoints = piece.endpoints + endpoint * piece.endpoint_stride;
  const auto add_chunk = [&](int64_t j, int64_t count) {
    C grad[kPoints];
    for (int p = 0; p < kPoints; ++p) grad[p] = C::load(grads + p * piece.grad_stride + j, count);
    for (int m = 0; m < kEndpoints; ++m) {
      const C theta = C::load(endpoints + m * piece.endpoint_stride + j, count);
      for (int p = 0; p < kPoints; ++p) {
        for (int i = 0; i < C::kParts; ++i) {
          auto& sum = sums[p][m][i % kSums];
          sum = fmadd(grad[p].part[i], theta.part[i], sum);
        }
      }
    }
  };
  for_each_chunk<Chunk<scalar_t>::kSize>(piece.size, add_chunk);
  for (int p = 0; p < kPoints; ++p) {
    for (int m = 0; m < kEndpoints; ++m) {
      Vector<double> sum = sums[p][m][0];
      for (int i = 1; i < kSums; ++i) sum = sum + sums[p][m][i];
      piece.products[(point + p) * piece.num_endpoints + endpoint + m] = sum_of_lanes(sum);
    }
  }
}

// kPoints points from `point` on, kEndpoints endpoints at a time.
template <int kPoints, int kEndpoints, typename scalar_t>
inline void multiply_points(const Piece<scalar_t>& piece, int64_t point) {
  int64_t endpoint = 0;
  for (; endpoint + kEndpoints <= piece.num_endpoints; endpoint += kEndpoints) {
    multiply_tile<kPoints, kEndpoints>(piece, point, endpoint);
  }
  for (; endpoint < piece.num_endpoints; ++endpoint) {
    multiply_tile<kPoints, 1>(piece, point, endpoint);
  }
}

template <typename scalar_t>
void run(const SimplexInterpolateBackwardArguments<scalar_t>& arguments, int64_t begin,
         int64_t end) {
#if defined(CPU_CAPABILITY_AVX512)
  constexpr int kTilePoints = 4, kTileEndpoints = 2, kOnePointEndpoints = 5;
#else
  constexpr int kTilePoints = 2, kTileEndpoints = 2, kOnePointEndpoints = 4;
#endif
  const int64_t num_points = arguments.num_points, num_endpoints = arguments.num_endpoints;
  const auto run_task = [&](int64_t task, const auto& tensor, int64_t group, int64_t first,
                            int64_t size) {
    const auto& from = tensor.endpoints;
    const auto& grads = tensor.points;
    const Piece<scalar_t> piece{from.at(group, 0, first),
                                from.row_stride,
                                grads.at(group, 0, first),
                                grads.row_stride,
                                num_points,
                                num_endpoints,
                                size,
                                arguments.products + task * num_points * num_endpoints};
    int64_t point = 0;
    for (; point + kTilePoints <= num_points; point += kTilePoints) {
      multiply_points<kTilePoints, kTileEndpoints>(piece, point);
    }
    for (; point < num_points; ++point) multiply_points<1, kOnePointEndpoints>(piece, point);
  };
  for_each_task(arguments.tensors, begin, end, run_task);
}

}  // namespace

FEDKERN_DEFINE_VARIANT(SimplexInterpolateBackwardKernels, simplex_interpolate_backward_kernels) = {
    &run<float>, &run<double>, &run<c10::BFloat16>, &run<c10::Half>};

}  // namespace fedkern
