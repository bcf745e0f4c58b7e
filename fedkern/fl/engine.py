"""Engines: how the clients of a round are trained; the results are the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from time import perf_counter
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from .config import RunConfig
from .data import Dataset
from .errors import ConfigError
from .failures import Failure, attempt, check_finite
from .flat import FlatModel
from .heap import keep_freed_memory
from .training import Job, Trained, Trainer
from .vmap import VmapEngine
from .workers import make_workers, num_workers


class Engine(Protocol):
    """Trains clients, each from a state of its own."""

    model: FlatModel
    """Holds the global state between rounds; while clients train, anything."""

    facts: dict[str, Any]
    """What it is and has chosen, for a report."""

    def train(self, jobs: Sequence[Job], anchor: Tensor) -> Iterator[Trained | Failure]:
        """The results in the order of the jobs, each valid until the next one is asked for.

        A job that raises an error, or whose result is not finite, costs nothing but that result.

        Args:
            jobs: at least one.
            anchor: the global parameters, [P].
        """


class SerialEngine:
    """A client after the other, or side by side in several workers: the same bits."""

    def __init__(self, model: FlatModel, dataset: Dataset, config: RunConfig) -> None:
        self.model = model
        workers = num_workers(config, model.values.device)
        self.facts = {"engine": "serial", "workers": workers}
        started = perf_counter()
        if config.compile:
            # For a process with many runs: torch compiles no more than eight models of a kind.
            torch.compiler.reset()
        self._trainer = Trainer(model, dataset, config)
        self._workers = (
            make_workers(self._trainer, workers, dataset, config) if workers > 1 else None
        )
        if config.compile:
            self.facts["compile_seconds"] = perf_counter() - started

    def train(self, jobs: Sequence[Job], anchor: Tensor) -> Iterator[Trained | Failure]:
        """See `Engine`."""
        if self._workers is None or len(jobs) == 1:
            return (attempt(partial(self._train, job, anchor), job) for job in jobs)
        return self._workers.train(jobs, anchor)

    def _train(self, job: Job, anchor: Tensor) -> Trained:
        return check_finite(self._trainer.train(job, anchor))


class AutoEngine:
    """The serial or the vmap engine, whichever trains the first clients faster.

    It is the serial one where more clients fail with the other.
    """

    def __init__(self, model: FlatModel, dataset: Dataset, config: RunConfig) -> None:
        self.model = model
        self._engine: Engine = SerialEngine(model, dataset, config)
        self._other: Engine | None = None
        self.facts: dict[str, Any] = {"engine": "auto"}
        try:
            self._other = VmapEngine(model, dataset, config)
        except ConfigError as error:
            self.facts = {**self._engine.facts, "reason": str(error)}

    def train(self, jobs: Sequence[Job], anchor: Tensor) -> Iterator[Trained | Failure]:
        """See `Engine`."""
        if self._other is not None:
            self._choose(self._other, jobs, anchor)
            self._other = None
        return self._engine.train(jobs, anchor)

    def _choose(self, other: Engine, jobs: Sequence[Job], anchor: Tensor) -> None:
        """Measures both engines, and takes the other one if it is faster."""
        serial_seconds, failures = _measure(self._engine, jobs, anchor)
        try:
            vmap_seconds, others = _measure(other, jobs, anchor)
        except ConfigError as error:
            self.facts = {**self._engine.facts, "reason": str(error)}
            return
        if len(others) > len(failures):  # torch.vmap cannot do it, or memory is short
            self.facts = {**self._engine.facts, "reason": others[0].message}
            return
        if vmap_seconds < serial_seconds:
            self._engine = other
        seconds = {"serial_seconds": serial_seconds, "vmap_seconds": vmap_seconds}
        self.facts = {**self._engine.facts, **seconds}


def _measure(engine: Engine, jobs: Sequence[Job], anchor: Tensor) -> tuple[float, list[Failure]]:
    """How long an engine trains, once it has warmed up, and who failed."""
    for _ in range(2):
        _wait_for(anchor.device)
        started = perf_counter()
        failures = [r for r in engine.train(jobs, anchor) if isinstance(r, Failure)]
        _wait_for(anchor.device)
    return perf_counter() - started, failures


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


ENGINES: dict[str, Callable[[FlatModel, Dataset, RunConfig], Engine]] = {
    "serial": SerialEngine,
    "vmap": VmapEngine,
    "auto": AutoEngine,
}


def make_engine(
    module: nn.Module, dataset: Dataset, config: RunConfig, before: dict[str, Any] | None = None
) -> Engine:
    """The engine that the settings name, for clients of a data set; the model becomes its own.

    Args:
        module: the model.
        dataset: the clients'.
        config: the settings.
        before: the facts of a run that it goes on with, as whose engine it is.
    """
    keep_freed_memory()
    facts = before or {"engine": config.engine}
    engine = ENGINES[facts["engine"]](FlatModel(module), dataset, config)
    engine.facts = {**facts, **engine.facts}
    return engine
