// Compiled once per CPU capability (common/cpu_capability.h). Two passes over memory: the norm
// reads the gradient and, with a pull, parameters and anchor; the update reads all there is and
// writes parameters and momentum. Either does less arithmetic than the caches take to deliver.

#include "ops/cpu/sgd_step_kernel.h"

#include <cstring>
#include <type_traits>

#include "common/macros.h"
#include "common/unrolled.h"
#include "common/vector.h"
#include "common/vector_chunk.h"

namespace fedkern {
namespace {

// ---- the norm ----------------------------------------------------------------------------------

// Element i is added to sum i % kSums, whatever the capability: four vectors of 512 bits, eight of
// 256. A piece adds few enough to each for their rounding not to matter beside that of the squares.
template <typename scalar_t>
constexpr int64_t kSums = 256 / sizeof(accumulate_t<scalar_t>);

// Of g' = factor grad + pull (param - anchor) with kPull, else of grad.
template <bool kPull, typename scalar_t>
double sum_of_squares(const scalar_t* grad, accumulate_t<scalar_t> factor, const scalar_t* param,
                      const scalar_t* anchor, accumulate_t<scalar_t> pull, int64_t size) {
  using C = Chunk<scalar_t>;
  using V = typename C::V;
  constexpr int64_t kStep = kSums<scalar_t>;
  constexpr int kVectors = kStep / V::size();
  V sums[kVectors];
  unrolled<kVectors>([&](auto i) { sums[i] = V(0); });
  const auto add = [&](const scalar_t* g, const scalar_t* p, const scalar_t* a) {
    unrolled<kVectors / C::kParts>([&](auto chunk) {
      constexpr int64_t kFirst = chunk * C::kSize;
      C grads = C::load(g + kFirst, C::kSize), params, anchors;
      if constexpr (kPull) {
        params = C::load(p + kFirst, C::kSize);
        anchors = C::load(a + kFirst, C::kSize);
      }
      unrolled<C::kParts>([&](auto i) {
        V x = grads.part[i];
        if constexpr (kPull) {
          x = fmadd(V(pull), params.part[i] - anchors.part[i], V(factor) * x);
        }
        V& sum = sums[chunk * C::kParts + i];
        sum = fmadd(x, x, sum);
      });
    });
  };
  int64_t j = 0;
  for (; j + kStep <= size; j += kStep) add(grad + j, param + j, anchor + j);
  if (j < size) {
    scalar_t tail[3][kStep] = {};
    const size_t bytes = (size - j) * sizeof(scalar_t);
    std::memcpy(tail[0], grad + j, bytes);
    if constexpr (kPull) {
      std::memcpy(tail[1], param + j, bytes);
      std::memcpy(tail[2], anchor + j, bytes);
    }
    add(tail[0], tail[1], tail[2]);
  }
  typename C::T lanes[kStep];
  unrolled<kVectors>([&](auto i) { sums[i].store(lanes + i * V::size()); });
  double of_lanes[kStep];
  for (int64_t i = 0; i < kStep; ++i) of_lanes[i] = lanes[i];
  for (int64_t half = kStep / 2; half > 0; half /= 2) {
    for (int64_t i = 0; i < half; ++i) of_lanes[i] += of_lanes[i + half];
  }
  return of_lanes[0];
}

template <typename scalar_t>
void squares(const SgdStepRow<scalar_t>& row, const SgdStepSizes& sizes,
             accumulate_t<scalar_t> pull, int64_t begin, int64_t end, double* sums) {
  using T = accumulate_t<scalar_t>;
  for (int64_t index = begin; index < end; ++index) {
    const SgdStepPiece piece = sizes.piece(index, kSgdStepPiece);
    const scalar_t* const grad = row.grad + piece.first;
    double sum = 0;
    if (row.anchor) {
      for_each_endpoint(row, sizes, piece, [&](T alpha, int64_t first) {
        sum += sum_of_squares<true>(grad, alpha, row.param + first, row.anchor + first, pull,
                                    piece.size);
      });
    } else {
      const double of_grad = sum_of_squares<false>(grad, T(1), grad, grad, pull, piece.size);
      for_each_endpoint(row, sizes, piece, [&](double alpha, int64_t) {
        sum += alpha * alpha * of_grad;  // nan for a weight of 0 and infinite gradients
      });
    }
    sums[index] = sum;
  }
}

// ---- the update --------------------------------------------------------------------------------

// `size` elements, from `param` on in the rows of parameters and from `grad` on in the gradient's.
template <bool kMomentum, bool kPull, bool kDecay, typename scalar_t>
void update_elements(const SgdStepRow<scalar_t>& row,
                     const SgdStepFactors<accumulate_t<scalar_t>>& factors, int64_t grad,
                     int64_t param, int64_t size) {
  using C = Chunk<scalar_t>;
  using V = typename C::V;
  const SgdStepFactors<V> all{V(factors.grad), V(factors.pull), V(factors.weight_decay),
                              V(factors.momentum), V(factors.minus_lr)};
  for_each_chunk<C::kSize>(size, [&](int64_t j, int64_t count) {
    const C grads = C::load(row.grad + grad + j, count);
    C params = C::load(row.param + param + j, count), anchors, momenta;
    if constexpr (kPull) anchors = C::load(row.anchor + param + j, count);
    if constexpr (kMomentum) momenta = C::load(row.momentum_buffer + param + j, count);
    unrolled<C::kParts>([&](auto i) {
      sgd_step({kMomentum, kPull, kDecay}, all, grads.part[i], anchors.part[i], params.part[i],
               momenta.part[i]);
    });
    params.store(row.param + param + j, count);
    if constexpr (kMomentum) momenta.store(row.momentum_buffer + param + j, count);
  });
}

// call(std::bool_constant<flags>()...)
template <typename Call>
FEDKERN_ALWAYS_INLINE void with_constants(const Call& call) {
  call();
}
template <typename Call, typename... Flags>
FEDKERN_ALWAYS_INLINE void with_constants(const Call& call, bool flag, Flags... flags) {
  const auto rest = [&](auto constant) {
    with_constants([&](auto... constants) { call(constant, constants...); }, flags...);
  };
  flag ? rest(std::true_type()) : rest(std::false_type());
}

template <typename scalar_t>
void update(const SgdStepRow<scalar_t>& row, const SgdStepSizes& sizes, const SgdStepTerms& terms,
            const SgdStepFactors<accumulate_t<scalar_t>>& factors, bool zero_grad, int64_t begin,
            int64_t end) {
  using T = accumulate_t<scalar_t>;
  const auto update_pieces = [&](auto momentum, auto pull, auto decay) {
    for (int64_t index = begin; index < end; ++index) {
      const SgdStepPiece piece = sizes.piece(index, kSgdStepPiece);
      for_each_endpoint(row, sizes, piece, [&](T alpha, int64_t first) {
        auto weighted = factors;
        weighted.grad = factors.grad * alpha;
        update_elements<momentum, pull, decay>(row, weighted, piece.first, first, piece.size);
      });
      if (zero_grad) std::memset(row.grad + piece.first, 0, piece.size * sizeof(scalar_t));
    }
  };
  with_constants(update_pieces, terms.momentum, terms.pull, terms.weight_decay);
}

}  // namespace

FEDKERN_DEFINE_VARIANT(SgdStepKernelsByDtype, sgd_step_kernels) = {
    {&squares<float>, &update<float>},
    {&squares<double>, &update<double>},
    {&squares<c10::BFloat16>, &update<c10::BFloat16>},
    {&squares<c10::Half>, &update<c10::Half>}};

}  // namespace fedkern
