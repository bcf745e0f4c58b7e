#include "ops/calibrated_ce.h"

#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "ops/class_counts.h"
#include "ops/cpu/calibrated_ce_kernel.h"

namespace fedkern {
namespace {

// Rows are worked on in blocks of about this many elements. A block's losses are summed in row
// order, then the blocks' sums in block order, so the threads that ran them do not show in the
// result.
constexpr int64_t kBlockElements = 16384;

template <typename scalar_t>
double run_blocks(const CalibratedCEArguments<scalar_t>& arguments, int64_t rows) {
  const int64_t block_rows = std::max<int64_t>(1, kBlockElements / arguments.num_classes);
  const int64_t blocks = (rows + block_rows - 1) / block_rows;
  const int64_t scratch_size = calibrated_ce_scratch_rows(arguments) * arguments.num_classes;
  const auto run = std::get<CalibratedCERun<scalar_t>>(calibrated_ce_kernels());
  std::vector<double> sums(blocks);
  // Two blocks are the least that is worth waking another thread for.
  at::parallel_for(0, blocks, 2, [&](int64_t begin, int64_t end) {
    std::vector<accumulate_t<scalar_t>> scratch(scratch_size);
    for (int64_t block = begin; block < end; ++block) {
      const int64_t first = block * block_rows;
      sums[block] = run(arguments, first, std::min(rows, first + block_rows), scratch.data());
    }
  });
  double sum = 0;
  for (const double block_sum : sums) sum += block_sum;
  return sum;
}

// Class counts as the kernel reads them: the given ones, checked, or this call's histogram.
template <typename T>
std::vector<T> counts_of_classes(const std::optional<at::Tensor>& given,
                                 const std::vector<int64_t>& histogram) {
  const int64_t num_classes = static_cast<int64_t>(histogram.size());
  if (!given) return std::vector<T>(histogram.begin(), histogram.end());
  const at::Tensor converted = given->to(c10::CppTypeToScalarType<T>::value).contiguous();
  const T* counts = converted.const_data_ptr<T>();
  for (int64_t c = 0; c < num_classes; ++c) {
    TORCH_CHECK_VALUE(std::isfinite(counts[c]) && counts[c] >= 0,
                      "calibrated_ce: class_counts must be finite and not negative, got ",
                      counts[c], " for class ", c);
    TORCH_CHECK_VALUE(
        histogram[c] == 0 || counts[c] > 0,
        "calibrated_ce: class_counts must be positive for every class that is a label, "
        "got 0 for class ",
        c, ", which occurs ", histogram[c], " times");
  }
  const T unit = counts_unit(*std::max_element(counts, counts + num_classes));
  std::vector<T> n(counts, counts + num_classes);
  for (T& n_c : n) n_c *= unit;
  return n;
}

template <typename scalar_t>
void forward(const at::Tensor& input, const at::Tensor& target,
             const std::optional<at::Tensor>& weight, const std::optional<at::Tensor>& class_counts,
             const CalibratedCEOptions& options, int64_t ignore_index, double label_smoothing,
             at::Tensor& loss, at::Tensor& gradient) {
  using T = accumulate_t<scalar_t>;
  const int64_t num_classes = input.size(class_dim(input));
  const int64_t rows = target.numel();
  const at::Tensor labels = target.to(at::kLong).contiguous();

  std::vector<int64_t> histogram(num_classes);
  count_labels_cpu("calibrated_ce", labels.const_data_ptr<int64_t>(), rows, num_classes,
                   ignore_index, histogram.data());
  const std::vector<T> n = counts_of_classes<T>(class_counts, histogram);

  // Label smoothing spreads the label over all classes, as weights do: both need w.
  std::vector<T> w;
  double weight_sum = static_cast<double>(num_classes), denominator = 0;
  if (weight || label_smoothing > 0) {
    w.assign(num_classes, T(1));
    if (weight) {
      const at::Tensor converted =
          weight->detach().to(c10::CppTypeToScalarType<T>::value).contiguous();
      w.assign(converted.const_data_ptr<T>(), converted.const_data_ptr<T>() + num_classes);
    }
    weight_sum = 0;
    for (int64_t c = 0; c < num_classes; ++c) {
      weight_sum += w[c];
      if (histogram[c])
        denominator += static_cast<double>(w[c]) * static_cast<double>(histogram[c]);
    }
  } else {
    for (const int64_t count : histogram) denominator += static_cast<double>(count);
  }
  if (options.reduction != Reduction::kMean) denominator = 1;

  CalibratedCEArguments<scalar_t> arguments{};
  arguments.logits = input.const_data_ptr<scalar_t>();
  arguments.logits_layout = *row_layout(input);
  arguments.target = labels.const_data_ptr<int64_t>();
  arguments.num_classes = num_classes;
  arguments.n = n.data();
  arguments.w = w.empty() ? nullptr : w.data();
  arguments.calibration = options.calibration;
  arguments.smoothing = {1 - label_smoothing, label_smoothing / static_cast<double>(num_classes),
                         weight_sum};
  arguments.ignore_index = ignore_index;
  arguments.factor = 1 / denominator;
  if (options.reduction == Reduction::kNone) {
    arguments.row_loss = loss.mutable_data_ptr<scalar_t>();
  }
  if (gradient.defined()) {
    arguments.gradient = gradient.mutable_data_ptr<scalar_t>();
    arguments.gradient_layout = *row_layout(gradient);
  }

  const double sum = run_blocks(arguments, rows);
  if (options.reduction != Reduction::kNone) {
    *loss.mutable_data_ptr<scalar_t>() = static_cast<scalar_t>(sum / denominator);
  }
}

std::tuple<at::Tensor, at::Tensor> calibrated_ce_forward(
    const at::Tensor& input, const at::Tensor& target, const std::optional<at::Tensor>& weight,
    const std::optional<at::Tensor>& class_counts, c10::string_view calibration,
    int64_t ignore_index, c10::string_view reduction, double label_smoothing,
    bool compute_gradient) {
  const auto options = check_calibrated_ce(input, target, weight, class_counts, calibration,
                                           reduction, label_smoothing);
  const auto run = [&](const at::Tensor& logits, at::Tensor& loss, at::Tensor& gradient) {
    const auto call = [&](auto forward_of_dtype) {
      forward_of_dtype(logits, target, weight, class_counts, options, ignore_index, label_smoothing,
                       loss, gradient);
    };
    switch (input.scalar_type()) {
      case at::kFloat:
        return call(forward<float>);
      case at::kDouble:
        return call(forward<double>);
      case at::kBFloat16:
        return call(forward<c10::BFloat16>);
      default:
        return call(forward<c10::Half>);
    }
  };
  return allocate_and_run(input, target, options.reduction, compute_gradient, run);
}

}  // namespace
}  // namespace fedkern

TORCH_LIBRARY_IMPL(fedkern, CPU, m) {
  m.impl("calibrated_ce_forward", TORCH_FN(fedkern::calibrated_ce_forward));
}
