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

// A group's rows are worked on in blocks of about this many elements. A block's losses are summed
// in row order, then the blocks' sums in block order, so the threads that ran them do not show in
// the result.
constexpr int64_t kBlockElements = 16384;

// Writes the rows' results; returns the sum of each group's losses.
template <typename scalar_t>
std::vector<double> run_blocks(const CalibratedCEArguments<scalar_t>& arguments,
                               const std::vector<CalibratedCEGroup<accumulate_t<scalar_t>>>& groups,
                               int64_t rows) {
  const int64_t block_rows = std::max<int64_t>(1, kBlockElements / arguments.num_classes);
  const int64_t blocks = (rows + block_rows - 1) / block_rows;
  const int64_t scratch_size = calibrated_ce_scratch_rows(arguments) * arguments.num_classes;
  const int64_t num_groups = static_cast<int64_t>(groups.size());
  const auto run = std::get<CalibratedCERun<scalar_t>>(calibrated_ce_kernels());
  std::vector<double> of_block(num_groups * blocks);
  // Two full blocks are the least that is worth waking another thread for.
  const int64_t grain =
      std::max<int64_t>(2, 2 * block_rows / std::max<int64_t>(1, std::min(rows, block_rows)));
  at::parallel_for(0, num_groups * blocks, grain, [&](int64_t begin, int64_t end) {
    std::vector<accumulate_t<scalar_t>> scratch(scratch_size);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t group = i / blocks, first = i % blocks * block_rows;
      of_block[i] = run(arguments, groups[group], group * rows + first,
                        group * rows + std::min(rows, first + block_rows), scratch.data());
    }
  });
  std::vector<double> sums(num_groups);
  for (int64_t i = 0; i < num_groups * blocks; ++i) sums[i / blocks] += of_block[i];
  return sums;
}

// A class vector as the kernel reads it: [C], or [G, C] with its own row for each group.
template <typename T>
class ClassVector {
 public:
  ClassVector(const std::optional<at::Tensor>& given, int64_t num_classes)
      : num_classes_(num_classes) {
    if (given) tensor_ = given->detach().to(c10::CppTypeToScalarType<T>::value).contiguous();
  }

  explicit operator bool() const { return tensor_.defined(); }

  // Of that many vectors one for each group.
  int64_t vectors() const { return tensor_.numel() / num_classes_; }

  const T* of_group(int64_t group) const {
    return tensor_.const_data_ptr<T>() + (tensor_.dim() == 2 ? group * num_classes_ : 0);
  }

 private:
  at::Tensor tensor_;
  int64_t num_classes_;
};

// Checks given class counts; writes them as the kernel reads them to n.
template <typename T>
void scale_counts(const T* counts, int64_t num_classes, T* n) {
  T largest = 0;
  for (int64_t c = 0; c < num_classes; ++c) {
    TORCH_CHECK_VALUE(std::isfinite(counts[c]) && counts[c] >= 0,
                      "calibrated_ce: class_counts must be finite and not negative, got ",
                      counts[c], " for class ", c);
    largest = std::max(largest, counts[c]);
  }
  const T unit = counts_unit(largest);
  for (int64_t c = 0; c < num_classes; ++c) n[c] = counts[c] * unit;
}

template <typename scalar_t>
void forward(const at::Tensor& input, const at::Tensor& target,
             const std::optional<at::Tensor>& weight, const std::optional<at::Tensor>& class_counts,
             const CalibratedCEOptions& options, int64_t ignore_index, double label_smoothing,
             bool grouped, at::Tensor& loss, at::Tensor& gradient) {
  using T = accumulate_t<scalar_t>;
  const int64_t num_classes = input.size(class_dim(input, grouped));
  const int64_t num_groups = grouped ? input.size(0) : 1;
  const int64_t rows = num_groups == 0 ? 0 : target.numel() / num_groups;
  const at::Tensor labels = target.to(at::kLong).contiguous();
  const ClassVector<T> counts(class_counts, num_classes), weights(weight, num_classes);

  // Class counts: the given ones, or each group's histogram.
  const int64_t count_vectors = counts ? counts.vectors() : num_groups;
  std::vector<T> n(count_vectors * num_classes);
  for (int64_t i = 0; counts && i < count_vectors; ++i) {
    scale_counts(counts.of_group(i), num_classes, &n[i * num_classes]);
  }
  // Label smoothing spreads the label over all classes, as weights do: both need w.
  const std::vector<T> ones(!weights && label_smoothing > 0 ? num_classes : 0, T(1));

  std::vector<int64_t> histogram(num_classes);
  std::vector<CalibratedCEGroup<T>> groups(num_groups);
  std::vector<double> denominators(num_groups, 1);
  for (int64_t g = 0; g < num_groups; ++g) {
    std::fill(histogram.begin(), histogram.end(), 0);
    count_labels_cpu("calibrated_ce", labels.const_data_ptr<int64_t>() + g * rows, rows,
                     num_classes, ignore_index, histogram.data());
    T* n_g = &n[count_vectors == num_groups ? g * num_classes : 0];
    const T* w = weights ? weights.of_group(g) : ones.empty() ? nullptr : ones.data();
    double denominator = 0, weight_sum = 0;
    for (int64_t c = 0; c < num_classes; ++c) {
      if (!counts) n_g[c] = static_cast<T>(histogram[c]);
      TORCH_CHECK_VALUE(histogram[c] == 0 || n_g[c] > 0,
                        "calibrated_ce: class_counts must be positive for every class that is a "
                        "label, got 0 for class ",
                        c, ", which occurs ", histogram[c], " times");
      const double w_c = w ? static_cast<double>(w[c]) : 1;
      if (histogram[c]) denominator += w_c * static_cast<double>(histogram[c]);
      weight_sum += w_c;
    }
    if (options.reduction == Reduction::kMean) denominators[g] = denominator;
    groups[g] = {
        n_g,
        w,
        {1 - label_smoothing, label_smoothing / static_cast<double>(num_classes), weight_sum},
        1 / denominators[g]};
  }

  CalibratedCEArguments<scalar_t> arguments{};
  arguments.logits = input.const_data_ptr<scalar_t>();
  arguments.logits_layout = *row_layout(input, grouped);
  arguments.target = labels.const_data_ptr<int64_t>();
  arguments.num_classes = num_classes;
  arguments.calibration = options.calibration;
  arguments.ignore_index = ignore_index;
  if (options.reduction == Reduction::kNone) {
    arguments.row_loss = loss.mutable_data_ptr<scalar_t>();
  }
  if (gradient.defined()) {
    arguments.gradient = gradient.mutable_data_ptr<scalar_t>();
    arguments.gradient_layout = *row_layout(gradient, grouped);
  }

  const std::vector<double> sums = run_blocks(arguments, groups, rows);
  for (int64_t g = 0; options.reduction != Reduction::kNone && g < num_groups; ++g) {
    loss.mutable_data_ptr<scalar_t>()[g] = static_cast<scalar_t>(sums[g] / denominators[g]);
  }
}

std::tuple<at::Tensor, at::Tensor> calibrated_ce_forward(
    const at::Tensor& input, const at::Tensor& target, const std::optional<at::Tensor>& weight,
    const std::optional<at::Tensor>& class_counts, c10::string_view calibration,
    int64_t ignore_index, c10::string_view reduction, double label_smoothing, bool grouped,
    bool compute_gradient) {
  const auto options = check_calibrated_ce(input, target, weight, class_counts, calibration,
                                           reduction, label_smoothing, grouped);
  const auto run = [&](const at::Tensor& logits, at::Tensor& loss, at::Tensor& gradient) {
    const auto call = [&](auto forward_of_dtype) {
      forward_of_dtype(logits, target, weight, class_counts, options, ignore_index, label_smoothing,
                       grouped, loss, gradient);
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
  return allocate_and_run(input, target, options.reduction, grouped, compute_gradient, run);
}

}  // namespace
}  // namespace fedkern

TORCH_LIBRARY_IMPL(fedkern, CPU, m) {
  m.impl("calibrated_ce_forward", TORCH_FN(fedkern::calibrated_ce_forward));
}
