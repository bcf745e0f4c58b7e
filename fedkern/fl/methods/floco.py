"""Floco: clients share a simplex of models (Grinwald, Wiesner, Nakajima, arXiv 2403.03333).

The endpoints of chosen layers span a simplex; every training batch draws a point of it. In round
tau each client's gradient gives it a subregion of the simplex. From then on the client trains on
points of its subregion, and its own model is the one at the subregion's centre. The global model is
at the centre of the simplex.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from fedkern.nn import endpoint_parameters, simplexify, subregion
from fedkern.simplex import SampleMethod, assign_subregions

from ..client import Client
from ..config import setting
from ..errors import ConfigError, RunError, check_not_negative
from ..flat import FlatModel, Layout, State
from ..server import Server
from ..training import LocalWork, Question
from .fedavg import WEIGHTING_HELP, FedAvg

CENTER = "center"  # in a client's state: the centre of its subregion, [M]
FAULTS_OF_FLOCO = (
    "points drawn around a subregion's centre leave the simplex and are not uniform; the clients' "
    "statistics have the other sign (local minus global); from round tau on the global model is "
    "evaluated at the centre of one client (the round's last) instead of the simplex"
)


@dataclass(frozen=True)
class Floco(FedAvg):
    """FedAvg over a simplex of models, with a subregion for each client from round tau on.

    A client that had no part in round tau (it had no data, or its gradient was not finite) keeps
    the whole simplex and its centre.

    Attributes:
        endpoints: M, of the model's last layer. A model that has simplex layers already
            (`fedkern.nn.simplexify`) keeps them, and their M.
        tau: the round, counted from 1, at whose start the subregions are assigned.
        rho: radius of the subregions in the L1 norm.
    """

    weighting: str = setting("samples", WEIGHTING_HELP)
    endpoints: int = setting(10, "of the simplex")
    tau: int = setting(250, "round in which clients are assigned subregions")
    rho: float = setting(0.1, "L1 radius of a client's subregion")

    paper: ClassVar[str] = "arXiv 2403.03333"
    keeps: ClassVar[str] = "each client: the centre of its subregion"
    faults: ClassVar[Mapping[str, str]] = {"floco": FAULTS_OF_FLOCO}
    personalises: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("endpoints", "tau"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: wanted an integer >= 1, got {getattr(self, name)}")
        check_not_negative("rho", self.rho)

    @property
    def marks(self) -> dict[str, int]:
        """The round of the assignment."""
        return {"tau": self.tau}

    def prepare(self, model: nn.Module, draws: torch.Generator) -> None:
        """Makes the last layer a simplex, unless the model has one."""
        if not endpoint_parameters(model):
            simplexify(model, num_endpoints=self.endpoints, generator=draws)

    def check_clients(self, model: nn.Module, with_data: int) -> None:
        """Refuses to place clients on a simplex.

        Raises:
            ConfigError: fewer clients with data than the simplex has endpoints, or than two.
        """
        num_endpoints, needed = _num_endpoints_and_clients(model)
        if with_data < needed:
            raise ConfigError(
                f"clients: wanted at least {needed} with data, to place on a simplex of "
                f"{num_endpoints} endpoints, got {with_data}"
            )

    def begin_round(self, server: Server) -> None:
        """In round tau every client with data gets its subregion (section 3 of the paper)."""
        if server.number != self.tau:
            return
        replies = server.ask_all(self.question)
        replies = [reply for reply in replies if reply[1].isfinite().all()]
        num_endpoints, needed = _num_endpoints_and_clients(server.model.module)
        if len(replies) < needed:
            raise RunError(
                f"round {server.number}: wanted gradients of at least {needed} clients to assign "
                f"subregions, got {len(replies)}; a lower lr may help"
            )
        centers = assign_subregions(torch.stack([g for _, g in replies]), num_endpoints)
        for (client, _), center in zip(replies, centers, strict=True):
            client.state[CENTER] = center

    @property
    def question(self) -> Question:
        """A client's statistics, by which it is placed on the simplex."""
        return Question(LocalWork(self.loss, purpose="statistics"), self.pseudo_gradient)

    def pseudo_gradient(
        self, client: Client, layout: Layout, before: Tensor, after: State
    ) -> Tensor:
        """What a round of training changed in the endpoints [M, D], global minus local: [M D]."""
        gradient = (layout.endpoints(before) - layout.endpoints(after.values)).flatten()
        return -gradient if self.compat else gradient

    def local_work(self, client: Client) -> Sequence[LocalWork]:
        """SGD on points of the client's subregion, or of the whole simplex while it has none."""
        center = client.state.get(CENTER)
        sampler: SampleMethod = "published" if self.compat else "exact"
        return [LocalWork(self.loss, center=center, radius=self.rho, sampler=sampler)]

    def global_model(self, server: Server) -> AbstractContextManager[object]:
        """The model at the centre of the simplex."""
        placed = [client for client in server.active if CENTER in client.state]
        if not (self.compat and placed):
            return nullcontext()
        return subregion(server.model.module, placed[-1].state[CENTER])

    def personal_model(
        self, model: FlatModel, client: Client
    ) -> AbstractContextManager[object] | None:
        """The model at the centre of the client's subregion; before round tau the global one."""
        if CENTER not in client.state:
            return None
        return subregion(model.module, client.state[CENTER])


def _num_endpoints_and_clients(model: nn.Module) -> tuple[int, int]:
    """M of the model's simplex, and how many clients an assignment to it takes at least."""
    num_endpoints = len(endpoint_parameters(model)[0])
    return num_endpoints, max(2, num_endpoints)
