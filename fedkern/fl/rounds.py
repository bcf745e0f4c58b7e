"""The server's part of a round, wherever the clients are: who takes part, and what comes of it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from .config import RunConfig
from .errors import NonFiniteModelError, RunError
from .evaluation import Evaluation, LocalEvaluation
from .failures import NO_DATA, Failure
from .flat import FlatModel, State, all_finite
from .methods import Method, Shared, Update
from .seeding import generator
from .server import Server


@dataclass(frozen=True)
class Round:
    """What is reported of one round; evaluations are None where they are not due.

    Attributes:
        number: counted from 1.
        seconds: wall-clock time of sampling, training and aggregation, without evaluation.
        train_loss: plain cross entropy of the round's training batches, mean over samples; nan if
            no sampled client holds data.
        evaluation: of the global model on the global test data; None where the method has no
            global model, too.
        global_on_local: of the global model on the clients' local test data; None where they have
            none, too.
        personal_on_local: of each client's own model on its local test data; None where clients
            have no models of their own, too.
        engine: what trained the clients, and what was chosen: `Engine.facts`.
        clients: how many took part: whose models were aggregated.
        failed: how many were sampled, but left out.
        failures: of these, and of clients that the method asked for something else; one a client.
    """

    number: int
    seconds: float
    train_loss: float
    evaluation: Evaluation | None = None
    global_on_local: LocalEvaluation | None = None
    personal_on_local: LocalEvaluation | None = None
    engine: dict[str, Any] = field(default_factory=dict)
    clients: int = 0
    failed: int = 0
    failures: list[Failure] = field(default_factory=list)


class Training(Shared, Protocol):
    """A round's training.

    Attributes:
        before: the global state that clients start from; it stays as it is while they train.
    """

    before: State

    def updates(self) -> Iterator[Update]:
        """The clients' models, each used before the next is asked for."""


class NobodyLeftError(Exception):
    """All clients of a round have failed, and the settings let it pass."""


def sample_clients(clients: int, config: RunConfig, number: int) -> list[int]:
    """The clients of round `number`: clients_per_round of them, uniformly without replacement."""
    return order_of_clients(clients, config, number)[: config.clients_per_round]


def order_of_clients(clients: int, config: RunConfig, number: int) -> list[int]:
    """All clients in the order in which they are taken for round `number`."""
    draws = generator(config.seed, "clients", number)
    return torch.randperm(clients, generator=draws).tolist()


def check_enough(server: Server, failures: Mapping[int, Failure], config: RunConfig) -> None:
    """Refuses a round with too few clients; if one is enough, nobody need have data.

    Raises:
        RunError: fewer than config.min_clients are active.
    """
    found = sorted(failures.values(), key=lambda failure: failure.cause == NO_DATA)
    only_without_data = bool(found) and found[0].cause == NO_DATA
    if len(server.active) >= config.min_clients or (config.min_clients == 1 and only_without_data):
        return
    raise RunError(
        f"round {server.number}: wanted at least min_clients = {config.min_clients} clients that "
        + "; ".join([f"do not fail, got {len(server.active)}", *map(str, found[:1])])
    )


def leave_out(server: Server, failures: Mapping[int, Failure], config: RunConfig) -> None:
    """Goes on without clients whose training has failed.

    Args:
        server: in whose notes they come.
        failures: by the clients' numbers.
        config: the settings.

    Raises:
        RunError: there are too few others.
        NobodyLeftError: there are none, and that may be.
    """
    for failure in failures.values():
        server.note(failure)
    server.active = [client for client in server.active if client.number not in failures]
    check_enough(server, failures, config)
    if not server.active:
        raise NobodyLeftError


def aggregate(method: Method, server: Server, training: Training) -> float:
    """Makes of the clients' models the global one, which the server's model then holds.

    Returns:
        The training loss; nan if nobody is left.
    """
    before, after, train_loss = training.before, training.before, math.nan
    with suppress(NobodyLeftError):
        combined = method.aggregate(training.updates(), before, training)
        after = method.server_optimizer.step(before, combined.state, server.state)
        train_loss = combined.train_loss.item()
    if server.private is not None:  # to the bit
        kept = before.values[server.private]
        after.values[server.private] = kept.to(after.values.dtype)
    server.model.load(after)
    return train_loss


def check_finite(model: FlatModel, number: int, train_loss: float) -> None:
    """Refuses to go on with what no client can mend.

    Raises:
        NonFiniteModelError: the model holds nan or infinity.
    """
    if not all_finite(model.values, *model.buffers):
        raise NonFiniteModelError(
            f"round {number}: wanted a finite global model, got nan or infinity after aggregation "
            f"(training loss {train_loss:.4g}); a lower lr or clip may help"
        )
