#include "ops/centered_gram.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <vector>

#include "common/ceil_div.h"
#include "common/cpu_buffer.h"
#include "ops/cpu/centered_gram_kernel.h"

namespace fedkern {
namespace {

// Part `index` of `parts` nearly equal ones of [0, size).
Range part_of(int64_t size, int64_t parts, int64_t index) {
  return {size * index / parts, size * (index + 1) / parts};
}

// A block of rows, and one that does not come before it.
struct BlockPair {
  Range rows, others;
};

std::vector<BlockPair> block_pairs(int64_t num_rows) {
  const int64_t blocks = ceil_div(num_rows, kMostBlockRows);
  std::vector<BlockPair> pairs;
  for (int64_t i = 0; i < blocks; ++i) {
    for (int64_t j = i; j < blocks; ++j) {
      pairs.push_back({part_of(num_rows, blocks, i), part_of(num_rows, blocks, j)});
    }
  }
  return pairs;
}

// Where there are few pairs of blocks, the columns are shared out as well: the tasks, at least so
// many if there are columns enough, are the same for any number of threads.
constexpr int64_t kLeastTasks = 16;

template <typename T>
void run(const CenteredGramKernels<T>& kernels, const at::Tensor& stats, at::Tensor& gram) {
  const int64_t num_rows = stats.size(0), num_columns = stats.size(1);
  const T* const data = stats.const_data_ptr<T>();
  const int64_t pieces = ceil_div(num_columns, kPieceColumns);
  CpuBuffer<double, 64> means(num_columns);
  at::parallel_for(0, pieces, 1, [&](int64_t begin, int64_t end) {
    const Range columns{begin * kPieceColumns, std::min(end * kPieceColumns, num_columns)};
    kernels.means(data, num_rows, num_columns, columns, means.data() + columns.begin);
  });

  const std::vector<BlockPair> pairs = block_pairs(num_rows);
  const auto num_pairs = static_cast<int64_t>(pairs.size());
  const int64_t parts =
      std::clamp<int64_t>(ceil_div(kLeastTasks, num_pairs), 1, std::max<int64_t>(pieces, 1));
  // Of the columns' parts, the first one's products go to the result.
  const at::Tensor workspace = at::empty({parts - 1, num_rows, num_rows}, gram.options());
  double* const result = gram.mutable_data_ptr<double>();
  const auto products_of = [&](int64_t part) {
    return part == 0 ? result
                     : workspace.mutable_data_ptr<double>() + (part - 1) * num_rows * num_rows;
  };
  at::parallel_for(0, parts * num_pairs, 1, [&](int64_t begin, int64_t end) {
    CpuBuffer<double, 64> scratch(2 * kMostBlockRows * kPieceColumns);
    for (int64_t task = begin; task < end; ++task) {
      const auto& [rows, others] = pairs[task % num_pairs];
      const int64_t part = task / num_pairs;
      Range columns = part_of(pieces, parts, part);
      columns = {columns.begin * kPieceColumns, std::min(columns.end * kPieceColumns, num_columns)};
      kernels.products(data, num_columns, means.data(), rows, others, columns, scratch.data(),
                       products_of(part) + rows.begin * num_rows + others.begin, num_rows);
    }
  });
  at::parallel_for(0, num_pairs, 1, [&](int64_t begin, int64_t end) {
    for (int64_t pair = begin; pair < end; ++pair) {
      const auto& [rows, others] = pairs[pair];
      for (int64_t i = rows.begin; i < rows.end; ++i) {
        double* const row = result + i * num_rows;
        const int64_t first = std::max(i, others.begin);
        for (int64_t part = 1; part < parts; ++part) {
          const double* const from = products_of(part) + i * num_rows;
          for (int64_t j = first; j < others.end; ++j) row[j] += from[j];
        }
        for (int64_t j = first; j < others.end; ++j) result[j * num_rows + i] = row[j];
      }
    }
  });
}

at::Tensor centered_gram(const at::Tensor& stats) {
  check_centered_gram(stats);
  const bool is_double = stats.scalar_type() == at::kDouble;
  const at::Tensor rows = stats.to(is_double ? at::kDouble : at::kFloat).contiguous();
  at::Tensor gram = at::empty({stats.size(0), stats.size(0)}, stats.options().dtype(at::kDouble));
  if (stats.size(0) == 0) return gram;
  const auto& kernels = centered_gram_kernels();
  if (is_double) {
    run(kernels.of_double, rows, gram);
  } else {
    run(kernels.of_float, rows, gram);
  }
  return gram;
}

}  // namespace
}  // namespace fedkern

TORCH_LIBRARY_IMPL(fedkern, CPU, m) { m.impl("centered_gram", TORCH_FN(fedkern::centered_gram)); }
