"""What a method is to the loop."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from ..config import RunConfig
from ..training import Client


@dataclass(frozen=True)
class Update:
    """A client's reply to the server, or the aggregate of several.

    Attributes:
        state: the model's parameters and buffers in the order of its ``state_dict()``. A client's
            are the live ones, valid until the next client trains.
        num_samples: how many samples it was trained on.
        train_loss: plain cross entropy of the training batches, mean over samples, scalar tensor.
    """

    state: list[Tensor]
    num_samples: int
    train_loss: Tensor


class Method(Protocol):
    """A federated-learning method, as `fedkern.fl.simulate` calls it."""

    def client_update(
        self, model: nn.Module, client: Client, config: RunConfig, draws: torch.Generator
    ) -> Update:
        """Trains `model`, which holds the global state, on a client's data (at least a sample)."""

    def aggregate(self, updates: Iterable[Update]) -> Update:
        """Combines at least one update, each used before the next is asked for."""
