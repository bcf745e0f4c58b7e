#include "ops/calibrated_ce_second_derivative.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/where.h>

namespace fedkern {
namespace {

using at::Tensor;

// [C] or [G, C] as what multiplies tensors of input's shape: [1, C, 1, ...] or [G, 1, C, 1, ...].
Tensor as_class_vector(const Tensor& vector, const Tensor& input, int64_t class_dim) {
  c10::SymDimVector shape(input.dim(), 1);
  shape[class_dim] = vector.sym_size(-1);
  if (vector.dim() == 2) shape[0] = vector.sym_size(0);
  return vector.reshape_symint(shape);
}

// The sum over a group's rows, all dimensions but the classes.
Tensor sum_rows(const Tensor& t, int64_t class_dim, bool grouped) {
  at::DimVector rows;
  for (int64_t d = grouped; d < t.dim(); ++d) {
    if (d != class_dim) rows.push_back(d);
  }
  return rows.empty() ? t : t.sum(rows, /*keepdim=*/true);
}

}  // namespace

Tensor calibrated_ce_second_derivative(const Tensor& v, const CalibratedCECall& call) {
  const auto& [input, target, weight, class_counts, logit_adjustment, options, ignore_index,
               label_smoothing, grouped] = call;
  const int64_t dim = class_dim(input, grouped);
  const auto dtype = input.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const auto sum_classes = [dim](const Tensor& t) { return t.sum(dim, /*keepdim=*/true); };

  const Tensor labels = target.to(at::kLong).unsqueeze(dim);
  const Tensor counts = labels.ne(ignore_index);  // whether a row counts
  const Tensor classes = at::arange(c10::Scalar(input.sym_size(dim)), labels.options());
  const Tensor one_hot =
      labels.eq(as_class_vector(classes, input, dim)).logical_and(counts).to(dtype);
  const Tensor w = as_class_vector(
      weight.defined() ? weight.detach().to(dtype) : at::ones_like(classes, one_hot.options()),
      input, dim);
  const Tensor w_y = sum_classes(one_hot * w);
  const Tensor logits =
      logit_adjustment.defined()
          ? input.to(dtype) + as_class_vector(logit_adjustment.to(dtype), input, dim)
          : input;
  const Tensor p = at::softmax(logits, dim, dtype);

  Tensor label_sum = (1 - label_smoothing) * w_y + label_smoothing * w.mean(dim, /*keepdim=*/true);
  if (options.calibration == Calibration::kLabel) {
    const Tensor n = class_counts.defined() ? as_class_vector(class_counts.to(dtype), input, dim)
                                            : sum_rows(one_hot, dim, grouped);
    const Tensor n_y = at::where(counts, sum_classes(one_hot * n), 1);
    label_sum = label_sum + sum_classes(w * p.detach() * (1 - n / n_y));
  }
  // A mean over nothing is 0 / 0, which must not get past `counts`.
  if (options.reduction == Reduction::kMean) label_sum = label_sum / sum_rows(w_y, dim, grouped);
  const Tensor factor = at::where(counts, label_sum, 0);

  const Tensor product = factor * p * (v - sum_classes(p * v));
  return at::where(counts, product, 0).to(input.scalar_type());
}

}  // namespace fedkern
