"""The federated loop: sample clients, train locally, aggregate, evaluate.

It names no method: a method says what a client trains and how the server combines the updates
(`fedkern.fl.methods`). Progress bars and files live with the caller, who iterates over the rounds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from time import perf_counter

import torch
from torch import Tensor, nn

from .config import RunConfig
from .data import Dataset
from .errors import NonFiniteModelError
from .evaluation import Evaluation, evaluate
from .methods import Method, Update
from .partition import Partition
from .seeding import generator
from .training import Client


@dataclass(frozen=True)
class Round:
    """What is reported of one round.

    Attributes:
        number: counted from 1.
        seconds: wall-clock time of sampling, training and aggregation, without evaluation.
        train_loss: plain cross entropy of the round's training batches, mean over samples; nan if
            no sampled client holds data.
        evaluation: of the global model on the test data, or None if not due in this round.
    """

    number: int
    seconds: float
    train_loss: float
    evaluation: Evaluation | None


def simulate(
    method: Method, model: nn.Module, dataset: Dataset, partition: Partition, config: RunConfig
) -> Iterator[Round]:
    """Runs federated learning and yields each round as it ends.

    The same arguments and number of threads give the same bits. To compare methods, pass each the
    same partition, config and initial model: then each sees the same clients and batches.

    Args:
        method: trains clients and aggregates their updates.
        model: the initial global model, on the device of `dataset`. It is trained in place: at
            every yield it holds the global model, in between the clients'.
        dataset: tensors on the device to train on.
        partition: the samples of each client.
        config: rounds, clients_per_round, eval_every, seed, and the settings of `local_sgd`.

    Raises:
        NonFiniteModelError: an aggregated model has nan or infinite entries.
    """
    x, y, num_classes = dataset.x_train, dataset.y_train, dataset.num_classes
    clients = [Client(x, y, index.to(y.device), num_classes) for index in partition.indices]
    for number in range(1, config.rounds + 1):
        started = perf_counter()
        train_loss = math.nan
        sampled = sample_clients(len(clients), config, number)
        active = [k for k in sampled if len(clients[k]) > 0]  # the others have weight 0
        if active:
            updates = _client_updates(method, model, clients, active, config, number)
            aggregate = method.aggregate(updates)
            _load_state(model, aggregate.state)
            train_loss = aggregate.train_loss.item()
        seconds = perf_counter() - started

        _check_finite(model, number, train_loss)
        evaluation = None
        if number % config.eval_every == 0 or number == config.rounds:
            evaluation = evaluate(model, dataset.x_test, dataset.y_test, num_classes)
        yield Round(number, seconds, train_loss, evaluation)


def sample_clients(clients: int, config: RunConfig, number: int) -> list[int]:
    """The clients of round `number`: clients_per_round of them, uniformly without replacement."""
    draws = generator(config.seed, "clients", number)
    return torch.randperm(clients, generator=draws)[: config.clients_per_round].tolist()


def _client_updates(
    method: Method,
    model: nn.Module,
    clients: list[Client],
    active: list[int],
    config: RunConfig,
    number: int,
) -> Iterator[Update]:
    """Trains the active clients one after the other, each from the global state, in one model."""
    global_state = [tensor.clone() for tensor in model.state_dict().values()]
    for k in active:
        _load_state(model, global_state)
        draws = generator(config.seed, "batches", number, k)
        yield method.client_update(model, clients[k], config, draws)


@torch.no_grad()
def _load_state(model: nn.Module, state: list[Tensor]) -> None:
    for own, tensor in zip(model.state_dict().values(), state, strict=True):
        own.copy_(tensor)


def _check_finite(model: nn.Module, number: int, train_loss: float) -> None:
    state = model.state_dict().values()
    if not torch.stack([tensor.isfinite().all() for tensor in state]).all():
        raise NonFiniteModelError(
            f"round {number}: wanted a finite global model, got nan or infinity after aggregation "
            f"(training loss {train_loss:.4g}); a lower lr or clip may help"
        )
