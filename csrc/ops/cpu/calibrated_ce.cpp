#include "ops/calibrated_ce.h"

#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "common/cpu_buffer.h"
#include "common/labels.h"
#include "common/switch_dtype.h"
#include "ops/class_counts.h"
#include "ops/cpu/calibrated_ce_kernel.h"
#include "ops/cpu/row_blocks.h"

namespace fedkern {
namespace {

// ---- class vectors -----------------------------------------------------------------------------

// [vectors, C], padded with zeros as the kernel reads them: one vector for all groups, or one each.
template <typename T>
class ClassVectors {
 public:
  ClassVectors(int64_t vectors, int64_t num_classes)
      : vectors_(vectors),
        num_classes_(num_classes),
        stride_(padded(num_classes)),
        values_(vectors * stride_) {}

  // fill(i, values) writes vector i.
  template <typename Fill>
  void fill(const Fill& fill) {
    for (int64_t i = 0; i < vectors_; ++i) {
      T* values = values_.data() + i * stride_;
      fill(i, values);
      std::fill(values + num_classes_, values + stride_, T(0));
    }
  }

  const T* of_group(int64_t group) {
    if (vectors_ == 0) return nullptr;
    return values_.data() + (vectors_ == 1 ? 0 : group * stride_);
  }

 private:
  int64_t vectors_, num_classes_, stride_;
  CpuBuffer<T, 512> values_;
};

// A given vector in T; undefined if none was.
template <typename T>
at::Tensor class_vector(const std::optional<at::Tensor>& given) {
  if (!given) return {};
  return given->detach().to(c10::CppTypeToScalarType<T>::value).contiguous();
}

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

// Checks the labels of rows [begin, end) of a group; returns the sum of their weights.
template <typename T>
double sum_label_weights(const int64_t* labels, int64_t begin, int64_t end, int64_t rows,
                         int64_t num_classes, int64_t ignore_index, const T* n, const T* w) {
  double sum = 0;
  for (int64_t i = begin; i < end; ++i) {
    if (!has_class("calibrated_ce", labels, i, num_classes, ignore_index)) continue;
    const int64_t label = labels[i];
    TORCH_CHECK_VALUE(n[label] > 0,
                      "calibrated_ce: class_counts must be positive for every class that is a "
                      "label, got 0 for class ",
                      label, ", which occurs ", std::count(labels, labels + rows, label), " times");
    sum += w ? static_cast<double>(w[label]) : 1;
  }
  return sum;
}

// ---- the operator ------------------------------------------------------------------------------

template <typename scalar_t>
void forward(const at::Tensor& input, const at::Tensor& target,
             const std::optional<at::Tensor>& weight, const std::optional<at::Tensor>& class_counts,
             const CalibratedCEOptions& options, int64_t ignore_index, double label_smoothing,
             bool grouped, const std::optional<at::Tensor>& logit_adjustment, at::Tensor& loss,
             at::Tensor& gradient) {
  using T = accumulate_t<scalar_t>;
  const int64_t num_classes = input.size(class_dim(input, grouped));
  const int64_t num_groups = grouped ? input.size(0) : 1;
  const int64_t rows = num_groups == 0 ? 0 : target.numel() / num_groups;
  const Blocks blocks(num_groups, rows, num_classes);
  const at::Tensor labels = contiguous_labels(target);
  const int64_t* const label_data = labels.const_data_ptr<int64_t>();

  // Class counts: the given ones, or each group's histogram.
  const at::Tensor counts = class_vector<T>(class_counts);
  ClassVectors<T> n(counts.defined() ? counts.numel() / num_classes : num_groups, num_classes);
  if (counts.defined()) {
    n.fill([&](int64_t i, T* values) {
      scale_counts(counts.const_data_ptr<T>() + i * num_classes, num_classes, values);
    });
  } else {
    CpuBuffer<int64_t, 512> histogram(num_classes);
    n.fill([&](int64_t g, T* values) {
      std::fill_n(histogram.data(), num_classes, 0);
      count_labels_cpu("calibrated_ce", label_data + g * rows, rows, num_classes, ignore_index,
                       histogram.data());
      std::copy_n(histogram.data(), num_classes, values);
    });
  }

  // Label smoothing spreads the label over all classes, as weights do: both need w.
  const at::Tensor weights = class_vector<T>(weight);
  ClassVectors<T> w(weights.defined() ? weights.numel() / num_classes : label_smoothing > 0,
                    num_classes);
  w.fill([&](int64_t i, T* values) {
    if (weights.defined()) {
      std::copy_n(weights.const_data_ptr<T>() + i * num_classes, num_classes, values);
    } else {
      std::fill_n(values, num_classes, T(1));
    }
  });

  const at::Tensor adjustments = class_vector<T>(logit_adjustment);
  ClassVectors<T> b(adjustments.defined() ? adjustments.numel() / num_classes : 0, num_classes);
  b.fill([&](int64_t i, T* values) {
    std::copy_n(adjustments.const_data_ptr<T>() + i * num_classes, num_classes, values);
  });

  CpuBuffer<double, 16> denominators(num_groups), losses(num_groups);
  sum_over_blocks<T>(blocks, /*row_elements=*/1, /*scratch_size=*/0, denominators.data(),
                     [&](int64_t g, int64_t begin, int64_t end, T*) {
                       return sum_label_weights(label_data + g * rows, begin, end, rows,
                                                num_classes, ignore_index, n.of_group(g),
                                                w.of_group(g));
                     });
  if (options.reduction != Reduction::kMean) std::fill_n(denominators.data(), num_groups, 1);

  CpuBuffer<CalibratedCEGroup<T>, 16> groups(num_groups);
  for (int64_t g = 0; g < num_groups; ++g) {
    const T* const w_g = w.of_group(g);
    const double weight_sum =
        label_smoothing > 0 ? std::accumulate(w_g, w_g + num_classes, 0.0) : 0;
    groups[g] = {
        n.of_group(g),
        w_g,
        b.of_group(g),
        {1 - label_smoothing, label_smoothing / static_cast<double>(num_classes), weight_sum},
        1 / denominators[g]};
  }

  CalibratedCEArguments<scalar_t> arguments{};
  arguments.logits = input.const_data_ptr<scalar_t>();
  arguments.logits_layout = with_positions(*row_layout(input, grouped));
  arguments.target = label_data;
  arguments.num_classes = num_classes;
  arguments.calibration = options.calibration;
  arguments.ignore_index = ignore_index;
  if (options.reduction == Reduction::kNone) {
    arguments.row_loss = loss.mutable_data_ptr<scalar_t>();
  }
  if (gradient.defined()) {
    arguments.gradient = gradient.mutable_data_ptr<scalar_t>();
    arguments.gradient_layout = with_positions(*row_layout(gradient, grouped));
  }

  const auto run = std::get<CalibratedCERun<scalar_t>>(calibrated_ce_kernels());
  sum_over_blocks<T>(blocks, num_classes, calibrated_ce_scratch_size(arguments), losses.data(),
                     [&](int64_t g, int64_t begin, int64_t end, T* scratch) {
                       return run(arguments, groups[g], g * rows + begin, g * rows + end, scratch);
                     });
  for (int64_t g = 0; options.reduction != Reduction::kNone && g < num_groups; ++g) {
    loss.mutable_data_ptr<scalar_t>()[g] = static_cast<scalar_t>(losses[g] / denominators[g]);
  }
}

std::tuple<at::Tensor, at::Tensor> calibrated_ce_forward(
    const at::Tensor& input, const at::Tensor& target, const std::optional<at::Tensor>& weight,
    const std::optional<at::Tensor>& class_counts, c10::string_view calibration,
    int64_t ignore_index, c10::string_view reduction, double label_smoothing, bool grouped,
    const std::optional<at::Tensor>& logit_adjustment, bool compute_gradient) {
  const auto options = check_calibrated_ce(input, target, weight, class_counts, calibration,
                                           reduction, label_smoothing, grouped, logit_adjustment);
  const auto run = [&](const at::Tensor& logits, at::Tensor& loss, at::Tensor& gradient) {
    switch_dtype(input.scalar_type(), [&](auto zero) {
      forward<decltype(zero)>(logits, target, weight, class_counts, options, ignore_index,
                              label_smoothing, grouped, logit_adjustment, loss, gradient);
    });
  };
  return allocate_and_run(input, target, options.reduction, grouped, compute_gradient, run);
}

}  // namespace
}  // namespace fedkern

TORCH_LIBRARY_IMPL(fedkern, CPU, m) {
  m.impl("calibrated_ce_forward", TORCH_FN(fedkern::calibrated_ce_forward));
}
