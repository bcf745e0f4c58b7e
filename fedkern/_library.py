"""Loads the compiled operators, after checking that they were built for the torch that runs."""

import importlib
from importlib import metadata
from typing import Any

import torch

REBUILD = (
    "build fedkern again for the installed torch: `pip install --force-reinstall --no-deps "
    "--no-cache-dir .` in its source folder, or install the torch it was built for"
)


def _check_torch() -> None:
    # A torch with another X.Y may load and then compute nonsense, so this comes before loading. The
    # requirement was written down by the build (setup.py).
    running = ".".join(torch.__version__.split(".")[:2])
    requirements = metadata.requires("fedkern") or []
    built_for = next((r for r in requirements if r.startswith("torch==")), "an unknown torch")
    if built_for != f"torch=={running}.*":
        raise ImportError(
            f"fedkern was built for {built_for}, but torch {torch.__version__} is running; "
            f"{REBUILD}"
        )


def _load(name: str) -> Any:
    try:
        return importlib.import_module(f"fedkern.{name}")
    except ImportError as error:
        raise ImportError(
            f"fedkern.{name} does not load with torch {torch.__version__} ({error}); {REBUILD}"
        ) from error


__version__ = metadata.version("fedkern")
_check_torch()
_C = _load("_C")
call_calibrated_ce = _C.calibrated_ce
call_calibrated_ce_forward = _C.calibrated_ce_forward
call_not_true_distillation = _C.not_true_distillation
call_not_true_distillation_forward = _C.not_true_distillation_forward
call_sgd_step_ = _C.sgd_step_
call_simplex_project = _C.simplex_project
call_simplex_sample = _C.simplex_sample
call_simplex_sample_ball = _C.simplex_sample_ball
read_batch = _C.read_batch
# A chain of layers, and what it is made of.
Chain, Parameters = _C.Chain, _C.Parameters
Conv2d, Flatten, LeakyReLU = _C.Conv2d, _C.Flatten, _C.LeakyReLU
Linear, MaxPool2d, Products, ReLU = _C.Linear, _C.MaxPool2d, _C.Products, _C.ReLU

# The CPU operators are of use without the CUDA ones, so a failure here is kept, not raised.
_cuda_reason: str = _C.cuda_reason
if _C.cuda_architectures:
    try:
        _load("_cuda")
    except ImportError as error:
        _cuda_reason = str(error)


def build_info() -> dict[str, Any]:
    """What this installation was built for, and what it runs on.

    Returns:
        version: fedkern's own.
        torch_built, torch_running: versions of torch.
        cuda_architectures: those the CUDA kernels are compiled for; empty without CUDA kernels.
        cuda_reason: why there are no CUDA kernels; empty where they are loaded.
        cpu_capability: the vector instructions in use: "AVX512", "AVX2" or "DEFAULT".
        threads: the number of threads torch's CPU operators use.
    """
    return {
        "version": __version__,
        "torch_built": _C.torch_version,
        "torch_running": torch.__version__,
        "cuda_architectures": [] if _cuda_reason else _C.cuda_architectures.split(";"),
        "cuda_reason": _cuda_reason,
        "cpu_capability": _C.cpu_capability,
        "threads": torch.get_num_threads(),
    }
