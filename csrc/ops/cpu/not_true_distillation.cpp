#include "ops/not_true_distillation.h"

#include <torch/library.h>

#include <algorithm>

#include "common/cpu_buffer.h"
#include "common/labels.h"
#include "ops/cpu/not_true_distillation_kernel.h"
#include "ops/cpu/row_blocks.h"

namespace fedkern {
namespace {

// Checks the labels of rows [begin, end) of a group; returns how many count.
double count_rows(const int64_t* labels, int64_t begin, int64_t end, int64_t num_classes,
                  int64_t ignore_index) {
  int64_t count = 0;
  for (int64_t i = begin; i < end; ++i) {
    count += has_class("not_true_distillation", labels, i, num_classes, ignore_index);
  }
  return static_cast<double>(count);
}

template <typename scalar_t>
void forward(const at::Tensor& input, const at::Tensor& teacher, const at::Tensor& target,
             double tau, int64_t ignore_index, Reduction reduction, bool grouped, at::Tensor& loss,
             at::Tensor& gradient) {
  using T = accumulate_t<scalar_t>;
  const int64_t num_classes = input.size(class_dim(input, grouped));
  const int64_t num_groups = grouped ? input.size(0) : 1;
  const int64_t rows = num_groups == 0 ? 0 : target.numel() / num_groups;
  const Blocks blocks(num_groups, rows, num_classes);
  const at::Tensor labels = contiguous_labels(target);
  const int64_t* const label_data = labels.const_data_ptr<int64_t>();

  CpuBuffer<double, 16> denominators(num_groups), losses(num_groups);
  sum_over_blocks<T>(blocks, /*row_elements=*/1, /*scratch_size=*/0, denominators.data(),
                     [&](int64_t g, int64_t begin, int64_t end, T*) {
                       return count_rows(label_data + g * rows, begin, end, num_classes,
                                         ignore_index);
                     });
  if (reduction != Reduction::kMean) std::fill_n(denominators.data(), num_groups, 1);

  NotTrueDistillationArguments<scalar_t> arguments{};
  arguments.student = input.const_data_ptr<scalar_t>();
  arguments.student_layout = with_positions(*row_layout(input, grouped));
  arguments.teacher = teacher.const_data_ptr<scalar_t>();
  arguments.teacher_layout = with_positions(*row_layout(teacher, grouped));
  arguments.target = label_data;
  arguments.num_classes = num_classes;
  arguments.ignore_index = ignore_index;
  arguments.tau = tau;
  if (reduction == Reduction::kNone) arguments.row_loss = loss.mutable_data_ptr<scalar_t>();
  if (gradient.defined()) {
    arguments.gradient = gradient.mutable_data_ptr<scalar_t>();
    arguments.gradient_layout = with_positions(*row_layout(gradient, grouped));
  }

  const auto run = std::get<NotTrueDistillationRun<scalar_t>>(not_true_distillation_kernels());
  sum_over_blocks<T>(blocks, 2 * num_classes, not_true_distillation_scratch_size(arguments),
                     losses.data(), [&](int64_t g, int64_t begin, int64_t end, T* scratch) {
                       return run(arguments, 1 / denominators[g], g * rows + begin, g * rows + end,
                                  scratch);
                     });
  for (int64_t g = 0; reduction != Reduction::kNone && g < num_groups; ++g) {
    loss.mutable_data_ptr<scalar_t>()[g] = static_cast<scalar_t>(losses[g] / denominators[g]);
  }
}

std::tuple<at::Tensor, at::Tensor> not_true_distillation_forward(
    const at::Tensor& input, const at::Tensor& teacher, const at::Tensor& target, double tau,
    int64_t ignore_index, c10::string_view reduction, bool grouped, bool compute_gradient) {
  const auto parsed = check_not_true_distillation(input, teacher, target, tau, reduction, grouped);
  const auto run = [&](const at::Tensor& student, at::Tensor& loss, at::Tensor& gradient) {
    const at::Tensor constant = with_rows(teacher, grouped);
    switch_dtype(input.scalar_type(), [&](auto zero) {
      forward<decltype(zero)>(student, constant, target, tau, ignore_index, parsed, grouped, loss,
                              gradient);
    });
  };
  return allocate_and_run(input, target, parsed, grouped, compute_gradient, run);
}

}  // namespace
}  // namespace fedkern

TORCH_LIBRARY_IMPL(fedkern, CPU, m) {
  m.impl("not_true_distillation_forward", TORCH_FN(fedkern::not_true_distillation_forward));
}
