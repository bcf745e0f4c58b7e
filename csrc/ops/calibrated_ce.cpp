#include "ops/calibrated_ce.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/saved_variable.h>
#include <torch/library.h>

#include <string>
#include <tuple>

#include "common/autocast.h"
#include "common/autograd_node.h"
#include "common/vmap.h"
#include "ops/calibrated_ce_backward.h"
#include "ops/calibrated_ce_second_derivative.h"
#include "ops/loss_nodes.h"

namespace fedkern {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

// ---- the operators, called through the dispatcher ----------------------------------------------

Tensor call_calibrated_ce(const Tensor& input, const Tensor& target, const OptionalTensor& weight,
                          const OptionalTensor& class_counts, c10::string_view calibration,
                          int64_t ignore_index, c10::string_view reduction, double label_smoothing,
                          bool grouped, const OptionalTensor& logit_adjustment) {
  static const auto op =
      c10::Dispatcher::singleton()
          .findSchemaOrThrow("fedkern::calibrated_ce", "")
          .typed<Tensor(const Tensor&, const Tensor&, const OptionalTensor&, const OptionalTensor&,
                        c10::string_view, int64_t, c10::string_view, double, bool,
                        const OptionalTensor&)>();
  return op.call(input, target, weight, class_counts, calibration, ignore_index, reduction,
                 label_smoothing, grouped, logit_adjustment);
}

std::tuple<Tensor, Tensor> call_calibrated_ce_forward(
    const Tensor& input, const Tensor& target, const OptionalTensor& weight,
    const OptionalTensor& class_counts, c10::string_view calibration, int64_t ignore_index,
    c10::string_view reduction, double label_smoothing, bool grouped,
    const OptionalTensor& logit_adjustment, bool compute_gradient) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("fedkern::calibrated_ce_forward", "")
                             .typed<std::tuple<Tensor, Tensor>(
                                 const Tensor&, const Tensor&, const OptionalTensor&,
                                 const OptionalTensor&, c10::string_view, int64_t, c10::string_view,
                                 double, bool, const OptionalTensor&, bool)>();
  return op.call(input, target, weight, class_counts, calibration, ignore_index, reduction,
                 label_smoothing, grouped, logit_adjustment, compute_gradient);
}

namespace {

// ---- without autograd: any device --------------------------------------------------------------

Tensor calibrated_ce(const Tensor& input, const Tensor& target, const OptionalTensor& weight,
                     const OptionalTensor& class_counts, c10::string_view calibration,
                     int64_t ignore_index, c10::string_view reduction, double label_smoothing,
                     bool grouped, const OptionalTensor& logit_adjustment) {
  return std::get<0>(call_calibrated_ce_forward(input, target, weight, class_counts, calibration,
                                                ignore_index, reduction, label_smoothing, grouped,
                                                logit_adjustment, /*compute_gradient=*/false));
}

std::tuple<Tensor, Tensor> calibrated_ce_forward_meta(
    const Tensor& input, const Tensor& target, const OptionalTensor& weight,
    const OptionalTensor& class_counts, c10::string_view calibration, int64_t,
    c10::string_view reduction, double label_smoothing, bool grouped,
    const OptionalTensor& logit_adjustment, bool compute_gradient) {
  const auto options = check_calibrated_ce(input, target, weight, class_counts, calibration,
                                           reduction, label_smoothing, grouped, logit_adjustment);
  return {at::empty_symint(loss_shape(target, options.reduction, grouped), input.options()),
          compute_gradient ? at::empty_like(input) : at::empty({0}, input.options())};
}

// ---- autograd ----------------------------------------------------------------------------------

namespace ag = torch::autograd;

// A call's arguments, kept for its derivatives: see loss_nodes.h.
class SavedCall {
 public:
  using Call = CalibratedCECall;
  static constexpr const char* kName = "CalibratedCE";

  SavedCall() = default;

  explicit SavedCall(CalibratedCECall call)
      : input_(call.input, /*is_output=*/false),
        target_(call.target, false),
        weight_(call.weight, false),
        class_counts_(call.class_counts, false),
        logit_adjustment_(call.logit_adjustment, false),
        rest_(std::move(call)) {
    rest_.input = rest_.target = rest_.weight = rest_.class_counts = rest_.logit_adjustment =
        Tensor();
  }

  Tensor target() const { return target_.unpack(); }
  int64_t ignore_index() const { return rest_.ignore_index; }
  bool grouped() const { return rest_.grouped; }

  CalibratedCECall unpack() const {
    CalibratedCECall call = rest_;
    call.input = input_.unpack();
    call.target = target_.unpack();
    call.weight = weight_.unpack();
    call.class_counts = class_counts_.unpack();
    call.logit_adjustment = logit_adjustment_.unpack();
    return call;
  }

  void release() {
    for (auto* saved : {&input_, &target_, &weight_, &class_counts_, &logit_adjustment_}) {
      saved->reset_data();
    }
  }

  static Tensor second_derivative(const Tensor& v, const CalibratedCECall& call) {
    return calibrated_ce_second_derivative(v, call);
  }

 private:
  ag::SavedVariable input_, target_, weight_, class_counts_, logit_adjustment_;
  CalibratedCECall rest_;
};

std::tuple<Tensor, Tensor> forward_with_history(
    const Tensor& input, const Tensor& target, const OptionalTensor& weight,
    const OptionalTensor& class_counts, c10::string_view calibration, int64_t ignore_index,
    c10::string_view reduction, double label_smoothing, bool grouped,
    const OptionalTensor& logit_adjustment, bool return_gradient) {
  const auto check_constant = [](const OptionalTensor& constant, const char* name) {
    TORCH_CHECK_VALUE(!constant || !ag::compute_requires_grad(*constant), "calibrated_ce: ", name,
                      " must not require grad: it is a constant of the loss");
  };
  check_constant(weight, "weight");
  check_constant(class_counts, "class_counts");
  check_constant(logit_adjustment, "logit_adjustment");
  const auto has_tangent = [](const Tensor& t) { return t._fw_grad(/*level=*/0).defined(); };
  TORCH_CHECK_NOT_IMPLEMENTED(
      !has_tangent(input) && !(logit_adjustment && has_tangent(*logit_adjustment)),
      "calibrated_ce: forward-mode derivatives are not implemented");
  const bool requires_grad = ag::compute_requires_grad(input);
  Tensor loss, gradient;
  {
    const at::AutoDispatchBelowADInplaceOrView below_autograd;
    std::tie(loss, gradient) = call_calibrated_ce_forward(
        input, target, weight, class_counts, calibration, ignore_index, reduction, label_smoothing,
        grouped, logit_adjustment, requires_grad || return_gradient);
  }
  if (!requires_grad) return {loss, gradient};

  const CalibratedCECall call{input,
                              target,
                              weight.value_or(Tensor()),
                              class_counts.value_or(Tensor()),
                              logit_adjustment.value_or(Tensor()),
                              parse_options(calibration, reduction),
                              ignore_index,
                              label_smoothing,
                              grouped};
  set_histories<SavedCall>(input, call, loss, gradient, return_gradient);
  return {loss, gradient};
}

Tensor calibrated_ce_autograd(const Tensor& input, const Tensor& target,
                              const OptionalTensor& weight, const OptionalTensor& class_counts,
                              c10::string_view calibration, int64_t ignore_index,
                              c10::string_view reduction, double label_smoothing, bool grouped,
                              const OptionalTensor& logit_adjustment) {
  return std::get<0>(forward_with_history(input, target, weight, class_counts, calibration,
                                          ignore_index, reduction, label_smoothing, grouped,
                                          logit_adjustment, /*return_gradient=*/false));
}

std::tuple<Tensor, Tensor> calibrated_ce_forward_autograd(
    const Tensor& input, const Tensor& target, const OptionalTensor& weight,
    const OptionalTensor& class_counts, c10::string_view calibration, int64_t ignore_index,
    c10::string_view reduction, double label_smoothing, bool grouped,
    const OptionalTensor& logit_adjustment, bool compute_gradient) {
  auto [loss, gradient] =
      forward_with_history(input, target, weight, class_counts, calibration, ignore_index,
                           reduction, label_smoothing, grouped, logit_adjustment, compute_gradient);
  return {loss, compute_gradient ? gradient : at::empty({0}, input.options())};
}

// ---- autocast: float32, as cross_entropy -------------------------------------------------------

template <c10::DispatchKey kAutocast>
Tensor calibrated_ce_autocast(const Tensor& input, const Tensor& target,
                              const OptionalTensor& weight, const OptionalTensor& class_counts,
                              c10::string_view calibration, int64_t ignore_index,
                              c10::string_view reduction, double label_smoothing, bool grouped,
                              const OptionalTensor& logit_adjustment) {
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(kAutocast);
  return call_calibrated_ce(to_float32(input), target, weight, class_counts, calibration,
                            ignore_index, reduction, label_smoothing, grouped, logit_adjustment);
}

// ---- vmap --------------------------------------------------------------------------------------

Tensor calibrated_ce_vmap(const Tensor& input, const Tensor& target, const OptionalTensor& weight,
                          const OptionalTensor& class_counts, c10::string_view calibration,
                          int64_t ignore_index, c10::string_view reduction, double label_smoothing,
                          bool grouped, const OptionalTensor& logit_adjustment) {
  const VmapCall vmap(grouped, {input, target, weight, class_counts, logit_adjustment});
  if (!vmap.maps()) {
    return call_calibrated_ce(input, target, weight, class_counts, calibration, ignore_index,
                              reduction, label_smoothing, grouped, logit_adjustment);
  }
  return vmap.mapped(call_calibrated_ce(vmap.grouped(input), vmap.grouped(target),
                                        vmap.class_vector(weight), vmap.class_vector(class_counts),
                                        calibration, ignore_index, reduction, label_smoothing,
                                        /*grouped=*/true, vmap.class_vector(logit_adjustment)));
}

std::tuple<Tensor, Tensor> calibrated_ce_forward_vmap(
    const Tensor& input, const Tensor& target, const OptionalTensor& weight,
    const OptionalTensor& class_counts, c10::string_view calibration, int64_t ignore_index,
    c10::string_view reduction, double label_smoothing, bool grouped,
    const OptionalTensor& logit_adjustment, bool compute_gradient) {
  const VmapCall vmap(grouped, {input, target, weight, class_counts, logit_adjustment});
  if (!vmap.maps()) {
    return call_calibrated_ce_forward(input, target, weight, class_counts, calibration,
                                      ignore_index, reduction, label_smoothing, grouped,
                                      logit_adjustment, compute_gradient);
  }
  const auto [loss, gradient] = call_calibrated_ce_forward(
      vmap.grouped(input), vmap.grouped(target), vmap.class_vector(weight),
      vmap.class_vector(class_counts), calibration, ignore_index, reduction, label_smoothing,
      /*grouped=*/true, vmap.class_vector(logit_adjustment), compute_gradient);
  return {vmap.mapped(loss), compute_gradient ? vmap.mapped(gradient) : gradient};
}

}  // namespace
}  // namespace fedkern

TORCH_LIBRARY_IMPL(fedkern, CompositeExplicitAutograd, m) {
  m.impl("calibrated_ce", TORCH_FN(fedkern::calibrated_ce));
}
TORCH_LIBRARY_IMPL(fedkern, Meta, m) {
  m.impl("calibrated_ce_forward", TORCH_FN(fedkern::calibrated_ce_forward_meta));
}
TORCH_LIBRARY_IMPL(fedkern, Autograd, m) {
  m.impl("calibrated_ce", TORCH_FN(fedkern::calibrated_ce_autograd));
  m.impl("calibrated_ce_forward", TORCH_FN(fedkern::calibrated_ce_forward_autograd));
}
TORCH_LIBRARY_IMPL(fedkern, AutocastCPU, m) {
  m.impl("calibrated_ce", TORCH_FN(fedkern::calibrated_ce_autocast<c10::DispatchKey::AutocastCPU>));
}
TORCH_LIBRARY_IMPL(fedkern, AutocastCUDA, m) {
  m.impl("calibrated_ce",
         TORCH_FN(fedkern::calibrated_ce_autocast<c10::DispatchKey::AutocastCUDA>));
}
TORCH_LIBRARY_IMPL(fedkern, FuncTorchBatched, m) {
  m.impl("calibrated_ce", TORCH_FN(fedkern::calibrated_ce_vmap));
  m.impl("calibrated_ce_forward", TORCH_FN(fedkern::calibrated_ce_forward_vmap));
}
