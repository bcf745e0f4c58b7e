"""Builds and loads fedkern_emulated: fedkern's CUDA kernels and bindings, run on the CPU.

    module = load()           # built first, if anything has changed
    module.enable()           # CPU tensors now run through the CUDA bindings and kernels
    fedkern.calibrated_ce(...)
    module.launches()         # the kernels that this ran
    module.disable()

How kernels are run, and what counts as a fault, is told in include/cuda_emulator/emulator.h.
"""

import fcntl
import functools
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import fedkern  # noqa: F401  the operators must be there before their kernels

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "build_support"))
from sanitize import environment

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]

# What was installed beside this interpreter need not be on the PATH.
PATH = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])


def unavailable() -> str | None:
    """Why there is no emulated device here, or None."""
    if os.environ.get("FEDKERN_TEST_EMULATOR") == "off":
        return "FEDKERN_TEST_EMULATOR=off"
    for tool in ("cmake", "ninja", "g++"):
        if shutil.which(tool, path=PATH) is None:
            return f"the CUDA emulator is built with {tool}, which was not found"
    return None


def build(sanitize: bool) -> Path:
    """The folder in which the module lies, up to date."""
    folder = REPOSITORY / "build" / "cuda_emulator" / ("sanitized" if sanitize else "plain")
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two test runs may come at once
        configured_for = folder / "python"
        if not configured_for.exists() or configured_for.read_text() != sys.executable:
            (folder / "CMakeCache.txt").unlink(missing_ok=True)
            options = [f"-DSANITIZE={'ON' if sanitize else 'OFF'}", "-DCMAKE_CXX_COMPILER=g++"]
            options.append(f"-DPython_EXECUTABLE={sys.executable}")
            _run("cmake", "-G", "Ninja", "-S", str(HERE), "-B", str(folder), *options)
            configured_for.write_text(sys.executable)
        _run("cmake", "--build", str(folder), "--parallel", str(os.cpu_count() or 1))
    return folder


def _run(*command: str) -> None:
    # A compiler needs no sanitizer of its own.
    environment = {k: v for k, v in os.environ.items() if k != "LD_PRELOAD"} | {"PATH": PATH}
    done = subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode != 0:
        raise RuntimeError(f"the CUDA emulator could not be built:\n{done.stdout}")


@functools.cache
def load(sanitize: bool = False) -> ModuleType:
    """The module, built if it must be. A sanitized one needs sanitized_environment."""
    (path,) = build(sanitize).glob("fedkern_emulated*.so")
    spec = importlib.util.spec_from_file_location("fedkern_emulated", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def sanitized_environment() -> dict[str, str]:
    """For a child process that is to load the sanitized module."""
    return {**environment(), "FEDKERN_EMULATOR_SANITIZE": "1"}
