"""A model's state as a list of tensors: its parameters and buffers, as `state_dict` has them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def state_tensors(model: nn.Module) -> list[Tensor]:
    """The model's own parameters and buffers, in the order of its ``state_dict()``."""
    return list(model.state_dict().values())


def copied(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Copies that later training leaves alone."""
    return [tensor.detach().clone() for tensor in tensors]


@torch.no_grad()
def load(tensors: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Writes the values into the tensors."""
    for tensor, value in zip(tensors, values, strict=True):
        tensor.copy_(value)


@contextmanager
def holding(tensors: Sequence[Tensor], values: Sequence[Tensor]) -> Iterator[None]:
    """Within it the tensors hold the values; then again what they held before."""
    before = copied(tensors)
    load(tensors, values)
    try:
        yield
    finally:
        load(tensors, before)
