"""What all tests share: the devices to run on, and threads put back as they were."""

import os
from collections.abc import Iterator

import pytest
import torch

DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    """Every device there is: the CPU, and a GPU where torch has one."""
    return str(request.param)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Small work, and maybe busy neighbours: a test that is about threads asks for them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def data_root() -> str:
    """The folder with real data sets, in torchvision's layout."""
    root = os.environ.get("FEDKERN_DATA")
    if not root:
        pytest.skip("FEDKERN_DATA names no folder with real data")
    return root
