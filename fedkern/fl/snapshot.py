"""All that a run goes on from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from . import linear
from .client import Client
from .errors import ConfigError
from .flat import State
from .ranks import Ranks
from .rounds import Round
from .server import Server


@dataclass(frozen=True)
class Snapshot:
    """A run after a round: what it needs to go on to the same bits, and what it has reported.

    The clients' models are in their `ModelStore`.

    Attributes:
        rounds: all so far.
        model: the global model's trained parameters and its buffers by name.
        server: `Server.state`.
        clients: `Client.state` by number, of the clients that have one.
        engine: `Engine.facts`.
        products: who computes which linear layers' products (`fedkern.fl.linear.chosen`).
    """

    rounds: tuple[Round, ...]
    model: dict[str, Tensor]
    server: dict[str, Any]
    clients: dict[int, dict[str, Any]]
    engine: dict[str, Any]
    products: dict[linear.Shape, str]

    @classmethod
    def of(cls, server: Server, rounds: Sequence[Round], facts: dict[str, Any]) -> Snapshot:
        """Of a run in which these were the rounds, and these its engine's facts."""
        return cls(
            (*rounds,),
            server.model.named(server.model.state.copy()),
            dict(server.state),
            {client.number: dict(client.state) for client in server.clients if client.state},
            dict(facts),
            linear.chosen(),
        )

    def restore(self, server: Server) -> None:
        """Brings a run that has not begun to this state.

        Raises:
            ConfigError: it is another model's, or has other clients.
        """
        server.model.load(server.model.from_named(self.model))
        server.state.update(self.server)
        if not {*range(len(server.clients))} >= self.clients.keys():
            raise ConfigError(f"clients: wanted those of {len(server.clients)}, got others")
        for number, state in self.clients.items():
            server.clients[number].state.update(state)


def shared_start(
    start: Snapshot | None, clients: Sequence[Client], ranks: Ranks
) -> Snapshot | None:
    """The first rank's start, with what its clients have of models, on all ranks."""
    if ranks.size == 1:
        return start
    start = ranks.send_object(start)
    if start is None:
        return None
    models = [(client.number, name) for client in clients for name in client.models]
    for number, name in ranks.send_object(models):
        own = clients[number].models
        state = ranks.send_object(own[name] if ranks.rank == 0 else None)
        if ranks.rank > 0 and state is not None:
            own[name] = _here(state)
    return replace(start, server=_here(start.server), clients=_here(start.clients))


def _here(thing: Any) -> Any:
    """The same with its tensors on this rank's GPU, if they are on one."""
    if isinstance(thing, Tensor):
        return thing.cuda() if thing.is_cuda else thing
    if isinstance(thing, dict):
        return {key: _here(part) for key, part in thing.items()}
    if isinstance(thing, State):
        return State(_here(thing.values), [*map(_here, thing.buffers)])
    return thing
