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


def draw_windows(n: int, kinds: Sequence[str], draws: torch.Generator) -> Tensor:
    """Draws the random windows through which `through_windows` shows n images.

    Args:
        n: how many.
        kinds: names from `AUGMENTATIONS`. ``"crop"``: a window of the image's own size, uniform
            among the 81 in the image padded by 4 pixels of zeros on each side. ``"flip"``: left and
            right change places with probability 1/2.
        draws: a CPU generator, from which nothing is taken if there are no kinds.

    Returns:
        int64 [n, 3] on the CPU: each window's first row and column in the padded image, and whether
        it is flipped, 0 or 1. Those of no kinds show the images as they are.
    """
    top = left = torch.full((n,), _PADDING)
    flipped = torch.zeros(n, dtype=torch.int64)
    if "crop" in kinds:
        top, left = torch.randint(2 * _PADDING + 1, (2, n), generator=draws)
    if "flip" in kinds:
        flipped = torch.randint(2, (n,), generator=draws)
    return torch.stack([top, left, flipped], 1)


def through_windows(inputs: Tensor, windows: Tensor) -> Tensor:
    """Shows each image of a batch through a window of its own.

    Args:
        inputs: images [n, channels, height, width], any dtype and device.
        windows: of `draw_windows`, int64 [n, 3], on the same device.

    Returns:
        New images of the same shape, in channels-last memory.
    """
    n, channels, height, width = inputs.shape
    top, left, flipped = windows.unsqueeze(2).unbind(1)  # each [n, 1]
    rows = top + torch.arange(height, device=inputs.device)
    columns = torch.arange(width, device=inputs.device)
    columns = left + torch.where(flipped.bool(), columns.flip(0), columns)
    # One gather of whole pixels: indexing by image, row and column takes five times as long.
    padded = F.pad(inputs.permute(0, 2, 3, 1), (0, 0, *(_PADDING,) * 4))
    first_rows = torch.arange(n, device=inputs.device).view(n, 1) * padded.shape[1]
    pixels = (first_rows + rows)[:, :, None] * padded.shape[2] + columns[:, None, :]
    shown = padded.reshape(-1, channels).index_select(0, pixels.flatten())
    return shown.view(n, height, width, channels).permute(0, 3, 1, 2)
