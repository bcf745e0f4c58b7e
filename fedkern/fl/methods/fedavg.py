"""Federated averaging: McMahan et al., arXiv 1602.05629, Algorithm 1."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import RunConfig, setting
from ..errors import unknown_name
from ..training import Client, LossFunction, local_sgd
from .base import Update

WEIGHTINGS = ("uniform", "samples")


@dataclass(frozen=True)
class FedAvg:
    """Local SGD on the cross entropy; the server averages the clients' models.

    Attributes:
        weighting: ``"uniform"`` (as in FedGA's experiments) or ``"samples"`` (as in the paper).
    """

    weighting: str = setting("uniform", "of the clients' models in the mean: uniform or samples")

    def __post_init__(self) -> None:
        if self.weighting not in WEIGHTINGS:
            raise unknown_name("weighting", self.weighting, WEIGHTINGS)

    def loss(self, client: Client) -> LossFunction:
        """What the client's SGD minimises."""
        return F.cross_entropy

    def client_update(
        self, model: nn.Module, client: Client, config: RunConfig, draws: torch.Generator
    ) -> Update:
        """Trains `model`, which holds the global state, on the client's data."""
        train_loss = local_sgd(model, client, self.loss(client), config, draws)
        return Update(list(model.state_dict().values()), len(client), train_loss)

    def aggregate(self, updates: Iterable[Update]) -> Update:
        """The mean of the clients' models, accumulated in float64 in the order they come."""
        total: list[Tensor] = []
        train_loss = torch.zeros(())
        weights = samples = 0
        for update in updates:
            weight = update.num_samples if self.weighting == "samples" else 1
            total = total or [torch.zeros_like(t, dtype=torch.float64) for t in update.state]
            for summed, tensor in zip(total, update.state, strict=True):
                summed.add_(tensor, alpha=weight)
            train_loss = train_loss + update.train_loss * update.num_samples
            weights += weight
            samples += update.num_samples
        return Update([summed / weights for summed in total], samples, train_loss / samples)
