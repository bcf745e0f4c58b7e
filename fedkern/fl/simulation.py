"""The federated loop: sample clients, train locally, aggregate, evaluate.

It names no method: a method says what a client trains and how the server combines the updates
(`fedkern.fl.methods`). Progress bars and files live with the caller, who iterates over the rounds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from time import perf_counter

import torch
from torch import Tensor, nn

from .client import Client
from .config import RunConfig
from .engine import make_engine
from .errors import ConfigError
from .evaluation import Evaluation, LocalEvaluation, measure, measure_local, predict
from .failures import Failure
from .linear import choose_as
from .methods import Method, Update
from .own_models import have_own_models, kept_of, personal_logits, start_of
from .ranks import Ranks
from .rounds import Round, aggregate, check_enough, check_finite, leave_out, sample_clients
from .seeding import generator
from .server import SimulatedServer
from .snapshot import Snapshot
from .workers import num_workers

Evaluations = tuple[Evaluation | None, LocalEvaluation | None, LocalEvaluation | None]


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
    method.prepare(model, generator(config.seed, "method"))
    method.check_clients(model, sum(len(client) > 0 for client in clients))
    rounds = [] if start is None else [*start.rounds]
    if start is not None:
        choose_as(start.products)
    engine = make_engine(model, clients[0].dataset, config, start.engine if start else None)
    server = SimulatedServer(engine, clients, config, ranks or Ranks())
    server.private = method.private(engine.model)
    if start is not None:
        start.restore(server)
    for number in range(len(rounds) + 1, config.rounds + 1):
        started = perf_counter()
        train_loss = math.nan
        sampled = [clients[k] for k in sample_clients(len(clients), config, number)]
        server.number, server.failures = number, {}
        server.active = server.reach(sampled)
        check_enough(server, server.failures, config)
        method.begin_round(server)
        if server.active:
            train_loss = aggregate(method, server, _Training(method, server, config))
        check_finite(server.model, number, train_loss)
        method.end_round(server)
        seconds = perf_counter() - started

        evaluations: Evaluations = (None, None, None)
        if config.evaluates_after(number) and server.ranks.rank == 0:
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
            keep(Snapshot.of(server, rounds, engine.facts))
        yield round


def check_engine(method: Method, config: RunConfig) -> None:
    """Refuses an engine that cannot do a method's work."""
    if method.needs_serial_engine and config.engine != "serial":
        raise ConfigError(
            f"engine: wanted serial for published faults in training, got {config.engine}"
        )


class _Training:
    """A round's training of the active clients: see `fedkern.fl.rounds.Training`.

    What they keep is put among their models, on all ranks. In the end those that have failed are no
    longer active.
    """

    def __init__(self, method: Method, server: SimulatedServer, config: RunConfig) -> None:
        self.clients, self.ranks = len(server.active), server.ranks
        self.before = server.model.state.copy()
        self._server, self._config = server, config
        self._works = [*zip(*map(method.local_work, server.active), strict=True)]
        # Of each kind of work, which clients have done it.
        self._done = torch.zeros(len(self._works), self.clients, dtype=torch.float64)
        self._failures: dict[int, Failure] = {}

    def updates(self) -> Iterator[Update]:
        """Trains this rank's share of the clients."""
        server, before = self._server, self.before
        places = [
            (kind, place)
            for kind in range(len(self._works))
            for place in self.ranks.share(range(self.clients))
        ]
        jobs = []
        for kind, place in places:
            client, work = server.active[place], self._works[kind][place]
            start = start_of(client, work, before, server.private)
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
            client.models.update(kept_of(job.work, state, self._config.buffers, server.private))
            if job.work.keeps is not None:
                continue
            if server.private is not None:  # the server sees what it has sent
                state.values[server.private] = before.values[server.private]
            yield Update(state, len(client), trained.train_loss)

    def sum(self, tensors: Sequence[Tensor]) -> None:
        """See `Shared`."""
        server = self._server
        self.ranks.sum([*tensors, self._done])
        failures: dict[int, Failure] = {}
        if not self._done.all():
            found = {f.client: f for f in self.ranks.collect([*self._failures.values()])}
            failures = {c.number: found[c.number] for c in server.active if c.number in found}
        self._send_models()
        leave_out(server, failures, self._config)

    def _send_models(self) -> None:
        """Gives all ranks what clients keep of the models that they have trained."""
        if self.ranks.size == 1:
            return
        server, buffers = self._server, self._config.buffers
        for kind, works in enumerate(self._works):
            shapes = kept_of(works[0], self.before, buffers, server.private)
            for place, client in enumerate(server.active):
                for name, shaped in shapes.items() if self._done[kind, place] else ():
                    owner = place % self.ranks.size
                    own = owner == self.ranks.rank
                    sent = self.ranks.send(client.models[name] if own else shaped, owner)
                    if not own:
                        client.models[name] = sent


def _evaluate(method: Method, server: SimulatedServer, config: RunConfig) -> Evaluations:
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

    if not have_own_models(method, model, config.buffers):
        return evaluation, global_on_local, None
    of_clients = [
        personal_logits(method, model, client, shared, server.private)
        for client, shared in zip(clients, of_global, strict=True)
    ]
    return evaluation, global_on_local, measure_local(of_clients, targets, num_classes, "personal")
