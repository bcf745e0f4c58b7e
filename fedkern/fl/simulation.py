"""The federated loop: sample clients, train locally, aggregate, evaluate.

It names no method: a method says what a client trains and how the server combines the updates
(`fedkern.fl.methods`). Progress bars and files live with the caller, who iterates over the rounds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from time import perf_counter

import torch
from torch import Tensor, nn

from .client import Client
from .config import RunConfig
from .errors import NonFiniteModelError
from .evaluation import Evaluation, LocalEvaluation, measure, measure_local, predict
from .methods import Method, Update
from .methods.base import ClientTask
from .seeding import Draws, generator
from .state import copied, holding, load, state_tensors

BUFFERS = "buffers"  # in a client's state, where clients keep theirs: the model's buffers


@dataclass(frozen=True)
class Round:
    """What is reported of one round; evaluations are None where they are not due.

    Attributes:
        number: counted from 1.
        seconds: wall-clock time of sampling, training and aggregation, without evaluation.
        train_loss: plain cross entropy of the round's training batches, mean over samples; nan if
            no sampled client holds data.
        evaluation: of the global model on the global test data.
        global_on_local: of the global model on the clients' local test data; None where they have
            none.
        personal_on_local: of each client's own model on its local test data; None where clients
            have no models of their own, too.
    """

    number: int
    seconds: float
    train_loss: float
    evaluation: Evaluation | None = None
    global_on_local: LocalEvaluation | None = None
    personal_on_local: LocalEvaluation | None = None


def simulate(
    method: Method, model: nn.Module, clients: Sequence[Client], config: RunConfig
) -> Iterator[Round]:
    """Runs federated learning and yields each round as it ends.

    The same arguments and number of threads give the same bits. To compare methods, pass each the
    same data, config and initial model: then each sees the same clients and batches.

    Args:
        method: trains clients and aggregates their updates.
        model: the initial global model, on the device of the clients' data set. It is made the
            method's and trained in place: at every yield it holds the global model.
        clients: at least one, new ones for every run: their states are filled as it goes.
        config: rounds, clients_per_round, eval_every, seed, and the settings of `local_sgd`.

    Raises:
        ConfigError: the method cannot work with the model or the clients; before the first round.
        NonFiniteModelError: an aggregated model has nan or infinite entries.
        RunError: what else a method cannot go on with.
    """
    method.prepare(model, clients, generator(config.seed, "method"))
    for number in range(1, config.rounds + 1):
        started = perf_counter()
        train_loss = math.nan
        method.begin_round(number, model, partial(ask_all, model, clients, config, number))
        sampled = sample_clients(len(clients), config, number)
        active = [clients[k] for k in sampled if len(clients[k]) > 0]  # the others have weight 0
        if active:
            aggregate = method.aggregate(_updates(method, model, active, config, number))
            load(state_tensors(model), aggregate.state)
            train_loss = aggregate.train_loss.item()
        seconds = perf_counter() - started

        _check_finite(model, number, train_loss)
        if number % config.eval_every == 0 or number == config.rounds:
            yield Round(number, seconds, train_loss, *_evaluate(method, model, clients, config))
        else:
            yield Round(number, seconds, train_loss)


def sample_clients(clients: int, config: RunConfig, number: int) -> list[int]:
    """The clients of round `number`: clients_per_round of them, uniformly without replacement."""
    draws = generator(config.seed, "clients", number)
    return torch.randperm(clients, generator=draws)[: config.clients_per_round].tolist()


def _updates(
    method: Method, model: nn.Module, active: list[Client], config: RunConfig, number: int
) -> Iterator[Update]:
    """Trains the active clients one after the other, each from the global state, in one model."""
    tensors, buffers = state_tensors(model), list(model.buffers())
    global_state = copied(tensors)
    for client in active:
        load(tensors, global_state)
        if BUFFERS in client.state:
            load(buffers, client.state[BUFFERS])
        yield method.client_update(model, client, config, Draws(config.seed, number, client.number))
        if config.buffers == "local":
            client.state[BUFFERS] = copied(buffers)


def ask_all(
    model: nn.Module,
    clients: Sequence[Client],
    config: RunConfig,
    number: int,
    task: ClientTask,
) -> Iterator[tuple[Client, Tensor]]:
    """What every client with data replies to a task; the model holds the global state after it."""
    tensors = state_tensors(model)
    global_state = copied(tensors)
    for client in clients:
        if len(client) > 0:
            draws = Draws(config.seed, number, client.number, work="statistics")
            reply = task(model, client, config, draws)
            load(tensors, global_state)
            yield client, reply


def _evaluate(
    method: Method, model: nn.Module, clients: Sequence[Client], config: RunConfig
) -> tuple[Evaluation, LocalEvaluation | None, LocalEvaluation | None]:
    """The global model on the global test data; it and the clients' own on their local ones."""
    dataset = clients[0].dataset
    x, y, num_classes = dataset.x_test, dataset.y_test, dataset.num_classes
    logits = predict(model, x)
    evaluation = measure(logits, y, num_classes)
    if not any(len(client.test_indices) for client in clients):
        return evaluation, None, None
    targets = [y[client.test_indices] for client in clients]
    of_global = [logits[client.test_indices.to(logits.device)] for client in clients]
    global_on_local = measure_local(of_global, targets, num_classes)

    own_buffers = config.buffers == "local" and any(True for _ in model.buffers())
    if not (method.personalises or own_buffers):
        return evaluation, global_on_local, None
    of_clients = [
        _personal_logits(method, model, client, shared)
        for client, shared in zip(clients, of_global, strict=True)
    ]
    return evaluation, global_on_local, measure_local(of_clients, targets, num_classes, "personal")


def _personal_logits(method: Method, model: nn.Module, client: Client, shared: Tensor) -> Tensor:
    """The client's own model on its local test data; `shared` are the global model's logits."""
    buffers, personal = client.state.get(BUFFERS), method.personal_model(model, client)
    if len(shared) == 0 or (buffers is None and personal is None):
        return shared
    with ExitStack() as own:
        if buffers is not None:
            own.enter_context(holding(list(model.buffers()), buffers))
        if personal is not None:
            own.enter_context(personal)
        return predict(model, client.dataset.x_test, client.test_indices)


def _check_finite(model: nn.Module, number: int, train_loss: float) -> None:
    if not torch.stack([tensor.isfinite().all() for tensor in state_tensors(model)]).all():
        raise NonFiniteModelError(
            f"round {number}: wanted a finite global model, got nan or infinity after aggregation "
            f"(training loss {train_loss:.4g}); a lower lr or clip may help"
        )
