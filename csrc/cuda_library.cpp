// The Python module whose loading registers the CUDA kernels (csrc/ops/cuda).

#include <pybind11/pybind11.h>

PYBIND11_MODULE(_cuda, m) { m.doc() = "CUDA kernels of fedkern's operators"; }
