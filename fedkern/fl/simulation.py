"""The federated loop: sample clients, train locally, aggregate, evaluate.

It names no method: a method says what a client trains and how the server combines the updates
(`fedkern.fl.methods`). Progress bars and files live with the caller, who iterates over the rounds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from .client import Client
from .config import RunConfig
from .engine import make_engine
from .errors import ConfigError, NonFiniteModelError, RunError
from .evaluation import Evaluation, LocalEvaluation, measure, measure_local, predict
from .failures import NO_DATA, Failure
from .flat import FlatModel, State
from .linear import choose_as
from .methods import Method, Update
from .ranks import Ranks
from .seeding import generator
from .server import Server
from .snapshot import Snapshot
from .training import LocalWork
from .workers import num_workers

# Of a client's models, where clients keep theirs: the model's buffers (without values), and the
# parameters that the method leaves with the clients (without buffers).
BUFFERS, PRIVATE = "buffers", "private"

Evaluations = tuple[Evaluation | None, LocalEvaluation | None, LocalEvaluation | None]


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


def simulate(
    method: Method,
    model: nn.Module,
    clients: Sequence[Client],
    config: RunConfig,
    *,
    start: Snapshot | None = None,
    keep: Callable[[Snapshot], object] | None = None,
    ranks: Ranks | None = None,
) -> Iterator[Round]:
    """Runs federated learning and yields each round as it ends.

    The same arguments and number of threads give the same bits, whatever the number of workers. (A
    model that draws random numbers in training, as dropout, takes them from torch's generator: seed
    that, and use one worker.) To compare methods, pass each the same data, config and initial
    model: then each sees the same clients and batches.

    A client that fails (`fedkern.fl.failures`) is left out of its round, as if it had not been
    sampled. Of its own models, those that it had trained well before stay.

    Args:
        method: trains clients and aggregates their updates.
        model: the initial global model, on the device of the clients' data set. It is made the
            method's and trained in place: at every yield it holds the global model.
        clients: at least one, new ones for every run: their states are filled as it goes.
        config: rounds, clients_per_round, eval_every, seed, the engine's and training's settings.
        start: a run with the same arguments, to go on with after its last round; the clients'
            models are what they were then (`ModelStore`).
        keep: is called with what the run can go on from, after each round, before it is yielded.
        ranks: of the processes that share the clients, all of which call this with the same other
            arguments but `keep`; only the first one evaluates. By default this one is alone.

    Raises:
        ConfigError: the method cannot work with the model or the clients, or `start` is of other
            ones; before the first round.
        NonFiniteModelError: an aggregated model has nan or infinite entries.
        RunError: fewer than config.min_clients are left in a round (in which, if that is 1, nobody
            need have data: then nothing happens); a rank has ended; or what else a method cannot go
            on with.
    """
    check_engine(method, config)
    method.prepare(model, clients, generator(config.seed, "method"))
    rounds = [] if start is None else [*start.rounds]
    if start is not None:
        choose_as(start.products)
    engine = make_engine(model, clients[0].dataset, config, start.engine if start else None)
    server = Server(engine, clients, config, ranks or Ranks())
    server.private = method.private(engine.model)
    if start is not None:
        start.restore(server)
    for number in range(len(rounds) + 1, config.rounds + 1):
        started = perf_counter()
        train_loss = math.nan
        sampled = [clients[k] for k in sample_clients(len(clients), config, number)]
        server.number, server.failures = number, {}
        server.active = server.reach(sampled)
        _check_enough(server, server.failures, config)
        method.begin_round(server)
        if server.active:
            before = engine.model.state.copy()
            training = _Training(method, server, before, config)
            after = before
            with suppress(_NobodyLeftError):
                aggregate = method.aggregate(training.updates(), before, training)
                after = method.server_optimizer.step(before, aggregate.state, server.state)
                train_loss = aggregate.train_loss.item()
            if server.private is not None:  # to the bit
                kept = before.values[server.private]
                after.values[server.private] = kept.to(after.values.dtype)
            engine.model.load(after)
        _check_finite(engine.model, number, train_loss)
        method.end_round(server)
        seconds = perf_counter() - started

        evaluations: Evaluations = (None, None, None)
        due = number % config.eval_every == 0 or number == config.rounds
        if due and server.ranks.rank == 0:
            evaluations = _evaluate(method, server, config)
        round = Round(
            number,
            seconds,
            train_loss,
            *evaluations,
            engine=engine.facts,
            clients=len(server.active),
            failed=len(sampled) - len(server.active),
            failures=[*server.failures.values()],
        )
        if keep is not None:
            rounds.append(round)
            keep(Snapshot.of(server, engine, rounds))
        yield round


def check_engine(method: Method, config: RunConfig) -> None:
    """Refuses an engine that cannot do a method's work."""
    if method.needs_serial_engine and config.engine != "serial":
        raise ConfigError(
            f"engine: wanted serial for published faults in training, got {config.engine}"
        )


def sample_clients(clients: int, config: RunConfig, number: int) -> list[int]:
    """The clients of round `number`: clients_per_round of them, uniformly without replacement."""
    draws = generator(config.seed, "clients", number)
    return torch.randperm(clients, generator=draws)[: config.clients_per_round].tolist()


class _NobodyLeftError(Exception):
    """All clients of a round have failed, and the settings let it pass."""


class _Training:
    """A round's training of the active clients: see `Shared`.

    What they keep is put among their models, on all ranks. In the end those that have failed are no
    longer active.
    """

    def __init__(self, method: Method, server: Server, before: State, config: RunConfig) -> None:
        self.clients, self.ranks = len(server.active), server.ranks
        self._server, self._before, self._config = server, before, config
        self._works = [*zip(*map(method.local_work, server.active), strict=True)]
        # Of each kind of work, which clients have done it.
        self._done = torch.zeros(len(self._works), self.clients, dtype=torch.float64)
        self._failures: dict[int, Failure] = {}

    def updates(self) -> Iterator[Update]:
        """Trains this rank's share of the clients from the global state."""
        server, before = self._server, self._before
        places = [
            (kind, place)
            for kind in range(len(self._works))
            for place in self.ranks.share(range(self.clients))
        ]
        jobs = []
        for kind, place in places:
            client, work = server.active[place], self._works[kind][place]
            start = _own(server, client, before)
            if work.keeps is not None:
                start = client.models.get(work.keeps, start)
            jobs.append(server.job(client, work, start))
        results = server.train(jobs, before.values)
        for at, job, trained in zip(places, jobs, results, strict=True):
            client = job.client
            if isinstance(trained, Failure):
                self._failures.setdefault(client.number, trained)
                continue
            if client.number in self._failures:  # in another of its jobs
                continue
            self._done[at] = 1
            state = trained.state
            client.models.update(self._kept(job.work, state))
            if job.work.keeps is not None:
                continue
            if server.private is not None:  # the server sees what it has sent
                state.values[server.private] = before.values[server.private]
            yield Update(state, len(client), trained.train_loss)

    def _kept(self, work: LocalWork, state: State) -> dict[str, State]:
        """What a client keeps, by name, of a state that it has trained."""
        if work.keeps is not None:
            return {work.keeps: state}
        kept = {}
        if self._config.buffers == "local":
            kept[BUFFERS] = State(state.values[:0], state.buffers)
        if self._server.private is not None:
            kept[PRIVATE] = State(state.values[self._server.private], [])
        return kept

    def sum(self, tensors: Sequence[Tensor]) -> None:
        """See `Shared`."""
        server = self._server
        self.ranks.sum([*tensors, self._done])
        failures: dict[int, Failure] = {}
        if not self._done.all():
            found = {f.client: f for f in self.ranks.collect([*self._failures.values()])}
            failures = {c.number: found[c.number] for c in server.active if c.number in found}
        self._send_models()
        for failure in failures.values():
            server.note(failure)
        server.active = [client for client in server.active if client.number not in failures]
        _check_enough(server, failures, self._config)
        if not server.active:
            raise _NobodyLeftError

    def _send_models(self) -> None:
        """Gives all ranks what clients keep of the models that they have trained."""
        if self.ranks.size == 1:
            return
        for kind, works in enumerate(self._works):
            shapes = self._kept(works[0], self._before)
            for place, client in enumerate(self._server.active):
                for name, shaped in shapes.items() if self._done[kind, place] else ():
                    owner = place % self.ranks.size
                    own = owner == self.ranks.rank
                    sent = self.ranks.send(client.models[name] if own else shaped, owner)
                    if not own:
                        client.models[name] = sent


def _check_enough(server: Server, failures: Mapping[int, Failure], config: RunConfig) -> None:
    """Refuses a round with too few clients; if one is enough, nobody need have data."""
    found = sorted(failures.values(), key=lambda failure: failure.cause == NO_DATA)
    only_without_data = bool(found) and found[0].cause == NO_DATA
    if len(server.active) >= config.min_clients or (config.min_clients == 1 and only_without_data):
        return
    raise RunError(
        f"round {server.number}: wanted at least min_clients = {config.min_clients} clients that "
        + "; ".join([f"do not fail, got {len(server.active)}", *map(str, found[:1])])
    )


def _own(server: Server, client: Client, shared: State) -> State:
    """The global state, but for the buffers and the parameters that the client has of its own."""
    values, buffers = shared
    if BUFFERS in client.models:
        buffers = client.models[BUFFERS].buffers
    if server.private is not None and PRIVATE in client.models:
        values = values.index_copy(0, server.private, client.models[PRIVATE].values)
    return State(values, buffers)


def _evaluate(method: Method, server: Server, config: RunConfig) -> Evaluations:
    """The global model on the global test data; it and the clients' own on their local ones."""
    model, clients = server.model, server.clients
    dataset = clients[0].dataset
    x, y, num_classes = dataset.x_test, dataset.y_test, dataset.num_classes
    evaluation = global_on_local = None
    with method.global_model(server):
        logits = predict(model.module, x, workers=num_workers(config, x.device))
    if method.has_global_model:
        evaluation = measure(logits, y, num_classes, softmax_twice=method.softmax_twice)
    if not any(len(client.test_indices) for client in clients):
        return evaluation, None, None
    targets = [y[client.test_indices] for client in clients]
    of_global = [logits[client.test_indices.to(logits.device)] for client in clients]
    if method.has_global_model:
        global_on_local = measure_local(of_global, targets, num_classes)

    own_buffers = config.buffers == "local" and bool(model.buffers)
    if not (method.personalises or own_buffers):
        return evaluation, global_on_local, None
    of_clients = [
        _personal_logits(method, server, client, shared)
        for client, shared in zip(clients, of_global, strict=True)
    ]
    return evaluation, global_on_local, measure_local(of_clients, targets, num_classes, "personal")


def _personal_logits(method: Method, server: Server, client: Client, shared: Tensor) -> Tensor:
    """The client's own model on its local test data; `shared` are the global model's logits."""
    model = server.model
    own = _own(server, client, model.state)
    personal = method.personal_model(model, client)
    is_global = own.values is model.values and own.buffers is model.buffers
    if len(shared) == 0 or (is_global and personal is None):
        return shared
    with ExitStack() as stack:
        if not is_global:
            stack.enter_context(model.holding(own))
        if personal is not None:
            stack.enter_context(personal)
        return predict(model.module, client.dataset.x_test, client.test_indices)


def _check_finite(model: FlatModel, number: int, train_loss: float) -> None:
    if not all(tensor.isfinite().all() for tensor in (model.values, *model.buffers)):
        raise NonFiniteModelError(
            f"round {number}: wanted a finite global model, got nan or infinity after aggregation "
            f"(training loss {train_loss:.4g}); a lower lr or clip may help"
        )
