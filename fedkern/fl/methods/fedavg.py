"""Federated averaging: McMahan et al., arXiv 1602.05629, Algorithm 1."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..client import Client
from ..config import setting
from ..errors import unknown_name
from ..flat import FlatModel, State
from ..losses import CrossEntropy, Loss
from ..training import LocalWork
from .base import AskAll, Update

WEIGHTINGS = ("uniform", "samples")
WEIGHTING_HELP = "of the clients' models in the mean: uniform or samples (so floco, floco+, ditto)"


@dataclass(frozen=True)
class FedAvg:
    """Local SGD on a loss; the server averages the clients' models.

    Attributes:
        weighting: ``"uniform"`` (as in FedGA's experiments) or ``"samples"`` (as in the paper).
        loss: what the clients' SGD minimises.
    """

    weighting: str = setting("uniform", WEIGHTING_HELP)
    loss: Loss = field(default_factory=CrossEntropy)

    personalises: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.weighting not in WEIGHTINGS:
            raise unknown_name("weighting", self.weighting, WEIGHTINGS)

    @property
    def marks(self) -> dict[str, int]:
        """Rounds in which something changes: none."""
        return {}

    def prepare(self, model: nn.Module, clients: Sequence[Client], draws: torch.Generator) -> None:
        """Any model and clients will do."""

    def begin_round(self, number: int, model: FlatModel, ask_all: AskAll) -> None:
        """All rounds are alike."""

    def local_work(self, client: Client) -> Sequence[LocalWork]:
        """SGD on the loss, from the global model."""
        return [LocalWork(self.loss)]

    def aggregate(self, updates: Iterable[Update]) -> Update:
        """The mean of the clients' models, accumulated in float64 in the order they come.

        Of integers (batch norm's counters) it is the largest.
        """
        total: list[Tensor] = []
        train_loss = torch.zeros(())
        weights = samples = 0
        for update in updates:
            weight = update.num_samples if self.weighting == "samples" else 1
            tensors = [update.state.values, *update.state.buffers]
            total = total or [_zeros_like(tensor) for tensor in tensors]
            for summed, tensor in zip(total, tensors, strict=True):
                if tensor.is_floating_point():
                    summed.add_(tensor.to(summed.dtype), alpha=weight)
                else:
                    torch.maximum(summed, tensor, out=summed)
            train_loss = train_loss + update.train_loss * update.num_samples
            weights += weight
            samples += update.num_samples
        values, *buffers = [t / weights if t.is_floating_point() else t for t in total]
        return Update(State(values, buffers), samples, train_loss / samples)

    def personal_model(
        self, model: FlatModel, client: Client
    ) -> AbstractContextManager[object] | None:
        """Clients have the global model."""
        return None


def _zeros_like(tensor: Tensor) -> Tensor:
    return torch.zeros_like(tensor, dtype=torch.float64 if tensor.is_floating_point() else None)
