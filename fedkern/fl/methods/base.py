"""What a method is to the loop."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn

from ..client import Client
from ..flat import FlatModel, State
from ..ranks import Ranks
from ..server import Server
from ..server_optimizers import ServerOptimizer
from ..training import LocalWork, Question


@dataclass(frozen=True)
class Update:
    """A client's reply to the server, or the aggregate of several.

    Attributes:
        state: the model's parameters and buffers. A client's are the live ones, valid until the
            next update is asked for.
        num_samples: how many samples it was trained on.
        train_loss: plain cross entropy of the training batches, mean over samples, scalar tensor.
    """

    state: State
    num_samples: int
    train_loss: Tensor


class Shared(Protocol):
    """A round's training, shared out among ranks.

    Attributes:
        clients: how many there are, over all ranks.
        ranks: among which they are shared out.
    """

    clients: int
    ranks: Ranks

    def sum(self, tensors: Sequence[Tensor]) -> None:
        """Ends the training: puts their sums over all ranks in the place of tensors.

        Raises:
            RunError: there are too few updates.
        """


class Method(Protocol):
    """A federated-learning method, as `fedkern.fl.simulate` calls it.

    It holds options only. What lasts from round to round is in the model, in `Client.state`,
    `Client.models` and `Server.state`.
    """

    paper: ClassVar[str]
    """Where it comes from."""

    keeps: ClassVar[str]
    """What lasts from round to round beside the global model, in words."""

    faults: ClassVar[Mapping[str, str]]
    """What the option `compat` may be, and the faults of published code that it brings back."""

    personalises: ClassVar[bool]
    """Whether clients have models of their own to evaluate."""

    has_global_model: ClassVar[bool]
    """Whether there is a global model to evaluate."""

    @property
    def softmax_twice(self) -> bool:
        """Whether the error asymmetry is to have a fault of published code (`measure`)."""

    @property
    def needs_serial_engine(self) -> bool:
        """Whether clients train with faults of published code that no other engine has."""

    @property
    def server_optimizer(self) -> ServerOptimizer:
        """What the server makes of a round's aggregate."""

    @property
    def question(self) -> Question | None:
        """What `begin_round` asks all clients (`Server.ask_all`), if anything in any round."""

    @property
    def marks(self) -> dict[str, int]:
        """Rounds in which something changes, by name; plots mark them."""

    def prepare(self, model: nn.Module, draws: torch.Generator) -> None:
        """Makes the initial model the method's, in place, or refuses it."""

    def check_clients(self, model: nn.Module, with_data: int) -> None:
        """Refuses too few clients with data for the model that it has prepared."""

    def private(self, model: FlatModel) -> Tensor | None:
        """Which of the model's values each client has of its own, positions int64 [Q].

        Clients train theirs with the rest and keep them; the server never sees them. At first they
        are the initial model's.
        """

    def begin_round(self, server: Server) -> None:
        """What comes before a round's training; the server's model holds the global state."""

    def local_work(self, client: Client) -> Sequence[LocalWork]:
        """What a client (with at least a sample) trains in a round, the server's share last.

        As much for every client, and all but the last are kept by the client (`LocalWork.keeps`).
        """

    def aggregate(self, updates: Iterable[Update], before: State, training: Shared) -> Update:
        """Combines the updates of all ranks, each used before the next is asked for.

        Args:
            updates: those that this rank trains; all are asked for, and then `Shared.sum`.
            before: the global state that they started from.
            training: what the updates are of.
        """

    def end_round(self, server: Server) -> None:
        """What comes after it; the server's model holds the new global state."""

    def global_model(self, server: Server) -> AbstractContextManager[object]:
        """While it is entered, the server's model is what is evaluated as the global one."""

    def personal_model(
        self, model: FlatModel, client: Client
    ) -> AbstractContextManager[object] | None:
        """Makes `model` the client's own while it is entered.

        It holds the global state with the client's private values, if it has some. None where that
        is the client's model.
        """
