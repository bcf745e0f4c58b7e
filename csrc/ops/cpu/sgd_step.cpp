#include "ops/sgd_step.h"

#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <cstring>

#include "common/cpu_buffer.h"
#include "common/switch_dtype.h"
#include "ops/cpu/sgd_step_kernel.h"

namespace fedkern {
namespace {

// The least parameters that are worth waking another thread for.
constexpr int64_t kGrain = 32768;

template <typename scalar_t>
void step_row(const SgdStepRow<scalar_t>& row, const SgdStepSizes& sizes,
              const SgdStepOptions& options) {
  using T = accumulate_t<scalar_t>;
  const auto& kernels = std::get<SgdStepKernels<scalar_t>>(sgd_step_kernels());
  const int64_t pieces = sizes.pieces(kSgdStepPiece);
  const int64_t grain = std::max<int64_t>(1, kGrain * pieces / sizes.param());
  double clip = 1;
  if (options.clips()) {
    CpuBuffer<double, 512> sums(pieces);
    at::parallel_for(0, pieces, grain, [&](int64_t begin, int64_t end) {
      kernels.squares(row, sizes, static_cast<T>(options.pull), begin, end, sums.data());
    });
    double sum = 0;
    for (int64_t i = 0; i < pieces; ++i) sum += sums[i];
    clip = clip_factor(sum, *options.max_norm);
  }
  const auto terms = options.terms();
  const auto factors = options.factors<T>(clip);
  at::parallel_for(0, pieces, grain, [&](int64_t begin, int64_t end) {
    kernels.update(row, sizes, terms, factors, options.zero_grad, begin, end);
  });
}

// Where there are enough rows, a thread has whole ones, whose gradient may still be in its cache
// when it is read again (step_row finds itself in a parallel region, and stays on its thread). Else
// threads share one row after the other.
template <typename scalar_t>
void step(const SgdStepTensors& tensors, const SgdStepOptions& options) {
  const auto rows = sgd_step_rows<scalar_t>(tensors);
  const bool many = rows.num_rows >= at::get_num_threads();
  const int64_t grain = many ? ceil_div(kGrain, rows.sizes.param()) : rows.num_rows;
  at::parallel_for(0, rows.num_rows, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const SgdStepRow<scalar_t> row = rows[i];
      if (rows.is_active(i)) {
        step_row(row, rows.sizes, options);
      } else if (options.zero_grad) {
        std::memset(row.grad, 0, rows.sizes.grad() * sizeof(scalar_t));
      }
    }
  });
}

void sgd_step_(at::Tensor& param, at::Tensor& grad, const OptionalTensor& momentum_buffer,
               const OptionalTensor& anchor, const OptionalTensor& alpha,
               const OptionalTensor& active, double lr, double momentum, double weight_decay,
               std::optional<double> max_norm, double pull, bool zero_grad) {
  const SgdStepOptions options{lr, momentum, weight_decay, max_norm, pull, zero_grad};
  run_sgd_step({param, grad, momentum_buffer, anchor, alpha, active}, options,
               [&](const SgdStepTensors& tensors) {
                 switch_dtype(param.scalar_type(),
                              [&](auto zero) { step<decltype(zero)>(tensors, options); });
               });
}

}  // namespace
}  // namespace fedkern

TORCH_LIBRARY_IMPL(fedkern, CPU, m) { m.impl("sgd_step_", TORCH_FN(fedkern::sgd_step_)); }
