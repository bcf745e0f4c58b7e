"""Tests again with the kernels for each vector width, each in a process that is made to use it."""

import os
import subprocess
import sys

import pytest
import torch

CAPABILITIES = ["DEFAULT", "AVX2", "AVX512"]
_CHILD = "FEDKERN_TEST_CAPABILITY"


def run_tests_with(capability: str, file: str, chosen: str) -> None:
    """Run those tests of `file` that -k `chosen` chooses, if this machine has the capability."""
    best = torch.backends.cpu.get_cpu_capability()
    if _CHILD in os.environ or best not in CAPABILITIES:
        pytest.skip("one process does for each capability of an x86-64 machine")
    if CAPABILITIES.index(capability) > CAPABILITIES.index(best):
        pytest.skip(f"this machine's best is {best}")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", chosen, file],
        env={**os.environ, "ATEN_CPU_CAPABILITY": capability.lower(), _CHILD: capability},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def expected_capability() -> str:
    """What the kernels must be running on, in a child and outside one."""
    expected = os.environ.get(_CHILD, torch.backends.cpu.get_cpu_capability())
    return expected if expected in CAPABILITIES else "DEFAULT"
