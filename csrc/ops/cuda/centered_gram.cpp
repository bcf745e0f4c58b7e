#include "ops/centered_gram.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/mean.h>
#include <ATen/ops/zeros.h>
#include <c10/cuda/CUDAGuard.h>
#include <torch/library.h>

#include <algorithm>

namespace fedkern {
namespace {

constexpr int64_t kPieceNumbers = 1 << 24;  // in float64 at a time: 128 MB

// There is no kernel of ours: cuBLAS does this on tensor cores.
at::Tensor centered_gram(const at::Tensor& stats) {
  check_centered_gram(stats);
  const c10::cuda::CUDAGuard guard(stats.device());
  const int64_t clients = stats.size(0), columns = stats.size(1);
  at::Tensor gram = at::zeros({clients, clients}, stats.options().dtype(at::kDouble));
  if (clients == 0) return gram;
  const int64_t width = std::max<int64_t>(kPieceNumbers / clients, 1024);
  for (int64_t begin = 0; begin < columns; begin += width) {
    const at::Tensor piece =
        stats.narrow(1, begin, std::min(width, columns - begin)).to(at::kDouble);
    // Counted from the first row: an offset of all rows costs the mean no digits.
    at::Tensor rows = piece - piece.select(0, 0);
    rows -= rows.mean(0);
    gram.addmm_(rows, rows.t());
  }
  return gram;
}

}  // namespace
}  // namespace fedkern

TORCH_LIBRARY_IMPL(fedkern, CUDA, m) { m.impl("centered_gram", TORCH_FN(fedkern::centered_gram)); }
