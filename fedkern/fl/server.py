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
from .flat import FlatModel, State
from .seeding import Draws, generator
from .training import Job, LocalWork, Trained
from .workers import num_workers


class Server:
    """The server of a simulated run.

    Attributes:
        clients: all of them.
        model: holds the global state; while clients train, anything.
        state: what is kept here from round to round, by name: empty before the first round.
        number: the round, counted from 1.
        active: the round's clients that have data.
        private: which of the model's values each client has of its own (`Method.private`).
    """

    def __init__(self, engine: Engine, clients: Sequence[Client], config: RunConfig) -> None:
        self.clients = clients
        self.state: dict[str, Any] = {}
        self.number = 0
        self.active: list[Client] = []
        self.private: Tensor | None = None
        self._engine = engine
        self._config = config

    @property
    def model(self) -> FlatModel:
        """See above."""
        return self._engine.model

    def draws(self, purpose: str) -> torch.Generator:
        """A new generator for a purpose of the run, the same in every round."""
        return generator(self._config.seed, purpose)

    def ask_all(self, work: LocalWork) -> Iterator[tuple[Client, State]]:
        """Lets every client with data train a throw-away copy of the global model.

        Yields the clients with the states they end in, each valid until the next one; `model` may
        hold anything meanwhile, and the global state again at the end.
        """
        before = self.model.state.copy()
        jobs = [self.job(client, work, before) for client in self.clients if len(client) > 0]
        for job, trained in zip(jobs, self.train(jobs, before.values), strict=True):
            yield job.client, trained.state
        self.model.load(before)

    def train(self, jobs: Sequence[Job], anchor: Tensor) -> Iterator[Trained]:
        """What comes of jobs: see `Engine.train`."""
        return self._engine.train(jobs, anchor)

    def job(self, client: Client, work: LocalWork, start: State) -> Job:
        """A client's work from a state, with its own draws of this round."""
        draws = Draws(self._config.seed, self.number, client.number, work.purpose)
        return Job(client, work, start, draws)

    def local_losses(self, clients: Sequence[Client]) -> Tensor:
        """Plain cross entropy of the global model on the training data of clients that have some.

        Returns:
            Each client's mean over samples, float64 [len(clients)] on the CPU.
        """
        dataset = clients[0].dataset
        indices = torch.cat([client.indices for client in clients])
        workers = num_workers(self._config, dataset.x_train.device)
        logits = predict(self.model.module, dataset.x_train, indices, workers=workers)
        losses = cross_entropy(logits, dataset.y_train[indices].cpu(), reduction="none").double()
        return torch.stack([part.mean() for part in torch.split(losses, [*map(len, clients)])])
