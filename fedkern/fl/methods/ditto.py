"""Ditto: a personal model beside the global one (Li, Hu, Beirami, Smith, arXiv 2012.04221).

The global model is trained as in FedAvg. In the rounds that it takes part in, a client also trains
a model v of its own, whose gradient has lambda (v - w) added, with w the global model it received.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import nn

from ..client import Client
from ..config import RunConfig, setting
from ..errors import ConfigError
from ..losses import Loss
from ..seeding import Draws
from ..state import copied, holding, state_tensors
from ..training import Pull, local_sgd
from .base import Update
from .fedavg import WEIGHTING_HELP, FedAvg

LAMDA_HELP = "how strongly personal models are held near the global one"
PERSONAL = "personal"  # in a client's state: the state of its personal model


@dataclass(frozen=True)
class Ditto(FedAvg):
    """FedAvg, and a personal model for each client, held near the global one.

    A client's personal model starts as the first global model that the client receives.

    Attributes:
        lamda: lambda, how strongly.
    """

    weighting: str = setting("samples", WEIGHTING_HELP)
    lamda: float = setting(1.0, LAMDA_HELP)

    personalises: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_lamda(self.lamda)

    def client_update(
        self, model: nn.Module, client: Client, config: RunConfig, draws: Draws
    ) -> Update:
        """Trains the client's personal model, then `model`, which holds the global state."""
        train_personal(model, client, self.loss, self.lamda, config, draws)
        return super().client_update(model, client, config, draws)

    def personal_model(
        self, model: nn.Module, client: Client
    ) -> AbstractContextManager[object] | None:
        """The personal model; the global one for a client that has not taken part yet."""
        if PERSONAL not in client.state:
            return None
        return holding(state_tensors(model), client.state[PERSONAL])


def check_lamda(lamda: float) -> None:
    """Refuses what is not a finite number >= 0."""
    if not (lamda >= 0 and math.isfinite(lamda)):
        raise ConfigError(f"lamda: wanted a finite number >= 0, got {lamda}")


def train_personal(
    model: nn.Module, client: Client, loss: Loss, lamda: float, config: RunConfig, draws: Draws
) -> None:
    """A round of a client's personal model; `model` holds the global state, before and after."""
    tensors = state_tensors(model)
    pull = Pull(lamda, copied(list(model.parameters())))
    with holding(tensors, client.state.get(PERSONAL, tensors)):
        own_draws = replace(draws, work="personal")
        local_sgd(model, client, loss.for_client(client), config, own_draws, pull=pull)
        client.state[PERSONAL] = copied(tensors)
