"""Configures fedkern's CMake project for this interpreter, apart from the build that pip does."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Tools that were installed beside this interpreter need not be on the PATH.
PATH = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])


class CheckError(Exception):
    """A check cannot go on; the message says why."""


def configure(folder: Path, cuda: str, *options: str) -> str:
    """Have CMake prepare a build in `folder`, with FEDKERN_CUDA=`cuda`; the cmake that did."""
    import pybind11  # CMake asks for it

    cmake = shutil.which("cmake", path=PATH)
    if not cmake:
        raise CheckError("cmake was not found: pip install cmake")
    # A cache of earlier times may name another interpreter, or an nvcc that is gone.
    (folder / "CMakeCache.txt").unlink(missing_ok=True)
    defines = {"Python_EXECUTABLE": sys.executable, "pybind11_DIR": pybind11.get_cmake_dir()}
    done = subprocess.run(
        [
            *(cmake, "-G", "Ninja", "-S", str(ROOT), "-B", str(folder)),
            *(f"-D{name}={value}" for name, value in defines.items()),
            *options,
        ],
        env={**os.environ, "PATH": PATH, "FEDKERN_CUDA": cuda},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise CheckError(f"CMake failed:\n{done.stderr.strip()}")
    return cmake
