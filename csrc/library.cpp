// The operators' schemas, one a line, and the Python module: how it was built, and what is called
// without a schema.

#include <torch/csrc/Exceptions.h>
#include <torch/csrc/utils/pybind.h>
#include <torch/library.h>

#include "build_facts.h"
#include "common/cpu_capability.h"
#include "fl/chain.h"
#include "fl/read_batch.h"
#include "ops/calibrated_ce.h"
#include "ops/not_true_distillation.h"
#include "ops/sgd_step.h"
#include "ops/simplex_project.h"
#include "ops/simplex_sample.h"
#include "ops/simplex_sample_ball.h"

// clang-format off
TORCH_LIBRARY(fedkern, m) {
  m.def("calibrated_ce(Tensor input, Tensor target, Tensor? weight=None, Tensor? class_counts=None, str calibration='label', int ignore_index=-100, str reduction='mean', float label_smoothing=0.0, bool grouped=False, Tensor? logit_adjustment=None) -> Tensor");
  m.def("calibrated_ce_forward(Tensor input, Tensor target, Tensor? weight, Tensor? class_counts, str calibration, int ignore_index, str reduction, float label_smoothing, bool grouped, Tensor? logit_adjustment, bool compute_gradient) -> (Tensor loss, Tensor gradient)");
  m.def("calibrated_ce_backward(Tensor grad_loss, Tensor gradient, Tensor target, int ignore_index, bool grouped) -> Tensor");
  m.def("calibrated_ce_backward_(Tensor(a!) gradient, Tensor grad_loss, Tensor target, int ignore_index, bool grouped) -> ()");
  m.def("centered_gram(Tensor stats) -> Tensor");
  m.def("class_counts(Tensor target, SymInt num_classes, int ignore_index=-100, bool grouped=False) -> Tensor");
  m.def("not_true_distillation(Tensor input, Tensor teacher, Tensor target, float tau=1.0, int ignore_index=-100, str reduction='mean', bool grouped=False) -> Tensor");
  m.def("not_true_distillation_forward(Tensor input, Tensor teacher, Tensor target, float tau, int ignore_index, str reduction, bool grouped, bool compute_gradient) -> (Tensor loss, Tensor gradient)");
  m.def("sgd_step_(Tensor(a!) param, Tensor(b!) grad, Tensor(c!)? momentum_buffer, Tensor? anchor, Tensor? alpha, Tensor? active, float lr, float momentum=0.0, float weight_decay=0.0, float? max_norm=None, float pull=0.0, bool zero_grad=False) -> ()");
  m.def("simplex_riesz_energy(Tensor points, float s=2.0, float min_distance=1e-4) -> Tensor");
  m.def("simplex_riesz_energy_by_size(Tensor scores, Tensor sizes, Tensor? wanted=None, bool screen=False) -> Tensor");
  m.def("simplex_project(Tensor x, Tensor z, int dim=-1) -> (Tensor result, Tensor support)");
  m.def("simplex_project_backward(Tensor grad, Tensor support, int dim) -> Tensor");
  m.def("simplex_interpolate(Tensor[] endpoints, Tensor alpha, bool grouped=False) -> Tensor[]");
  m.def("simplex_interpolate_backward(Tensor[] grads, Tensor[] endpoints, bool grouped, ScalarType dtype) -> Tensor");
  m.def("simplex_sample(Tensor key, SymInt[] size, SymInt num_endpoints, ScalarType dtype) -> Tensor");
  m.def("simplex_sample_ball(Tensor key, Tensor center, Tensor radius, SymInt num_samples, str method) -> Tensor");
}
// clang-format on

PYBIND11_MODULE(_C, m) {
  m.attr("torch_version") = FEDKERN_TORCH_VERSION;
  m.attr("cuda_architectures") = FEDKERN_CUDA_ARCHITECTURES;
  m.attr("cuda_reason") = FEDKERN_CUDA_REASON;
  m.attr("cpu_capability") = fedkern::cpu_capability_name();
  // The same as in torch.ops.fedkern, without torch.ops' interpretation of the schema.
  m.def("calibrated_ce", torch::wrap_pybind_function_no_gil(fedkern::call_calibrated_ce));
  m.def("calibrated_ce_forward",
        torch::wrap_pybind_function_no_gil(fedkern::call_calibrated_ce_forward));
  m.def("not_true_distillation",
        torch::wrap_pybind_function_no_gil(fedkern::call_not_true_distillation));
  m.def("not_true_distillation_forward",
        torch::wrap_pybind_function_no_gil(fedkern::call_not_true_distillation_forward));
  m.def("sgd_step_", torch::wrap_pybind_function_no_gil(fedkern::call_sgd_step_));
  m.def("simplex_project", torch::wrap_pybind_function_no_gil(fedkern::call_simplex_project));
  m.def("simplex_project", torch::wrap_pybind_function_no_gil(fedkern::call_simplex_project_onto));
  // The keys are drawn on the way to these operators.
  m.def("simplex_sample", torch::wrap_pybind_function_no_gil(fedkern::call_simplex_sample));
  m.def("simplex_sample_ball",
        torch::wrap_pybind_function_no_gil(fedkern::call_simplex_sample_ball));
  // What fedkern.fl trains with.
  m.def("read_batch", torch::wrap_pybind_function_no_gil(fedkern::read_batch));
  fedkern::bind_chain(m);
}
