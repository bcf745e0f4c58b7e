"""The networks of FedGA's and Floco's experiments, initialised from a generator of their own.

They start as PyTorch's own layers do (uniform within 1 / sqrt(fan-in)), but draw from an explicit
generator: the global random state is left alone, and CPU and CUDA runs start from the same model.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
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

        _check_sides("lenet", 16, height, width)  # from there on pooled(side) is at least 1
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


class FlocoCNN(nn.Sequential):
    """The small CNN of Floco's experiments (arXiv 2403.03333): three convolutions, two layers.

    Inputs [n, channels, height, width], logits [n, num_classes]. It pools before the leaky ReLU,
    which is the same function as the other order: leaky ReLU increases.
    """

    def __init__(self, channels: int, height: int, width: int, num_classes: int) -> None:
        def pooled(side: int) -> int:
            return ((side - 4) // 2 - 2) // 2 // 2

        _check_sides("cnn", 16, height, width)  # from there on pooled(side) is at least 1
        super().__init__(
            nn.Conv2d(channels, 16, 5),
            nn.MaxPool2d(2),
            nn.LeakyReLU(),
            nn.Conv2d(16, 32, 5, padding=1),
            nn.MaxPool2d(2),
            nn.LeakyReLU(),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.MaxPool2d(2),
            nn.LeakyReLU(),
            nn.Flatten(),
            nn.Linear(64 * pooled(height) * pooled(width), 128),
            nn.LeakyReLU(),
            nn.Linear(128, num_classes),
        )


class ResNet20(nn.Sequential):
    """The ResNet-20 of He et al. for CIFAR (arXiv 1512.03385, section 4.2), 0.27 million weights.

    Inputs [n, channels, height, width], logits [n, num_classes]. Three stages of three blocks with
    16, 32 and 64 channels; the shortcuts have no parameters (option A of section 4.1).
    """

    def __init__(self, channels: int, height: int, width: int, num_classes: int) -> None:
        # The last stage then has 2x2 positions: batch norm cannot train on a single value, and a
        # client's last batch may be a single image.
        _check_sides("resnet20", 5, height, width)
        widths = (16, 16, 16, 16, 32, 32, 32, 64, 64, 64)
        super().__init__(
            nn.Conv2d(channels, 16, 3, padding=1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            *map(_ResidualBlock, widths[:-1], widths[1:]),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(64, num_classes),
        )


class _ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut; where the channels double, the sides halve."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.stride = channels // in_channels
        self.new_channels = channels - in_channels
        self.residual = nn.Sequential(
            nn.Conv2d(in_channels, channels, 3, self.stride, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, inputs: Tensor) -> Tensor:
        shortcut = inputs
        if self.new_channels:
            kept = inputs[:, :, :: self.stride, :: self.stride]
            shortcut = F.pad(kept, (0, 0, 0, 0, 0, self.new_channels))
        return F.relu(self.residual(inputs) + shortcut)


def build_model(name: str, dataset: Dataset, generator: torch.Generator) -> nn.Module:
    """A new model sized by the data set, on the CPU.

    Args:
        name: ``"mlp"``, ``"lenet"``, ``"cnn"``, ``"resnet20"``, or ``"auto"``: LeNet for colour
            images of at least 28x28, else the MLP.
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


def _for_images(name: str, network: Callable[..., nn.Module]) -> Callable[[Dataset], nn.Module]:
    def build(dataset: Dataset) -> nn.Module:
        shape = dataset.sample_shape
        if len(shape) != 3:
            raise ConfigError(
                f"model: wanted image data for {name!r}, got {dataset.name!r} with samples of "
                f"shape {tuple(shape)} (use 'mlp')"
            )
        return network(*shape, dataset.num_classes)

    return build


def _check_sides(name: str, smallest: int, height: int, width: int) -> None:
    if min(height, width) < smallest:
        raise ConfigError(
            f"model: wanted images of at least {smallest}x{smallest} for {name!r}, got "
            f"{height}x{width} (use 'mlp')"
        )


_BUILDERS: dict[str, Callable[[Dataset], nn.Module]] = {
    "cnn": _for_images("cnn", FlocoCNN),
    "lenet": _for_images("lenet", LeNet),
    "mlp": _mlp,
    "resnet20": _for_images("resnet20", ResNet20),
}
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
        elif isinstance(layer, nn.BatchNorm2d):
            layer.reset_parameters()  # ones and zeros, nothing is drawn
