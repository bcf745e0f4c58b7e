"""CLIMB: clients with a large loss weigh more (Shen et al., "An agnostic approach to federated
learning with class imbalance", ICLR 2022).

The clients' losses f_k under the global model are constrained to lie no more than eps above their
mean. With a dual variable lambda_k for each client, at first 0,

    client k minimises    (1 + lambda_k - mean(lambda)) times its loss
    after a round         lambda_k <- clamp(lambda_k + (eta / K) (f_k - mean(f) - eps), 0, 100)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import ClassVar

import torch
from torch import Tensor

from ..client import Client
from ..config import setting
from ..errors import check_not_negative, unknown_name
from ..losses import Loss
from ..server import Server
from ..training import LocalWork
from .fedavg import FAULTS_OF_FEDGA, FedAvg

DUAL, WEIGHT = "dual", "weight"  # in a client's state: lambda_k, and the weight of its loss
LARGEST = 100.0  # dual variable
DUAL_CLIENTS = ("all", "active")


@dataclass(frozen=True)
class Weighted(Loss):
    """A loss times a constant of the client, which comes last."""

    loss: Loss

    def constants(self, client: Client) -> tuple[Tensor, ...]:
        """The loss's own."""
        return self.loss.constants(client)

    def __call__(self, logits: Tensor, targets: Tensor, *constants: Tensor) -> Tensor:
        """The product."""
        loss = self.loss(logits, targets, *constants[:-1])
        return loss * constants[-1].to(loss.dtype)

    def gradient(self, logits: Tensor, targets: Tensor, *constants: Tensor) -> Tensor:
        """The gradient for the logits."""
        gradient = self.loss.gradient(logits, targets, *constants[:-1])
        return gradient * constants[-1].to(gradient.dtype)


@dataclass(frozen=True)
class Climb(FedAvg):
    """FedAvg with a weight for each client's loss, learnt from its loss.

    Attributes:
        dual_lr: eta, the learning rate of the dual variables; with 0 it is FedAvg. FedGA's
            experiments took 0.1 to 2.
        tolerance: eps. FedGA's experiments took 0.001 to 0.1.
        dual_clients: whose losses are taken after a round: of ``"all"`` clients with data (as
            published: one more pass over all data a round) or of the ``"active"`` ones.
    """

    dual_lr: float = setting(2.0, "climb: learning rate of the clients' weights")
    tolerance: float = setting(0.01, "climb: how far above the mean a client's loss may be")
    dual_clients: str = setting("all", "climb: whose losses are taken each round, all or active")

    paper: ClassVar[str] = "ICLR 2022, openreview.net/forum?id=Xo0lbDt975"
    keeps: ClassVar[str] = "the server: a dual variable and a weight for each client"
    faults: ClassVar[Mapping[str, str]] = {
        "fedga": f"{FAULTS_OF_FEDGA}; a client's weight is cut off to an integer, so that many "
        "train on nothing"
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        check_not_negative("dual_lr", self.dual_lr)
        check_not_negative("tolerance", self.tolerance)
        if self.dual_clients not in DUAL_CLIENTS:
            raise unknown_name("dual_clients", self.dual_clients, DUAL_CLIENTS)

    def local_work(self, client: Client) -> Sequence[LocalWork]:
        """SGD on the weighted loss."""
        weight = client.indices.new_tensor(client.state.get(WEIGHT, 1.0), dtype=torch.float64)
        loss, works = Weighted(self.loss), super().local_work(client)
        return [replace(work, loss=loss, constants=(weight,)) for work in works]

    def end_round(self, server: Server) -> None:
        """Updates the dual variables of clients whose losses are taken, and all weights."""
        with_data = [client for client in server.clients if len(client) > 0]
        taken = with_data if self.dual_clients == "all" else server.active
        if not taken:
            return
        losses = server.local_losses(taken)
        known = losses.isfinite()  # one client's nan would be everyone's
        if not known.any():
            return
        taken = [taken[k] for k in known.nonzero().flatten().tolist()]
        f = losses[known]
        steps = self.dual_lr / len(taken) * (f - f.mean() - self.tolerance)
        for client, step in zip(taken, steps.tolist(), strict=True):
            client.state[DUAL] = min(max(client.state.get(DUAL, 0.0) + step, 0.0), LARGEST)
        mean = fmean(client.state.get(DUAL, 0.0) for client in server.clients)
        for client in server.clients:
            weight = 1 + client.state.get(DUAL, 0.0) - mean
            client.state[WEIGHT] = float(int(weight)) if self.compat else weight
