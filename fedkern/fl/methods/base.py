"""What a method is to the loop."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn

from ..client import Client
from ..flat import FlatModel, State
from ..training import LocalWork


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


AskAll = Callable[[LocalWork], Iterator[tuple[Client, State]]]


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

    def begin_round(self, number: int, model: FlatModel, ask_all: AskAll) -> None:
        """What comes before a round's training; `model` holds the global state.

        ``ask_all(work)`` lets every client with data train a throw-away copy of the global model
        and yields the clients with the states they end in, each valid until the next one; `model`
        may hold anything meanwhile, and the global state again at the end.
        """

    def local_work(self, client: Client) -> Sequence[LocalWork]:
        """What a client (with at least a sample) trains in a round, the server's share last.

        As much for every client, and all but the last are kept by the client (`LocalWork.keeps`).
        """

    def aggregate(self, updates: Iterable[Update]) -> Update:
        """Combines at least one update, each used before the next is asked for."""

    def personal_model(
        self, model: FlatModel, client: Client
    ) -> AbstractContextManager[object] | None:
        """Makes `model`, which holds the global state, the client's own while it is entered.

        None where the client's model is the global one.
        """
