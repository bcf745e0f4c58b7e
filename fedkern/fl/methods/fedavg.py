"""Federated averaging: McMahan et al., arXiv 1602.05629, Algorithm 1."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..client import Client
from ..config import RunConfig, setting
from ..errors import unknown_name
from ..losses import CrossEntropy, Loss
from ..seeding import Draws
from ..state import state_tensors
from ..training import local_sgd
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

    def begin_round(self, number: int, model: nn.Module, ask_all: AskAll) -> None:
        """All rounds are alike."""

    def client_update(
        self, model: nn.Module, client: Client, config: RunConfig, draws: Draws
    ) -> Update:
        """Trains `model`, which holds the global state, on the client's data."""
        train_loss = local_sgd(model, client, self.loss.for_client(client), config, draws)
        return Update(state_tensors(model), len(client), train_loss)

    def aggregate(self, updates: Iterable[Update]) -> Update:
        """The mean of the clients' models, accumulated in float64 in the order they come.

        Of integers (batch norm's counters) it is the largest.
        """
        total: list[Tensor] = []
        train_loss = torch.zeros(())
        weights = samples = 0
        for update in updates:
            weight = update.num_samples if self.weighting == "samples" else 1
            total = total or [_zeros_like(tensor) for tensor in update.state]
            for summed, tensor in zip(total, update.state, strict=True):
                if tensor.is_floating_point():
                    summed.add_(tensor, alpha=weight)
                else:
                    torch.maximum(summed, tensor, out=summed)
            train_loss = train_loss + update.train_loss * update.num_samples
            weights += weight
            samples += update.num_samples
        mean = [summed / weights if summed.is_floating_point() else summed for summed in total]
        return Update(mean, samples, train_loss / samples)

    def personal_model(
        self, model: nn.Module, client: Client
    ) -> AbstractContextManager[object] | None:
        """Clients have the global model."""
        return None


def _zeros_like(tensor: Tensor) -> Tensor:
    return torch.zeros_like(tensor, dtype=torch.float64 if tensor.is_floating_point() else None)
