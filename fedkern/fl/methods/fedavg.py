"""Federated averaging: McMahan et al., arXiv 1602.05629, Algorithm 1."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..aggregation import Aggregation, Mean
from ..client import Client
from ..config import setting
from ..errors import ConfigError, unknown_name
from ..flat import FlatModel, State
from ..losses import CrossEntropy, Loss
from ..server import Server
from ..server_optimizers import ServerAverage, ServerOptimizer
from ..training import LocalWork, Question
from .base import Shared, Update

WEIGHTINGS = ("uniform", "samples")
WEIGHTING_HELP = (
    "of the clients' models in the mean: uniform or samples (so those with personal models)"
)
COMPAT_HELP = "with the faults of published code, see `fedkern methods`: fedga or floco"
EVAL_MODE = "eval mode"  # in a client's state, with FedGA's faults: whether it trains in that mode
FAULTS_OF_FEDGA = (
    "batch norm and dropout in evaluation mode from the second client of the run on; the error "
    "asymmetry of the softmax of the softmax"
)


@dataclass(frozen=True)
class FedAvg:
    """Local SGD on a loss; the server averages the clients' models.

    Attributes:
        weighting: ``"uniform"`` (as in FedGA's experiments) or ``"samples"`` (as in the paper).
        loss: what the clients' SGD minimises.
        aggregation: how the server combines the clients' models.
        server_optimizer: what the server makes of the mean.
        compat: a name from `faults`, or nothing.
    """

    weighting: str = setting("uniform", WEIGHTING_HELP)
    loss: Loss = field(default_factory=CrossEntropy)
    aggregation: Aggregation = field(default_factory=Mean)
    server_optimizer: ServerOptimizer = field(default_factory=ServerAverage)
    compat: str = setting("", COMPAT_HELP)

    paper: ClassVar[str] = "arXiv 1602.05629"
    keeps: ClassVar[str] = ""
    faults: ClassVar[Mapping[str, str]] = {"fedga": FAULTS_OF_FEDGA}
    personalises: ClassVar[bool] = False
    has_global_model: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.weighting not in WEIGHTINGS:
            raise unknown_name("weighting", self.weighting, WEIGHTINGS)
        if self.compat and self.compat not in self.faults:
            wanted = " or ".join(self.faults) or "none"
            raise ConfigError(
                f"compat: wanted {wanted} for {type(self).__name__}, got {self.compat!r}"
            )

    @property
    def softmax_twice(self) -> bool:
        """With FedGA's faults."""
        return self.compat == "fedga"

    @property
    def needs_serial_engine(self) -> bool:
        """With FedGA's faults."""
        return self.compat == "fedga"

    @property
    def question(self) -> Question | None:
        """Nothing."""
        return None

    @property
    def marks(self) -> dict[str, int]:
        """Rounds in which something changes: none."""
        return {}

    def prepare(self, model: nn.Module, draws: torch.Generator) -> None:
        """Any model will do."""

    def check_clients(self, model: nn.Module, with_data: int) -> None:
        """Any number will do."""

    def private(self, model: FlatModel) -> Tensor | None:
        """Nothing."""
        return None

    def begin_round(self, server: Server) -> None:
        """All rounds are alike, unless published faults are wanted."""
        if self.compat == "fedga":
            for client in server.active:
                client.state[EVAL_MODE] = server.number > 1 or client is not server.active[0]

    def local_work(self, client: Client) -> Sequence[LocalWork]:
        """SGD on the loss, from the global model."""
        return [LocalWork(self.loss, in_eval_mode=client.state.get(EVAL_MODE, False))]

    def aggregate(self, updates: Iterable[Update], before: State, training: Shared) -> Update:
        """What `aggregation` makes of the clients' models."""
        gathered = self.aggregation.gather(before, training.clients, training.ranks)
        train_loss, samples = torch.zeros(()), torch.zeros((), dtype=torch.int64)
        for update in updates:
            weight = update.num_samples if self.weighting == "samples" else 1
            gathered.add(update.state, weight)
            train_loss = train_loss + update.train_loss * update.num_samples
            samples += update.num_samples
        training.sum([*gathered.parts, train_loss, samples])
        return Update(gathered.combined(), int(samples), train_loss / int(samples))

    def end_round(self, server: Server) -> None:
        """Nothing."""

    def global_model(self, server: Server) -> AbstractContextManager[object]:
        """The model as it is."""
        return nullcontext()

    def personal_model(
        self, model: FlatModel, client: Client
    ) -> AbstractContextManager[object] | None:
        """Clients have the global model."""
        return None
