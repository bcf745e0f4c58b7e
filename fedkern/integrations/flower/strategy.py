"""A method as a strategy of Flower's."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from time import perf_counter

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy
from torch import Tensor, nn

from fedkern.fl import rounds
from fedkern.fl.checkpoint import Checkpoints
from fedkern.fl.client import Client
from fedkern.fl.config import RunConfig
from fedkern.fl.errors import ConfigError
from fedkern.fl.evaluation import spread
from fedkern.fl.failures import Failure
from fedkern.fl.flat import FlatModel
from fedkern.fl.methods import Climb, FedRL, Method, Update
from fedkern.fl.ranks import Ranks
from fedkern.fl.rounds import Round
from fedkern.fl.seeding import generator
from fedkern.fl.snapshot import Snapshot

from . import records
from .nodes import NodeServer, in_order, log

FACTS = {"engine": "flower"}  # of a round: what trained the clients
KEPT = "kept by clients"  # in the server's state: names of models, by the clients' numbers


class MethodStrategy(Strategy):
    """A method of fedkern's as a strategy of Flower's, for clients of `register`.

    The same settings, seed and clients give what `fedkern.fl.simulate` gives, to the order of sums:
    a round's clients are sampled by their numbers, whatever nodes they are on, and their batches
    are keyed by them. A client that is not connected, fails, does not reply in time, or sends what
    is no model of the right names, shapes, types and finite numbers, is left out of its round
    (`Round.failures`).

    Args:
        method: of `fedkern.fl.METHODS`, or one of your own that is given to `register`, too. Not
            climb, fedrl, fedper and fedrod: they need more than models and statistics.
        model: the initial global model. It is made the method's and trained in place: after every
            round it holds the global model.
        config: of the settings, `clients` (how many there are at most, numbered from 0),
            `clients_per_round`, `min_clients`, `rounds`, `eval_every`, `seed` and `fail_rate` are
            the server's; those of local training are sent to the clients. The others do not matter.
        min_available_nodes: clients to wait for before the first round; by default all of
            ``config.clients``.
        fraction_evaluate: part of the connected clients with test data that evaluates, in rounds
            in which an evaluation is due.
        checkpoints: where the run is written down, and what it goes on from. Call `resume` before.

    Attributes:
        rounds: what was reported of each (`fedkern.fl.Round`), without evaluations, which are in
            what `start` returns.

    Raises:
        ConfigError: the method cannot work with the model, the settings, or clients elsewhere; the
            checkpoint is another run's.
    """

    def __init__(
        self,
        method: Method,
        model: nn.Module,
        config: RunConfig,
        *,
        min_available_nodes: int | None = None,
        fraction_evaluate: float = 1.0,
        checkpoints: Checkpoints | None = None,
    ) -> None:
        self._min_available = config.clients if min_available_nodes is None else min_available_nodes
        if not self._min_available >= 1:
            raise ConfigError(
                f"min_available_nodes: wanted an integer >= 1, got {min_available_nodes}"
            )
        if not 0 <= fraction_evaluate <= 1:
            raise ConfigError(
                f"fraction_evaluate: wanted a number in [0, 1], got {fraction_evaluate}"
            )
        method.prepare(model, generator(config.seed, "method"))
        method.check_clients(model, config.clients)
        flat = FlatModel(model)
        _check_method(method, flat)
        self.rounds: list[Round] = []
        self._method, self._config, self._fraction = method, config, fraction_evaluate
        self._checkpoints = checkpoints
        self._server = NodeServer(method, flat, config)
        self._read = records.StateReader(flat)
        if checkpoints is not None and checkpoints.start is not None:
            self._go_on_from(checkpoints.start)
        self._before = len(self.rounds)  # rounds of earlier starts
        self._sent: list[tuple[Client, Message]] = []
        self._sampled, self._started = 0, 0.0

    def _go_on_from(self, start: Snapshot) -> None:
        model = self._server.model
        model.load(model.from_named(start.model))
        self._server.arrays = records.model_to_record(model, model.state)
        self._server.state.update(start.server)
        self._server.remember(start.clients)
        self.rounds = [*start.rounds]

    def summary(self) -> None:
        """Says what is run."""
        config = self._config
        log.info("\t├──> Method: %s", self._method)
        log.info(
            "\t└──> %d of %d clients a round, seed %d",
            config.clients_per_round,
            config.clients,
            config.seed,
        )

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord | None = None,
        num_rounds: int | None = None,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: Callable[[int, ArrayRecord], MetricRecord | None] | None = None,
    ) -> Result:
        """Runs the federation, from the beginning or from where the checkpoint was written.

        Args:
            grid: Flower's.
            initial_arrays: other values of the model to start from, with the names of its trained
                parameters and its buffers.
            num_rounds: of the whole run; by default ``config.rounds``.
            timeout: seconds to wait for clients' replies, those to a question of the method's too.
                Who is later is left out.
            train_config, evaluate_config: are sent along, under "config".
            evaluate_fn: as in Flower; of the round's number and the global arrays.

        Raises:
            RunError: as in `fedkern.fl.simulate`. What was reached is in the checkpoint.
        """
        before = self._before = len(self.rounds)
        if initial_arrays is not None and before:
            raise ConfigError("initial_arrays: wanted none to go on from a checkpoint, got some")
        self._server.timeout = timeout
        arrays = initial_arrays or self._server.arrays
        total = self._config.rounds if num_rounds is None else num_rounds
        if before:
            log.info("going on after round %d of %d", before, total)

        def evaluate(round: int, arrays: ArrayRecord) -> MetricRecord | None:
            assert evaluate_fn is not None
            return evaluate_fn(before + round, arrays)

        try:
            result = super().start(
                grid,
                arrays,
                max(0, total - before),
                timeout,
                train_config,
                evaluate_config,
                evaluate if evaluate_fn else None,
            )
        finally:
            if self._checkpoints is not None:
                self._checkpoints.save()
        result.arrays = self._server.arrays
        for name, of_rounds in vars(result).items():
            if name != "arrays":
                setattr(result, name, {before + k: record for k, record in of_rounds.items()})
        return result

    # ---- training --------------------------------------------------------------------------------

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Meets new clients, samples the round's, and lets the method begin it."""
        self._started = perf_counter()
        server = self._server
        server.number, server.failures = self._before + server_round, {}
        self._take(arrays, config)
        server.gather(grid, self._min_available if server_round == 1 else self._config.min_clients)
        sampled = self._sample()
        self._sampled = len(sampled)
        server.active = server.reach(sampled)
        rounds.check_enough(server, server.failures, self._config)
        self._method.begin_round(server)
        messages = server.messages(server.active, records.TRAIN)
        self._sent = [*zip(server.active, messages, strict=True)]
        log.info(
            "configure_train: %d clients of %d that are connected",
            len(messages),
            len(server.present),
        )
        return messages

    def _take(self, arrays: ArrayRecord, config: ConfigRecord) -> None:
        """Takes on what clients are to get; the arrays may be those that the last round gave."""
        server = self._server
        if arrays is not server.arrays:
            server.model.load(self._read(arrays))
            server.arrays = arrays
        config["server-round"] = server.number  # as Flower's strategies do
        server.user_config = config

    def _sample(self) -> list[Client]:
        """As `fedkern.fl.simulate` does; others take the place of those that are not connected."""
        server, config = self._server, self._config
        present = {client.number: client for client in server.present}
        order = rounds.order_of_clients(config.clients, config, server.number)
        return [present[k] for k in order if k in present][: config.clients_per_round]

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Makes of the replies the global model."""
        server, train_loss = self._server, math.nan
        if server.active:
            training = _Training(server, self._sent, replies, self._read, self._config)
            train_loss = rounds.aggregate(self._method, server, training)
        rounds.check_finite(server.model, server.number, train_loss)
        self._method.end_round(server)
        server.arrays = records.model_to_record(server.model, server.model.state)
        for failure in server.failures.values():
            log.warning("%s", failure)
        round = Round(
            server.number,
            perf_counter() - self._started,
            train_loss,
            engine=FACTS,
            clients=len(server.active),
            failed=self._sampled - len(server.active),
            failures=[*server.failures.values()],
        )
        self.rounds.append(round)
        if self._checkpoints is not None:
            self._checkpoints.keep(Snapshot.of(server, self.rounds, FACTS))
        figures = {"train-loss": train_loss, "clients": round.clients, "failed": round.failed}
        return server.arrays, MetricRecord({**figures})

    # ---- evaluation ------------------------------------------------------------------------------

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Asks clients how well they are served, in rounds in which that is due."""
        server = self._server
        self._sent = []
        if not self._config.evaluates_after(server.number):
            return []
        self._take(arrays, config)
        tested = [client for client in server.present if len(client.test_indices)]
        number = round(self._fraction * len(tested))
        draws = generator(self._config.seed, "evaluation", server.number)
        chosen = torch.randperm(len(tested), generator=draws)[:number].sort().values
        clients = [tested[k] for k in chosen.tolist()]
        messages = server.messages(clients, records.EVALUATE)
        self._sent = [*zip(clients, messages, strict=True)]
        return messages

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Means over samples, and how accuracies differ between clients."""
        server, found = self._server, []
        by_message = in_order([message for _, message in self._sent], replies)
        for (client, _), reply in zip(self._sent, by_message, strict=True):
            figures = server.read(client.number, reply, records.figures)
            if isinstance(figures, Failure):
                log.warning("evaluation: %s", figures)
            else:
                found.append(figures)
        if not found:
            return None
        samples = torch.tensor([figures["num-examples"] for figures in found])
        metrics: dict[str, int | float] = {"clients": len(found), "samples": int(samples.sum())}
        for key in dict.fromkeys(key for figures in found for key in figures):
            if key == "num-examples":
                continue
            values = torch.tensor([figures.get(key, math.nan) for figures in found])
            metrics[key] = float((values * samples).sum() / samples.sum())
            if key.endswith("accuracy"):
                metrics |= {f"{name}-{key}": value for name, value in spread(values).items()}
        return MetricRecord({**metrics})


class _Training:
    """A round's replies: see `fedkern.fl.rounds.Training`."""

    def __init__(
        self,
        server: NodeServer,
        sent: Sequence[tuple[Client, Message]],
        replies: Iterable[Message],
        read: records.StateReader,
        config: RunConfig,
    ) -> None:
        self.clients, self.ranks = len(sent), Ranks()
        self.before = server.model.state  # which nobody trains in here
        self._server, self._read, self._config = server, read, config
        clients, messages = zip(*sent, strict=True)
        self._replies = [*zip(clients, in_order(messages, replies), strict=True)]
        self._failures: dict[int, Failure] = {}

    def updates(self) -> Iterator[Update]:
        """Those of replies that are as they should be."""
        server = self._server
        for client, reply in self._replies:
            found = server.read(client.number, reply, partial(records.train_reply, read=self._read))
            if isinstance(found, Failure):
                self._failures[client.number] = found
                continue
            self._say_what_is_lost(client, found)
            yield Update(found.trained.state, found.samples, found.trained.train_loss)

    def _say_what_is_lost(self, client: Client, reply: records.TrainReply) -> None:
        state = self._server.state
        kept: dict[int, list[str]] = state.get(KEPT, {})
        if lost := {*kept.get(client.number, [])} - {*reply.had}:
            log.warning(
                "client %d came without what it had kept, and starts anew with it: %s",
                client.number,
                ", ".join(sorted(lost)),
            )
        if reply.has:
            state[KEPT] = {**kept, client.number: reply.has}

    def sum(self, tensors: Sequence[Tensor]) -> None:
        """Goes on without those that have failed."""
        rounds.leave_out(self._server, self._failures, self._config)


def _check_method(method: Method, model: FlatModel) -> None:
    """Refuses what cannot be done with messages of models and of a question."""
    reason = None
    if isinstance(method, Climb):
        reason = "needs every client's loss in every round"
    elif isinstance(method, FedRL):
        reason = "needs a sample of each class on the server"
    elif method.private(model) is not None:
        reason = "leaves parameters with the clients"
    if reason is not None:
        name = type(method).__name__
        raise ConfigError(f"method: wanted one for clients elsewhere, got {name}, which {reason}")
    if model.values.dtype == torch.bfloat16:
        raise ConfigError("model: wanted parameters of a type that NumPy has, got bfloat16")
