"""What a method is to the loop."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn

from ..client import Client
from ..config import RunConfig
from ..seeding import Draws


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


ClientTask = Callable[[nn.Module, Client, RunConfig, Draws], Tensor]
AskAll = Callable[[ClientTask], Iterator[tuple[Client, Tensor]]]


class Method(Protocol):
    """A federated-learning method, as `fedkern.fl.simulate` calls it.

    It holds options only. What lasts from round to round is in the model and in `Client.state`.
    """

    personalises: ClassVar[bool]
    """Whether clients have models of their own to evaluate."""

    @property
    def marks(self) -> dict[str, int]:
        """Rounds in which something changes, by name; plots mark them."""

    def prepare(self, model: nn.Module, clients: Sequence[Client], draws: torch.Generator) -> None:
        """Makes the initial model the method's, in place; checks that it suits the clients."""

    def begin_round(self, number: int, model: nn.Module, ask_all: AskAll) -> None:
        """What comes before a round's training; `model` holds the global state.

        ``ask_all(task)`` lets every client with data work on a throw-away copy of the global model
        and yields the clients with what ``task(model, client, config, draws)`` returns.
        """

    def client_update(
        self, model: nn.Module, client: Client, config: RunConfig, draws: Draws
    ) -> Update:
        """Trains `model`, which holds the global state, on a client's data (at least a sample)."""

    def aggregate(self, updates: Iterable[Update]) -> Update:
        """Combines at least one update, each used before the next is asked for."""

    def personal_model(
        self, model: nn.Module, client: Client
    ) -> AbstractContextManager[object] | None:
        """Makes `model`, which holds the global state, the client's own while it is entered.

        None where the client's model is the global one.
        """
