"""What the tests of fedkern.fl share."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fedkern import fl


@pytest.fixture
def blobs() -> fl.Dataset:
    """240 training and 60 test samples of 4 classes in 6 dimensions, easy to learn."""
    draws = torch.Generator().manual_seed(0)

    def part(samples: int) -> tuple[torch.Tensor, torch.Tensor]:
        labels = torch.arange(samples) % 4
        inputs = torch.randn(samples, 6, generator=draws)
        inputs[torch.arange(samples), labels] += 3
        return inputs, labels

    return fl.Dataset("blobs", *part(240), *part(60), num_classes=4)


@pytest.fixture
def images(blobs: fl.Dataset) -> fl.Dataset:
    """Blobs as images of three channels, 8x8."""

    def drawn(x: torch.Tensor) -> torch.Tensor:
        return x[:, :3, None, None] + torch.linspace(-1, 1, 64).view(8, 8)

    return replace(blobs, x_train=drawn(blobs.x_train), x_test=drawn(blobs.x_test))


@pytest.fixture(scope="session")
def mnist() -> fl.Dataset:
    """The real MNIST; where there is none, the test is skipped."""
    root = os.environ.get("FEDKERN_DATA", "")
    if not root or not (Path(root) / "MNIST" / "raw").is_dir():
        pytest.skip("needs MNIST in the folder that FEDKERN_DATA names")
    pytest.importorskip("torchvision")
    return fl.load_dataset("mnist", root)
