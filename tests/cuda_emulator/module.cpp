// The Python module fedkern_emulated: see build.py.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "cuda_emulator/emulator.h"
#include "planted.h"
#include "registration.h"

namespace py = pybind11;

PYBIND11_MODULE(fedkern_emulated, m) {
  using namespace cuda_emulator;
  m.doc() = "fedkern's CUDA kernels on the CPU";

  m.def("enable", &enable, "Let CPU tensors run through the CUDA bindings and kernels.");
  m.def("disable", &disable, "Let CPU tensors run through the CPU kernels again.");
  m.def(
      "set_order",
      [](const std::string& order) {
        if (order != "forward" && order != "reverse") {
          throw py::value_error("order must be 'forward' or 'reverse', got '" + order + "'");
        }
        set_order(order == "forward" ? Order::kForward : Order::kReverse);
      },
      py::arg("order"), "The order in which threads, warps and blocks run.");
  m.def("reset", &reset, "Forget errors and launches.");
  m.def("launches", &launches, "The kernels that ran since the last reset.");
  m.def("last_message", &last_message, "What the last error was, and where.");

  // The emulator's own tests: planted.cu.
  auto planted = m.def_submodule("planted", "Small kernels, many of them wrong on purpose");
  planted.def("launch", &planted::launch, py::arg("kernel"), py::arg("grid"), py::arg("block"),
              py::arg("shared_bytes"), py::arg("input"), py::arg("output"), py::arg("size"),
              "Launch a kernel on two addresses; the error's text, or none.");
  planted.def("allow_shared_bytes", &planted::allow_shared_bytes, py::arg("kernel"),
              py::arg("bytes"));
  planted.def("last_error", &planted::last_error);
}
