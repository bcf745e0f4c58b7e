"""What all tests share: the devices to run on, and one thread unless a test asks for more."""

import os
from collections.abc import Iterator
from types import ModuleType

import pytest
import torch
from cuda_emulator import build

# "emulated": the CUDA kernels, run on the CPU (cuda_emulator/). FEDKERN_TEST_EMULATOR=off leaves it
# out. FEDKERN_EMULATOR_SANITIZE=1 takes kernels compiled with sanitizers.
DEVICES = ["cpu"]
if os.environ.get("FEDKERN_TEST_EMULATOR") != "off":
    DEVICES.append("emulated")
if torch.cuda.is_available():
    DEVICES.append("cuda")


@pytest.fixture(scope="session")
def emulator_module() -> ModuleType:
    """The emulated device, built first if it must be, and off."""
    reason = build.unavailable()
    if reason:
        pytest.skip(reason)
    return build.load(sanitize=os.environ.get("FEDKERN_EMULATOR_SANITIZE") == "1")


@pytest.fixture
def emulated(emulator_module: ModuleType) -> Iterator[ModuleType]:
    """The emulated device, on: CPU tensors run through the CUDA bindings and kernels."""
    emulator_module.reset()
    emulator_module.enable()
    yield emulator_module
    emulator_module.disable()
    emulator_module.reset()


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    """Every device there is: where a test must put its tensors to run on it."""
    if request.param != "emulated":
        return str(request.param)
    request.getfixturevalue("emulated")
    return "cpu"


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Small work, and maybe busy neighbours: a test that is about threads asks for them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
