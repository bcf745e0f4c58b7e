"""The networks of FedGA's experiments, initialised from a generator of their own.

They start as PyTorch's own layers do (uniform within 1 / sqrt(fan-in)), but draw from an explicit
generator: the global random state is left alone, and CPU and CUDA runs start from the same model.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .data import Dataset
from .errors import ConfigError, unknown_name


class MLP(nn.Sequential):
    """One hidden layer of 128 units: inputs [n, ...] of `features` values, logits [n, classes]."""

    def __init__(self, features: int, num_classes: int) -> None:
        super().__init__(
            nn.Flatten(), nn.Linear(features, 128), nn.ReLU(), nn.Linear(128, num_classes)
        )


class LeNet(nn.Sequential):
    """LeNet with 6 and 16 channels of 5x5 and layers of 120 and 84 units.

    Inputs [n, channels, height, width], logits [n, num_classes]. It pools before the ReLU, which
    is the same function as the other order and touches a quarter of the values.
    """

    def __init__(self, channels: int, height: int, width: int, num_classes: int) -> None:
        def pooled(side: int) -> int:
            return ((side - 4) // 2 - 4) // 2

        if min(pooled(height), pooled(width)) < 1:
            raise ConfigError(
                f"model: wanted images of at least 16x16 for 'lenet', got {height}x{width} "
                "(use 'mlp')"
            )
        super().__init__(
            nn.Conv2d(channels, 6, 5),
            nn.MaxPool2d(2),
            nn.ReLU(),
            nn.Conv2d(6, 16, 5),
            nn.MaxPool2d(2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(16 * pooled(height) * pooled(width), 120),
            nn.ReLU(),
            nn.Linear(120, 84),
            nn.ReLU(),
            nn.Linear(84, num_classes),
        )


def build_model(name: str, dataset: Dataset, generator: torch.Generator) -> nn.Module:
    """A new model sized by the data set, on the CPU.

    Args:
        name: ``"mlp"``, ``"lenet"``, or ``"auto"``: LeNet for colour images of at least 28x28,
            else the MLP.
        dataset: gives the shape of a sample and the number of classes.
        generator: a CPU generator; the only source of the initial parameters.

    Raises:
        ConfigError: an unknown name, or a model that does not fit the data.
    """
    shape = dataset.sample_shape
    if name == "auto":
        name = "lenet" if len(shape) == 3 and shape[0] == 3 and min(shape[1:]) >= 28 else "mlp"
    if name not in _BUILDERS:
        raise unknown_name("model", name, MODELS)
    with torch.device("meta"):  # the layers' own constructors draw from the global generator
        model = _BUILDERS[name](dataset)
    model.to_empty(device="cpu")
    _initialise(model, generator)
    # A tenth to a seventh faster for LeNet on the CPU; other layers' weights stay as they are.
    return model.to(memory_format=torch.channels_last)


def _mlp(dataset: Dataset) -> nn.Module:
    return MLP(dataset.sample_shape.numel(), dataset.num_classes)


def _lenet(dataset: Dataset) -> nn.Module:
    shape = dataset.sample_shape
    if len(shape) != 3:
        raise ConfigError(
            f"model: wanted image data for 'lenet', got {dataset.name!r} with samples of shape "
            f"{tuple(shape)} (use 'mlp')"
        )
    return LeNet(*shape, dataset.num_classes)


_BUILDERS: dict[str, Callable[[Dataset], nn.Module]] = {"lenet": _lenet, "mlp": _mlp}
MODELS = ("auto", *_BUILDERS)


@torch.no_grad()
def _initialise(model: nn.Module, generator: torch.Generator) -> None:
    for layer in model.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            weight: Tensor = layer.weight
            bound = weight[0].numel() ** -0.5
            weight.uniform_(-bound, bound, generator=generator)
            if layer.bias is not None:
                layer.bias.uniform_(-bound, bound, generator=generator)
