"""Bridge from setuptools to CMake: CMakeLists.txt says what is compiled, this file only runs it."""

import os
import sys
from pathlib import Path

from scikit_build_core.setuptools.build_cmake import BuildCMake
from setuptools import setup

sys.path.insert(0, str(Path(__file__).parent / "build_support"))
import torch_probe


class BuildExtension(BuildCMake):
    """Runs CMake; where a CUDA build fails that nobody insisted on, builds for the CPU instead."""

    def run(self) -> None:
        try:
            super().run()
        except Exception:
            if os.environ.get("FEDKERN_CUDA", "auto").lower() != "auto":
                raise
            os.environ["FEDKERN_CUDA"] = "off"
            os.environ["FEDKERN_CUDA_REASON"] = (
                "the CUDA build failed (build with FEDKERN_CUDA=on and pip's -v to see why)"
            )
            super().run()


def torch_requirement() -> str:
    """torch promises no ABI between minor releases: a build is good for one of them only.

    Without torch nothing is compiled (CMake says so), but a source distribution can be made.
    """
    torch = torch_probe.find()
    return f"torch=={'.'.join(torch.version.split('.')[:2])}.*" if torch else "torch>=2.11"


setup(
    cmake_source_dir=".",
    cmdclass={"build_cmake": BuildExtension},
    install_requires=[
        torch_requirement(),
        "numpy",
        "scipy>=1.9",
        "typer>=0.12",
        "rich>=13",
        "torchmetrics>=1.4",
        "matplotlib>=3.7",
        "tomli-w>=1",
        "tomli>=2; python_version < '3.11'",
    ],
)
