"""Random crops and flips of training images, as in He et al. (arXiv 1512.03385, section 4.2)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .errors import ConfigError, unknown_name

AUGMENTATIONS = ("crop", "flip")

_PADDING = 4  # pixels of zeros on each side that a crop may show


def parse_augment(text: str) -> tuple[str, ...]:
    """The kinds that a setting such as ``"crop,flip"`` names; none if it is empty.

    Raises:
        ConfigError: a name that is not in `AUGMENTATIONS`, or is given twice.
    """
    kinds = tuple(kind.strip() for kind in text.split(",")) if text else ()
    for kind in kinds:
        if kind not in AUGMENTATIONS:
            raise unknown_name("augment", kind, AUGMENTATIONS)
    if len(set(kinds)) < len(kinds):
        raise ConfigError(f"augment: wanted each name once, got {text!r}")
    return kinds


def check_augment(kinds: Sequence[str], sample_shape: Sequence[int]) -> None:
    """Refuses to augment what is no image.

    Raises:
        ConfigError: there are `kinds`, but a sample is not of shape (channels, height, width).
    """
    if kinds and len(sample_shape) != 3:
        raise ConfigError(
            f"augment: wanted image data for {','.join(kinds)!r}, got samples of shape "
            f"{tuple(sample_shape)}"
        )


def augment(inputs: Tensor, kinds: Sequence[str], draws: torch.Generator) -> Tensor:
    """Shows each image of a batch through a random window of its own.

    Args:
        inputs: images [n, channels, height, width], any dtype and device.
        kinds: names from `AUGMENTATIONS`. ``"crop"``: a window of the image's own size, uniform
            among the 81 in the image padded by 4 pixels of zeros on each side. ``"flip"``: left and
            right change places with probability 1/2.
        draws: a CPU generator; the same state gives the same windows on every device.

    Returns:
        New images of the same shape, or `inputs` themselves if there are no kinds.
    """
    if not kinds:
        return inputs
    n, _, height, width = inputs.shape
    top = left = torch.full((n,), _PADDING)
    if "crop" in kinds:
        top, left = torch.randint(2 * _PADDING + 1, (2, n), generator=draws)
    rows = top[:, None] + torch.arange(height)
    columns = left[:, None] + torch.arange(width)
    if "flip" in kinds:
        flipped = torch.randint(2, (n, 1), generator=draws).bool()
        columns = torch.where(flipped, columns.flip(1), columns)
    rows, columns = rows.to(inputs.device), columns.to(inputs.device)
    # One gather from the flattened planes: indexing by row and column takes five times as long.
    padded = F.pad(inputs, (_PADDING,) * 4)
    pixels = rows[:, :, None] * padded.shape[3] + columns[:, None, :]
    index = pixels.flatten(1)[:, None].expand(-1, inputs.shape[1], -1)
    return padded.flatten(2).gather(2, index).view(inputs.shape)
