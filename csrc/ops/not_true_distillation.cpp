#include "ops/not_true_distillation.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/where.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/saved_variable.h>
#include <torch/library.h>

#include <limits>
#include <string>

#include "common/autocast.h"
#include "common/autograd_node.h"
#include "common/vmap.h"
#include "ops/loss_nodes.h"

namespace fedkern {

using at::Tensor;

// ---- the operators, called through the dispatcher ----------------------------------------------

Tensor call_not_true_distillation(const Tensor& input, const Tensor& teacher, const Tensor& target,
                                  double tau, int64_t ignore_index, c10::string_view reduction,
                                  bool grouped) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("fedkern::not_true_distillation", "")
                             .typed<Tensor(const Tensor&, const Tensor&, const Tensor&, double,
                                           int64_t, c10::string_view, bool)>();
  return op.call(input, teacher, target, tau, ignore_index, reduction, grouped);
}

std::tuple<Tensor, Tensor> call_not_true_distillation_forward(
    const Tensor& input, const Tensor& teacher, const Tensor& target, double tau,
    int64_t ignore_index, c10::string_view reduction, bool grouped, bool compute_gradient) {
  static const auto op =
      c10::Dispatcher::singleton()
          .findSchemaOrThrow("fedkern::not_true_distillation_forward", "")
          .typed<std::tuple<Tensor, Tensor>(const Tensor&, const Tensor&, const Tensor&, double,
                                            int64_t, c10::string_view, bool, bool)>();
  return op.call(input, teacher, target, tau, ignore_index, reduction, grouped, compute_gradient);
}

namespace {

// ---- without autograd: any device --------------------------------------------------------------

Tensor not_true_distillation(const Tensor& input, const Tensor& teacher, const Tensor& target,
                             double tau, int64_t ignore_index, c10::string_view reduction,
                             bool grouped) {
  return std::get<0>(call_not_true_distillation_forward(input, teacher, target, tau, ignore_index,
                                                        reduction, grouped,
                                                        /*compute_gradient=*/false));
}

std::tuple<Tensor, Tensor> not_true_distillation_forward_meta(const Tensor& input,
                                                              const Tensor& teacher,
                                                              const Tensor& target, double tau,
                                                              int64_t, c10::string_view reduction,
                                                              bool grouped, bool compute_gradient) {
  const auto parsed = check_not_true_distillation(input, teacher, target, tau, reduction, grouped);
  return {at::empty_symint(loss_shape(target, parsed, grouped), input.options()),
          compute_gradient ? at::empty_like(input) : at::empty({0}, input.options())};
}

// ---- autograd ----------------------------------------------------------------------------------

namespace ag = torch::autograd;

// What the derivatives need of a call.
struct NotTrueCall {
  Tensor input, target;
  double tau;
  int64_t ignore_index;
  Reduction reduction;
  bool grouped;
};

// The product of the Hessian by input and `v` (input's shape, like the result), composed of
// differentiable operators. With f a row's factor in the reduction it is
//
//   f p_j (v_j - sum_c p_c v_c), j != y
//
// where the first derivative's tau and the 1 / tau of p's cancel. The teacher's q is in neither.
Tensor second_derivative(const Tensor& v, const NotTrueCall& call) {
  const Tensor& input = call.input;
  const int64_t dim = class_dim(input, call.grouped);
  const auto dtype = input.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const Tensor labels = call.target.to(at::kLong).unsqueeze(dim);
  const Tensor counts = labels.ne(call.ignore_index);  // whether a row counts
  c10::SymDimVector shape(input.dim(), 1);
  shape[dim] = input.sym_size(dim);
  const Tensor classes =
      at::arange(c10::Scalar(input.sym_size(dim)), labels.options()).reshape_symint(shape);
  const Tensor is_true = labels.eq(classes);

  const Tensor logits =
      at::where(is_true, -std::numeric_limits<double>::infinity(), input.to(dtype) / call.tau);
  const Tensor p = at::where(is_true, 0, at::softmax(logits, dim));
  Tensor product = p * (v - (p * v).sum(dim, /*keepdim=*/true));
  if (call.reduction == Reduction::kMean) {
    const Tensor rows = counts.flatten(call.grouped).sum(-1);
    c10::SymDimVector of_groups(input.dim(), 1);
    if (call.grouped) of_groups[0] = input.sym_size(0);
    product = product / rows.reshape_symint(of_groups);
  }
  return at::where(counts, product, 0).to(input.scalar_type());
}

// A call, kept for its derivatives: see loss_nodes.h.
class SavedCall {
 public:
  using Call = NotTrueCall;
  static constexpr const char* kName = "NotTrueDistillation";

  SavedCall() = default;

  explicit SavedCall(NotTrueCall call)
      : input_(call.input, /*is_output=*/false), target_(call.target, false), rest_(call) {
    rest_.input = rest_.target = Tensor();
  }

  Tensor target() const { return target_.unpack(); }
  int64_t ignore_index() const { return rest_.ignore_index; }
  bool grouped() const { return rest_.grouped; }

  NotTrueCall unpack() const {
    NotTrueCall call = rest_;
    call.input = input_.unpack();
    call.target = target_.unpack();
    return call;
  }

  void release() {
    input_.reset_data();
    target_.reset_data();
  }

  static Tensor second_derivative(const Tensor& v, const NotTrueCall& call) {
    return fedkern::second_derivative(v, call);
  }

 private:
  ag::SavedVariable input_, target_;
  NotTrueCall rest_{};
};

std::tuple<Tensor, Tensor> forward_with_history(const Tensor& input, const Tensor& teacher,
                                                const Tensor& target, double tau,
                                                int64_t ignore_index, c10::string_view reduction,
                                                bool grouped, bool return_gradient) {
  TORCH_CHECK_VALUE(!ag::compute_requires_grad(teacher),
                    "not_true_distillation: teacher must not require grad: detach it, or compute "
                    "it under torch.no_grad()");
  for (const Tensor* logits : {&input, &teacher}) {
    TORCH_CHECK_NOT_IMPLEMENTED(!logits->_fw_grad(/*level=*/0).defined(),
                                "not_true_distillation: forward-mode derivatives are not "
                                "implemented");
  }
  const bool requires_grad = ag::compute_requires_grad(input);
  Tensor loss, gradient;
  {
    const at::AutoDispatchBelowADInplaceOrView below_autograd;
    std::tie(loss, gradient) =
        call_not_true_distillation_forward(input, teacher, target, tau, ignore_index, reduction,
                                           grouped, requires_grad || return_gradient);
  }
  if (!requires_grad) return {loss, gradient};

  const NotTrueCall call{
      input,  target, tau, ignore_index, parse_reduction("not_true_distillation", reduction),
      grouped};
  set_histories<SavedCall>(input, call, loss, gradient, return_gradient);
  return {loss, gradient};
}

Tensor not_true_distillation_autograd(const Tensor& input, const Tensor& teacher,
                                      const Tensor& target, double tau, int64_t ignore_index,
                                      c10::string_view reduction, bool grouped) {
  return std::get<0>(forward_with_history(input, teacher, target, tau, ignore_index, reduction,
                                          grouped, /*return_gradient=*/false));
}

std::tuple<Tensor, Tensor> not_true_distillation_forward_autograd(
    const Tensor& input, const Tensor& teacher, const Tensor& target, double tau,
    int64_t ignore_index, c10::string_view reduction, bool grouped, bool compute_gradient) {
  auto [loss, gradient] = forward_with_history(input, teacher, target, tau, ignore_index, reduction,
                                               grouped, compute_gradient);
  return {loss, compute_gradient ? gradient : at::empty({0}, input.options())};
}

// ---- autocast: float32, as calibrated_ce -------------------------------------------------------

template <c10::DispatchKey kAutocast>
Tensor not_true_distillation_autocast(const Tensor& input, const Tensor& teacher,
                                      const Tensor& target, double tau, int64_t ignore_index,
                                      c10::string_view reduction, bool grouped) {
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(kAutocast);
  return call_not_true_distillation(to_float32(input), to_float32(teacher), target, tau,
                                    ignore_index, reduction, grouped);
}

// ---- vmap --------------------------------------------------------------------------------------

Tensor not_true_distillation_vmap(const Tensor& input, const Tensor& teacher, const Tensor& target,
                                  double tau, int64_t ignore_index, c10::string_view reduction,
                                  bool grouped) {
  const VmapCall vmap(grouped, {input, teacher, target});
  if (!vmap.maps()) {
    return call_not_true_distillation(input, teacher, target, tau, ignore_index, reduction,
                                      grouped);
  }
  return vmap.mapped(call_not_true_distillation(vmap.grouped(input), vmap.grouped(teacher),
                                                vmap.grouped(target), tau, ignore_index, reduction,
                                                /*grouped=*/true));
}

std::tuple<Tensor, Tensor> not_true_distillation_forward_vmap(
    const Tensor& input, const Tensor& teacher, const Tensor& target, double tau,
    int64_t ignore_index, c10::string_view reduction, bool grouped, bool compute_gradient) {
  const VmapCall vmap(grouped, {input, teacher, target});
  if (!vmap.maps()) {
    return call_not_true_distillation_forward(input, teacher, target, tau, ignore_index, reduction,
                                              grouped, compute_gradient);
  }
  const auto [loss, gradient] = call_not_true_distillation_forward(
      vmap.grouped(input), vmap.grouped(teacher), vmap.grouped(target), tau, ignore_index,
      reduction, /*grouped=*/true, compute_gradient);
  return {vmap.mapped(loss), compute_gradient ? vmap.mapped(gradient) : gradient};
}

}  // namespace
}  // namespace fedkern

TORCH_LIBRARY_IMPL(fedkern, CompositeExplicitAutograd, m) {
  m.impl("not_true_distillation", TORCH_FN(fedkern::not_true_distillation));
}
TORCH_LIBRARY_IMPL(fedkern, Meta, m) {
  m.impl("not_true_distillation_forward", TORCH_FN(fedkern::not_true_distillation_forward_meta));
}
TORCH_LIBRARY_IMPL(fedkern, Autograd, m) {
  m.impl("not_true_distillation", TORCH_FN(fedkern::not_true_distillation_autograd));
  m.impl("not_true_distillation_forward",
         TORCH_FN(fedkern::not_true_distillation_forward_autograd));
}
TORCH_LIBRARY_IMPL(fedkern, AutocastCPU, m) {
  m.impl("not_true_distillation",
         TORCH_FN(fedkern::not_true_distillation_autocast<c10::DispatchKey::AutocastCPU>));
}
TORCH_LIBRARY_IMPL(fedkern, AutocastCUDA, m) {
  m.impl("not_true_distillation",
         TORCH_FN(fedkern::not_true_distillation_autocast<c10::DispatchKey::AutocastCUDA>));
}
TORCH_LIBRARY_IMPL(fedkern, FuncTorchBatched, m) {
  m.impl("not_true_distillation", TORCH_FN(fedkern::not_true_distillation_vmap));
  m.impl("not_true_distillation_forward", TORCH_FN(fedkern::not_true_distillation_forward_vmap));
}
