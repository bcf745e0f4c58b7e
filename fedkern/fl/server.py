"""What a method sees of the run: the server, its model, its clients and its memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from .client import Client
from .config import RunConfig
from .engine import Engine
from .evaluation import cross_entropy, predict
from .failures import INJECTED, NO_DATA, Failure
from .flat import FlatModel, State
from .ranks import Ranks
from .seeding import Draws, generator
from .training import Job, LocalWork, Question, Trained
from .workers import num_workers


class Server:
    """A server, wherever its clients are.

    Attributes:
        clients: all of them.
        model: holds the global state; while clients train, anything.
        state: what is kept here from round to round, by name: empty before the first round.
        number: the round, counted from 1.
        active: the round's clients; those that have failed, and those without data, are not.
        failures: of the round so far, the first of each client, by its number.
        private: which of the model's values each client has of its own (`Method.private`).
    """

    def __init__(self, model: FlatModel, clients: Sequence[Client], config: RunConfig) -> None:
        self.model, self.clients = model, clients
        self.state: dict[str, Any] = {}
        self.number = 0
        self.active: list[Client] = []
        self.failures: dict[int, Failure] = {}
        self.private: Tensor | None = None
        self._config = config

    def ask_all(self, question: Question) -> list[tuple[Client, Tensor]]:
        """Lets every client with data train a throw-away copy of the global model.

        Returns:
            The clients that do not fail, and their answers.
        """
        raise NotImplementedError

    def local_losses(self, clients: Sequence[Client]) -> Tensor:
        """Plain cross entropy of the global model on the training data of clients that have some.

        Returns:
            Each client's mean over samples, float64 [len(clients)] on the CPU.
        """
        raise NotImplementedError

    def draws(self, purpose: str) -> torch.Generator:
        """A new generator for a purpose of the run, the same in every round."""
        return generator(self._config.seed, purpose)

    def reach(self, clients: Sequence[Client]) -> list[Client]:
        """Those that have data, and that no injected failure keeps from this round."""
        reached = []
        for client in clients:
            if len(client) == 0:
                self.note(Failure(client.number, NO_DATA, "it has no training samples"))
            elif self._is_made_to_fail(client):
                rate = self._config.fail_rate
                self.note(Failure(client.number, INJECTED, f"by a fail_rate of {rate:g}"))
            else:
                reached.append(client)
        return reached

    def _is_made_to_fail(self, client: Client) -> bool:
        """The same whatever the method and whoever else takes part."""
        if self._config.fail_rate == 0:
            return False
        draws = generator(self._config.seed, "failures", self.number, client.number)
        return torch.rand((), generator=draws).item() < self._config.fail_rate

    def note(self, failure: Failure) -> None:
        """Keeps a client's first failure of the round."""
        self.failures.setdefault(failure.client, failure)


class SimulatedServer(Server):
    """The server of clients that an engine trains.

    Attributes:
        ranks: among which the clients' work is shared out.
    """

    def __init__(
        self, engine: Engine, clients: Sequence[Client], config: RunConfig, ranks: Ranks
    ) -> None:
        super().__init__(engine.model, clients, config)
        self.ranks = ranks
        self._engine = engine

    def ask_all(self, question: Question) -> list[tuple[Client, Tensor]]:
        """See `Server`."""
        before = self.model.state.copy()
        clients = self.reach([client for client in self.clients if len(client) > 0])
        places = self.ranks.share(range(len(clients)))
        jobs = [self.job(clients[place], question.work, before) for place in places]
        results = self.train(jobs, before.values)
        answers: dict[int, Tensor] = {}
        failures: list[Failure] = []
        for place, job, result in zip(places, jobs, results, strict=True):
            if isinstance(result, Failure):
                failures.append(result)
            else:
                answers[place] = question.answer(
                    job.client, self.model.layout, before.values, result.state
                )
        self.model.load(before)
        for failure in self.ranks.collect(failures):
            self.note(failure)
        if self.ranks.size > 1:
            own = [(place, own.cpu()) for place, own in answers.items()]
            answers = dict(sorted(self.ranks.collect(own), key=lambda found: found[0]))
        return [(clients[place], own.to(before.values.device)) for place, own in answers.items()]

    def train(self, jobs: Sequence[Job], anchor: Tensor) -> Iterator[Trained | Failure]:
        """What comes of jobs, if there are any: see `Engine.train`."""
        return self._engine.train(jobs, anchor) if jobs else iter(())

    def job(self, client: Client, work: LocalWork, start: State) -> Job:
        """A client's work from a state, with its own draws of this round."""
        draws = Draws(self._config.seed, self.number, client.number, work.purpose)
        return Job(client, work, start, draws)

    def local_losses(self, clients: Sequence[Client]) -> Tensor:
        """See `Server`."""
        dataset = clients[0].dataset
        means = torch.zeros(len(clients), dtype=torch.float64)
        if own := self.ranks.share(clients):
            indices = torch.cat([client.indices for client in own])
            workers = num_workers(self._config, dataset.x_train.device)
            logits = predict(self.model.module, dataset.x_train, indices, workers=workers)
            targets = dataset.y_train[indices].cpu()
            losses = cross_entropy(logits, targets, reduction="none").double()
            parts = torch.split(losses, [*map(len, own)])
            means[self.ranks.rank :: self.ranks.size] = torch.stack([p.mean() for p in parts])
        self.ranks.sum([means])
        return means
