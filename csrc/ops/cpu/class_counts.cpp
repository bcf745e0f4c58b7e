#include "ops/class_counts.h"

#include <ATen/Parallel.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <mutex>
#include <vector>

#include "common/labels.h"

namespace fedkern {
namespace {

void count_range(const char* op, const int64_t* labels, int64_t begin, int64_t end,
                 int64_t num_classes, int64_t ignore_index, int64_t* counts) {
  for (int64_t i = begin; i < end; ++i) {
    if (has_class(op, labels, i, num_classes, ignore_index)) ++counts[labels[i]];
  }
}

at::Tensor class_counts_cpu(const at::Tensor& target, int64_t num_classes, int64_t ignore_index,
                            bool grouped) {
  check_class_counts(target, num_classes, grouped);
  const at::Tensor labels = contiguous_labels(target);
  const int64_t groups = grouped ? target.size(0) : 1;
  at::Tensor counts = at::zeros({groups, num_classes}, labels.options());
  for (int64_t g = 0; g < groups; ++g) {
    const int64_t size = labels.numel() / groups;
    count_labels_cpu("class_counts", labels.const_data_ptr<int64_t>() + g * size, size, num_classes,
                     ignore_index, counts.mutable_data_ptr<int64_t>() + g * num_classes);
  }
  return grouped ? counts : counts.squeeze(0);
}

}  // namespace

void count_labels_cpu(const char* op, const int64_t* labels, int64_t size, int64_t num_classes,
                      int64_t ignore_index, int64_t* counts) {
  // A thread's own histogram is worth it only where it is much shorter than the labels it counts.
  const int64_t grain = std::max<int64_t>(32768, 8 * num_classes);
  if (size <= grain) return count_range(op, labels, 0, size, num_classes, ignore_index, counts);
  std::mutex mutex;
  at::parallel_for(0, size, grain, [&](int64_t begin, int64_t end) {
    std::vector<int64_t> own(num_classes);
    count_range(op, labels, begin, end, num_classes, ignore_index, own.data());
    const std::lock_guard<std::mutex> lock(mutex);
    for (int64_t c = 0; c < num_classes; ++c) counts[c] += own[c];
  });
}

}  // namespace fedkern

TORCH_LIBRARY_IMPL(fedkern, CPU, m) { m.impl("class_counts", TORCH_FN(fedkern::class_counts_cpu)); }
