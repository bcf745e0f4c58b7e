"""What the build promises: CUDA or a reason, an import that is cheap and checks its torch."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fedkern

ROOT = Path(__file__).parent.parent


def python(code: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def test_build_info() -> None:
    info = fedkern.build_info()
    assert info["version"] == fedkern.__version__
    assert info["torch_built"] == info["torch_running"] == torch.__version__
    assert info["threads"] == torch.get_num_threads()
    # Either there are CUDA kernels, or there is a reason.
    assert bool(info["cuda_architectures"]) != bool(info["cuda_reason"])


def test_cuda_kernels_are_registered_where_they_were_built() -> None:
    built = bool(fedkern.build_info()["cuda_architectures"])
    for op in ("calibrated_ce_forward", "class_counts"):
        has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key(f"fedkern::{op}", "CUDA")
        assert has_kernel == built


def test_cuda_is_built_where_it_can_be() -> None:
    """A CUDA build that fails degrades to the CPU, so it takes a test to notice."""
    info = fedkern.build_info()
    nvcc = shutil.which("nvcc")
    if not torch.version.cuda or not nvcc or "FEDKERN_CUDA=off" in info["cuda_reason"]:
        pytest.skip(f"no CUDA build was to be expected: {info['cuda_reason']}")
    says = subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout
    if f"release {torch.version.cuda.split('.')[0]}." not in says:
        pytest.skip("nvcc is of another major version than torch's CUDA")
    assert info["cuda_architectures"], info["cuda_reason"]


def test_import_is_light() -> None:
    """Neither CUDA, nor torchvision, nor what only the command line needs."""
    code = """
import sys, torch, fedkern
assert not torch.cuda.is_initialized()
heavy = {"torchvision", "typer", "rich", "matplotlib", "torchmetrics"} & set(sys.modules)
assert not heavy, heavy
"""
    done = python(code)
    assert done.returncode == 0, done.stderr


def test_another_torch_is_refused_with_the_way_out() -> None:
    done = python("import torch; torch.__version__ = '2.99.1+cu999'; import fedkern")
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    built = ".".join(torch.__version__.split(".")[:2])
    assert last.startswith("ImportError: fedkern was built for torch==" + built)
    assert "torch 2.99.1+cu999 is running" in last
    assert "pip install" in last


def test_a_broken_cuda_module_leaves_the_cpu_working() -> None:
    """What a missing libc10_cuda.so does: the reason is kept, the CPU operators are there."""
    code = """
import sys
sys.modules["fedkern._cuda"] = None   # its import raises ImportError
import torch, fedkern
info = fedkern.build_info()
assert info["cuda_architectures"] == [] and info["cuda_reason"], info
fedkern.calibrated_ce(torch.zeros(2, 3), torch.tensor([0, 1]))
"""
    done = python(code)
    assert done.returncode == 0, done.stderr


def configure(tmp_path: Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    pybind11 = pytest.importorskip("pybind11", reason="cmake needs pybind11's headers")
    if not shutil.which("cmake") or not shutil.which("ninja"):
        pytest.skip("cmake and ninja are not on the PATH")
    defines = {
        "Python_EXECUTABLE": sys.executable,
        "pybind11_DIR": pybind11.get_cmake_dir(),
    }
    return subprocess.run(
        ["cmake", "-G", "Ninja", "-S", ROOT, "-B", tmp_path]
        + [f"-D{name}={value}" for name, value in defines.items()],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )


def fake_nvcc(folder: Path, release: str) -> str:
    """A CUDA_HOME whose nvcc says it is `release` and can compile nothing."""
    nvcc = folder / "bin" / "nvcc"
    nvcc.parent.mkdir(parents=True)
    nvcc.write_text(f"#!/bin/sh\necho 'Cuda compilation tools, release {release}, V{release}'\n")
    nvcc.chmod(0o755)
    return str(folder)


def test_cuda_can_be_turned_off(tmp_path: Path) -> None:
    done = configure(tmp_path, FEDKERN_CUDA="off")
    assert done.returncode == 0, done.stderr
    assert "CPU only: built with FEDKERN_CUDA=off" in done.stdout


def test_an_unknown_cuda_choice_is_refused(tmp_path: Path) -> None:
    done = configure(tmp_path, FEDKERN_CUDA="yes")
    assert done.returncode != 0
    assert "FEDKERN_CUDA must be on, off or auto, got yes" in done.stderr


def test_an_nvcc_of_another_version_means_cpu_only(tmp_path: Path) -> None:
    home = fake_nvcc(tmp_path / "cuda", "9.2")
    environment = {"CUDA_HOME": home, "CUDA_PATH": home}
    done = configure(tmp_path / "auto", FEDKERN_CUDA="auto", **environment)
    assert done.returncode == 0, done.stderr
    version = torch.version.cuda
    reason = (
        f"nvcc 9.2 does not match torch's CUDA {version}"
        if version
        else f"torch {torch.__version__} has no CUDA"
    )
    assert f"CPU only: {reason}" in done.stdout

    done = configure(tmp_path / "on", FEDKERN_CUDA="on", **environment)
    assert done.returncode != 0
    assert "FEDKERN_CUDA=on, but" in done.stderr
