"""Methods compared under several seeds: from settings to the files of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import torch
from rich.console import Console

import fedkern

from . import config_file
from .augment import check_augment
from .checkpoint import Checkpoints
from .client import Client, make_clients
from .config import RunConfig
from .data import Dataset, load_dataset
from .engine import make_engine
from .errors import ConfigError, RunError
from .landscape import landscape
from .methods import Method, build_methods, describe
from .models import build_model
from .partition import Partition, make_partition
from .progress import Progress
from .ranks import Ranks
from .report import (
    CHECKPOINTS,
    RunFolder,
    file_name,
    plot_clients,
    plot_curves,
    plot_simplex,
    summarise,
)
from .results import Result, tables
from .rounds import Round
from .seeding import generator
from .simulation import check_engine, simulate
from .snapshot import shared_start


class Outcome(NamedTuple):
    """How an experiment ended: its results so far, in words, and as an exit status."""

    results: list[Result]
    status: str
    exit_code: int


@dataclass(frozen=True)
class Experiment:
    """What is run; on construction by `prepare` everything has been checked.

    Attributes:
        methods: by what they are called.
        config: of all runs, but for the seed.
        dataset: on the CPU.
        partitions: by seed.
        options: of the methods, as they were given for all of them.
    """

    methods: dict[str, Method]
    config: RunConfig
    dataset: Dataset
    partitions: dict[int, Partition]
    options: dict[str, Any]

    @classmethod
    def prepare(cls, texts: Sequence[str], seeds: int, settings: dict[str, Any]) -> Experiment:
        """Builds methods, data and partitions.

        Args:
            texts: the methods, see `build_methods`.
            seeds: how many, from the config's upwards.
            settings: of `RunConfig` and of the methods, None for those not given.

        Raises:
            ConfigError: the first thing that cannot be used.
        """
        if seeds < 1:
            raise ConfigError(f"seeds: wanted an integer >= 1, got {seeds}")
        own = {field.name for field in fields(RunConfig)}
        options = {key: value for key, value in settings.items() if key not in own}
        methods = build_methods(texts, **options)
        config = RunConfig.for_dataset(
            **{key: settings[key] for key in own if settings.get(key) is not None}
        )
        torch.set_num_threads(config.threads)
        torch.backends.cudnn.deterministic = True  # the same seed gives the same bits on CUDA too
        dataset = load_dataset(config.dataset, config.data_root, download=config.download)
        check_augment(config.augmentations, dataset.sample_shape)
        if config.normalize:
            dataset = dataset.normalized()
        partitions = {
            seed: make_partition(dataset, replace(config, seed=seed))
            for seed in range(config.seed, config.seed + seeds)
        }
        experiment = cls(methods, config, dataset, partitions, options)
        for seed, partition in partitions.items():  # does it all fit?
            for method in methods.values():
                check_engine(method, config)
                model = experiment.initial_model(seed)
                method.prepare(model, generator(seed, "method"))
                method.check_clients(model, sum(len(own) > 0 for own in partition.indices))
                if config.engine == "vmap":  # no other engine refuses a model
                    make_engine(model, dataset, config)
        return experiment

    def initial_model(self, seed: int) -> torch.nn.Module:
        """The model that all methods start from, on the CPU."""
        return build_model(self.config.model, self.dataset, generator(seed, "model"))

    def settings(self) -> dict[str, Any]:
        """What prepares the same experiment, for a file: methods, seeds, all settings."""
        own = {"methods": list(self.methods), "seeds": len(self.partitions)}
        return {**own, **vars(self.config), **self.options}

    def checkpoints(
        self, folder: Path, title: str, seed: int, say: Callable[[str], object]
    ) -> Checkpoints:
        """Those of a method's run under a seed, in a folder of results."""
        config = replace(self.config, seed=seed)
        settings = {k: v for k, v in vars(config).items() if k not in _MAY_CHANGE}
        settings |= {"device": str(config.torch_device()), **describe(self.methods[title])}
        about = {"settings": settings, "data": {"dataset's checksum": self.dataset.checksum}}
        own = folder / CHECKPOINTS / f"{file_name(title)}-seed{seed}"
        return Checkpoints(own, about, config.checkpoint_every, config.rounds, say)

    def check_resumable(self, folder: Path, before: dict[str, Any]) -> None:
        """Refuses to go on with runs that had other settings, or whose checkpoints are damaged.

        Args:
            folder: of the results.
            before: the settings that are written there.

        Raises:
            ConfigError: names the setting, or says what is the matter with a checkpoint.
        """
        now = self.settings()
        for name in ("methods", "seeds", "seed"):
            if now[name] != before.get(name):
                raise ConfigError(
                    f"{name}: wanted {before.get(name)!r} as in {folder}, got {now[name]!r}"
                )
        if self.config.checkpoint_every == 0 or before.get("checkpoint_every") == 0:
            raise ConfigError(
                f"resume: wanted a run with checkpoints, got {folder}, checkpoint_every 0"
            )
        for seed in self.partitions:
            for title in self.methods:
                self.checkpoints(folder, title, seed, say=str).resume()

    def run(self, folder: RunFolder, console: Console, ranks: Ranks | None = None) -> Outcome:
        """Runs, writes and reports, as the first rank; what stops early is reported as it is."""
        config = self.config
        config_file.write(self.settings(), folder.path / "config.toml")
        folder.write_json(
            "config.json",
            {
                "methods": {title: describe(method) for title, method in self.methods.items()},
                "seeds": list(self.partitions),
                **vars(config),
                "device": str(config.torch_device()),
                "build": {key: str(value) for key, value in fedkern.build_info().items()},
            },
        )
        say = partial(console.print, markup=False, highlight=False, soft_wrap=True)
        self._introduce(folder, say)
        results: list[Result] = []
        started = perf_counter()
        status, exit_code = "complete", 0
        try:
            total = len(self.partitions) * len(self.methods) * config.rounds
            with Progress(console, total) as progress:
                self._simulate_all(folder, results, say, progress, ranks or Ranks())
        except _ENDS as error:
            status, exit_code = _end(error, folder)
        results = [result for result in results if result.rounds]
        seconds = perf_counter() - started
        try:
            self._report(folder, results, status, seconds, console)
        except _ENDS as error:
            if exit_code == 0:  # else it is a consequence, or impatience
                status, exit_code = _end(error, folder)
        return Outcome(results, status, exit_code)

    def _report(
        self,
        folder: RunFolder,
        results: list[Result],
        status: str,
        seconds: float,
        console: Console,
    ) -> None:
        """Writes and shows what has come of it all."""
        target = self.config.target_accuracy
        summary = summarise(results, self.partitions, status, target)
        folder.write_json("summary.json", {"seconds": seconds, **summary})
        if results:
            plot_curves(results, folder.path / "curves.png")
            folder.write_tables(results, target)
            for table in tables(results, target):
                console.print(table)
        on_simplex = [result for result in results if result.landscape is not None]
        if on_simplex:
            plot_simplex(on_simplex, folder.path / "simplex.png")

    def _introduce(self, folder: RunFolder, say: Callable[[str], object]) -> None:
        """Says and shows who holds what, and which round a method waits for in vain."""
        dataset = self.dataset
        first = self.partitions[self.config.seed]
        label_counts = first.label_counts(dataset.y_train, dataset.num_classes)
        plot_clients(label_counts, folder.path / "clients.png")
        for seed, partition in self.partitions.items():
            line = f"seed {seed}: {partition.discarded} of {len(dataset.y_train)} training samples "
            line += f"discarded, clients without data: {len(partition.clients_without_data)}"
            say(line)
        for title, method in self.methods.items():
            for mark, number in method.marks.items():
                if number > self.config.rounds:
                    line = f"{title}: {mark} = {number} is after the last of the "
                    line += f"{self.config.rounds} rounds"
                    say(line)

    def _simulate_all(
        self,
        folder: RunFolder,
        results: list[Result],
        say: Callable[[str], object],
        progress: Progress,
        ranks: Ranks,
    ) -> None:
        """Fills `results` and the folder's files; what is there when it is interrupted, stays."""
        dataset = self.dataset.to(self.config.torch_device())
        for seed in self.partitions:
            for title, method in self.methods.items():
                results.append(Result(title, seed, method.marks))
                self._simulate(results[-1], dataset, folder, say, progress, ranks)

    def _simulate(
        self,
        result: Result,
        dataset: Dataset,
        folder: RunFolder,
        say: Callable[[str], object],
        progress: Progress,
        ranks: Ranks,
    ) -> None:
        """One run, from its beginning or from its last checkpoint."""
        title, seed = result.method, result.seed
        checkpoints = self.checkpoints(folder.path, title, seed, say)
        if folder.resumed:
            checkpoints.resume()
        model, clients, rounds = self._begin(title, seed, dataset, ranks, checkpoints)
        start = checkpoints.start
        if start is not None:
            result.rounds += start.rounds
            folder.add(title, seed, *start.rounds)
            progress.skip(len(start.rounds))
            say(f"{title} seed {seed}: goes on after round {len(start.rounds)}")
        told = {failure.cause for round in result.rounds for failure in round.failures}
        try:
            for round in rounds:
                if not result.rounds:
                    facts = ", ".join(f"{k} {v}" for k, v in round.engine.items())
                    say(f"{title} seed {seed}: {facts}")
                for failure in round.failures:
                    if failure.cause not in told:
                        told.add(failure.cause)
                        say(f"{title} seed {seed} round {round.number}: {failure}")
                result.rounds.append(round)
                folder.add(title, seed, round)
                progress.show(f"{title} seed {seed}", round, self.config.rounds)
        finally:
            checkpoints.save()
        if sum(result.failures.values()) > len(told):
            counts = (f"{number} {cause}" for cause, number in result.failures.items())
            say(f"{title} seed {seed}: left out in all: {', '.join(counts)}")
        folder.add_clients(title, seed, clients, result.rounds[-1])
        if seed == self.config.seed:
            result.landscape = landscape(model, clients, seed)

    def assist(self, ranks: Ranks) -> None:
        """What the other ranks do while the first one runs."""
        dataset = self.dataset.to(self.config.torch_device())
        for seed in self.partitions:
            for title in self.methods:
                *_, rounds = self._begin(title, seed, dataset, ranks)
                for _ in rounds:
                    pass

    def _begin(
        self,
        title: str,
        seed: int,
        dataset: Dataset,
        ranks: Ranks,
        checkpoints: Checkpoints | None = None,
    ) -> tuple[torch.nn.Module, list[Client], Iterator[Round]]:
        """A run on all ranks, of which the first one has the checkpoints: what is left to do."""
        config = replace(self.config, seed=seed)
        model = self.initial_model(seed).to(config.torch_device())
        store, start, keep = None, None, None
        if checkpoints is not None:
            store, start, keep = checkpoints.store, checkpoints.start, checkpoints.keep
        clients = make_clients(dataset, self.partitions[seed], store)
        start = shared_start(start, clients, ranks)
        method = self.methods[title]
        rounds = simulate(method, model, clients, config, start=start, keep=keep, ranks=ranks)
        return model, clients, rounds


# What ends an experiment; of files, only those of results: checkpoints say what they cannot write.
_ENDS = (KeyboardInterrupt, SystemExit, RunError, OSError)


def _end(error: BaseException, folder: RunFolder) -> tuple[str, int]:
    """In words, and as an exit status."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", 130
    if isinstance(error, SystemExit):  # SIGTERM, see fedkern.cli
        return "terminated", 143
    if isinstance(error, OSError):
        return f"out: {error.filename or folder.path}: {error.strerror or error}", 1
    return str(error), 1


# Settings that another value of changes no bit of what is to come.
_MAY_CHANGE = (
    "rounds",
    "workers",
    "data_root",
    "download",
    "checkpoint_every",
    "target_accuracy",
    "min_clients",
)
