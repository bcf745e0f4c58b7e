"""What federated rounds cost beside the same training written by hand.

Published settings on real data (in the folder FEDKERN_DATA), one thread unless it says otherwise.
Ways of one and the same round, interleaved, each round on other clients:

- fedavg, fedga and other methods: rounds of `fedkern.fl.simulate`, without evaluation; "plain" with
  layers as they are (`--layers plain`), else with the faster implementations;
- bare: a plain PyTorch loop on the same batches: float32 data in torch's default layout, indexing,
  F.cross_entropy, backward, clip_grad_norm_, torch.optim.SGD as it comes; no averaging, no copies
  of models;
- forward+backward: that without clipping and without the step.

Then what workers, engines, checkpoints, ranks and the total number of clients change.

`make bench` runs it. Medians and ratios to the first variant are printed and kept.
"""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import count
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import pytest
import record
import timing
import torch
import torch.nn.functional as F
from torch import nn

from fedkern import fl

pytestmark = pytest.mark.skipif(
    not os.environ.get("FEDKERN_DATA"), reason="needs data in the folder that FEDKERN_DATA names"
)

WARM_UP = 2  # rounds of each variant that are not timed
NEVER = 10**6  # a round that is never reached: the last one is always evaluated
ONE = {"workers": 1, "rounds": NEVER, "eval_every": NEVER}

Rounds = Callable[[int], float]  # seconds of a round by its number, counted from 1


class Task:
    """Data, partition and settings of what is trained."""

    def __init__(self, name: str, **settings: Any) -> None:
        self.name, self.settings = name, settings
        self.config = fl.RunConfig.for_dataset(name, **{**ONE, **settings})
        self.dataset = fl.load_dataset(name)
        self.partition = fl.make_partition(self.dataset, self.config)

    def model(self) -> nn.Module:
        return fl.build_model(
            self.config.model, self.dataset, fl.generator(self.config.seed, "model")
        )

    def rounds(self, method: fl.Method, **settings: Any) -> Rounds:
        """fedkern's rounds, in their order."""
        clients = fl.make_clients(self.dataset, self.partition)
        config = replace(self.config, **settings)
        run = fl.simulate(method, self.model(), clients, config)
        return lambda number: next(run).seconds

    def bare(self, *, step: bool = True) -> Rounds:
        """The hand-written training of the clients that a round samples.

        In a process of its own: fedkern changes malloc's settings where it runs.
        """
        elsewhere = timing.StepElsewhere(bare_rounds, self.name, self.settings, step)
        return lambda number: elsewhere.seconds(1)


def bare_rounds(name: str, settings: dict[str, Any], step: bool) -> timing.Step:
    """A step of one round, the first one first."""
    task = Task(name, **settings)
    config, clients = task.config, fl.make_clients(task.dataset, task.partition)
    x, y = fl.scaled(task.dataset.x_train).contiguous(), task.dataset.y_train
    model = task.model().to(memory_format=torch.contiguous_format).train()
    numbers = count(1)

    def train() -> None:
        number = next(numbers)
        for k in fl.sample_clients(len(clients), config, number):
            draws = fl.generator(config.seed, "batches", number, k)
            optimizer = torch.optim.SGD(
                model.parameters(),
                lr=config.lr,
                momentum=config.momentum,
                weight_decay=config.weight_decay,
            )
            for _ in range(config.local_epochs):
                for batch in clients[k].order(draws).split(config.batch_size):
                    optimizer.zero_grad()
                    F.cross_entropy(model(x[batch]), y[batch]).backward()
                    if step:
                        nn.utils.clip_grad_norm_(model.parameters(), config.clip)
                        optimizer.step()

    return train


def measured(variants: dict[str, Rounds], rounds: int) -> dict[str, list[float]]:
    """Seconds of `rounds` rounds of each, in turns, on one thread."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    with timing.torch_threads(1):
        for number in range(1, WARM_UP + rounds + 1):
            for name, run in variants.items():
                value = run(number)
                if number > WARM_UP:
                    seconds[name].append(value)
    return seconds


def keep(seconds: dict[str, list[float]], **setting: Any) -> None:
    """Prints and records medians, and the median over the rounds of each ratio to the first."""
    first = next(iter(seconds))
    print("\n" + timing.describe(setting))
    rows = []
    for name, values in seconds.items():
        ratio = median(a / b for a, b in zip(seconds[first], values, strict=True))
        print(f"{name:28} {1e3 * median(values):9.2f} ms, {first} takes {ratio:6.3f} x as long")
        rows.append(
            {**setting, "variant": name, "seconds": median(values), f"{first}_over_this": ratio}
        )
    record.append("fl_round", rows)


# ---- beside a bare loop --------------------------------------------------------------------------


def test_mnist_mlp() -> None:
    task = Task("mnist")
    variants = {
        "bare": task.bare(),
        "forward+backward": task.bare(step=False),
        "fedavg plain": task.rounds(fl.FedAvg(), layers="plain"),
        "fedavg": task.rounds(fl.FedAvg()),
        "fedga plain": task.rounds(fl.FedGA(), layers="plain"),
        "fedga": task.rounds(fl.FedGA()),
    }
    keep(measured(variants, 25), task="mnist mlp")


def test_cifar10_lenet() -> None:
    task = Task("cifar10", model="lenet", clients_per_round=4)
    variants = {
        "bare": task.bare(),
        "forward+backward": task.bare(step=False),
        "fedavg plain": task.rounds(fl.FedAvg(), layers="plain"),
        "fedavg": task.rounds(fl.FedAvg()),
        "fedga": task.rounds(fl.FedGA()),
    }
    keep(measured(variants, 12), task="cifar10 lenet")


FLOCO = {  # the settings of its experiments
    "model": "cnn",
    "batch_size": 50,
    "local_epochs": 5,
    "lr": 0.02,
    "momentum": 0.5,
    "weight_decay": 5e-4,
    "clip": float("inf"),
    "alpha": 0.5,
}


def test_cifar10_floco_cnn() -> None:
    task = Task("cifar10", **FLOCO, clients_per_round=2)
    variants = {
        "bare": task.bare(),
        "fedavg": task.rounds(fl.FedAvg(weighting="samples")),
        "floco": task.rounds(fl.Floco(tau=NEVER)),
    }
    keep(measured(variants, 10), task="cifar10 cnn")


def test_whole_floco_round() -> None:
    """30 clients, 5 epochs, M = 10: on the whole simplex, and (tau = 1) in subregions."""
    task = Task("cifar10", **FLOCO, clients_per_round=30)
    variants = {
        "fedavg": task.rounds(fl.FedAvg(weighting="samples")),
        "floco, whole simplex": task.rounds(fl.Floco(tau=NEVER)),
        "floco, subregions": task.rounds(fl.Floco(tau=1)),
    }
    keep(measured(variants, 3), task="cifar10 cnn, 30 clients")


def test_methods() -> None:
    """All methods with their published settings; the floco ones on the whole simplex."""
    task = Task("mnist")
    methods = {name: kind() for name, kind in fl.METHODS.items()}
    methods |= {name: replace(methods[name], tau=NEVER) for name in ("floco", "floco+")}
    variants = {"bare": task.bare(), **{n: task.rounds(method) for n, method in methods.items()}}
    keep(measured(variants, 15), task="mnist mlp, methods")


# ---- workers, engines ----------------------------------------------------------------------------


def rounds_elsewhere(
    name: str, settings: dict[str, Any], workers: int, threads: int
) -> timing.Step:
    """A step of one round, for a process of its own."""
    torch.set_num_threads(threads)
    run = Task(name, **settings).rounds(fl.FedAvg(), workers=workers)
    return lambda: run(0)


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="needs two cores")
@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_two_workers_beside_two_processes(name: str) -> None:
    """Seconds a round: two processes train a round each at the same time."""
    settings = {"clients_per_round": 10 if name == "mnist" else 4}

    def elsewhere(workers: int, threads: int = 1) -> timing.StepElsewhere:
        return timing.StepElsewhere(rounds_elsewhere, name, settings, workers, threads)

    both = [elsewhere(1), elsewhere(1)]
    others = {
        "two workers": elsewhere(2),
        "one worker": both[0],
        "one worker, two threads": elsewhere(1, threads=2),
    }
    seconds: dict[str, list[float]] = {"two processes": [], **{other: [] for other in others}}
    with ThreadPoolExecutor(2) as pool:
        for number in range(WARM_UP + 8):
            slower = max(pool.map(lambda process: process.seconds(3), both))
            times = [slower / 2, *(other.seconds(3) for other in others.values())]
            if number >= WARM_UP:
                for variant, value in zip(seconds, times, strict=True):
                    seconds[variant].append(value)
    keep(seconds, task=f"{name}, workers")


@pytest.mark.parametrize("dataset", ["mnist", "cifar10"])
def test_engines(dataset: str) -> None:
    task = Task(dataset, clients_per_round=10 if dataset == "mnist" else 4)
    variants = {
        "serial": task.rounds(fl.FedGA()),
        "serial plain": task.rounds(fl.FedGA(), layers="plain"),
        "compiled": task.rounds(fl.FedGA(), compile=True),
        "vmap": task.rounds(fl.FedGA(), engine="vmap"),
    }
    keep(measured(variants, 8), task=f"{dataset}, engines")


# ---- what lasts, and several processes -----------------------------------------------------------


@pytest.mark.parametrize("name", ["fedavg", "ditto"])
def test_checkpoints(name: str, tmp_path: Path) -> None:
    """Wall-clock time of rounds that note what a checkpoint takes, and that write one each."""
    task = Task("mnist")

    def rounds(variant: str, every: int) -> Rounds:
        checkpoints = fl.Checkpoints(tmp_path / variant, {}, every, NEVER, print)
        clients = fl.make_clients(task.dataset, task.partition, checkpoints.store)
        keep = checkpoints.keep if every else None
        run = fl.simulate(fl.METHODS[name](), task.model(), clients, task.config, keep=keep)

        def seconds(number: int) -> float:
            started = perf_counter()
            next(run)
            return perf_counter() - started

        return seconds

    variants = {
        "without": rounds("without", 0),
        "noted": rounds("noted", NEVER),
        "written": rounds("written", 1),
    }
    keep(measured(variants, 40), task=f"mnist mlp, {name}, checkpoints")


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="needs two cores")
@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_two_ranks_beside_two_workers(name: str, tmp_path: Path) -> None:
    """Medians of whole runs: torchrun's two processes of a worker each, one process of two."""
    options = ["--method", "fedavg", "--dataset", name, "--rounds", "20", "--eval-every", "20"]
    ranks = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    variants = {"two workers": [], "two ranks": ranks}
    seconds: dict[str, list[float]] = {variant: [] for variant in variants}
    for number in range(5):
        for variant, prefix in variants.items():
            out = tmp_path / f"{variant} {number}"
            command = [sys.executable, *prefix, "-m", "fedkern", "run", *options, "--out", str(out)]
            subprocess.run(command, check=True, capture_output=True)
            with (out / "history.csv").open() as file:
                times = [float(row["seconds"]) for row in csv.DictReader(file)]
            seconds[variant].append(median(times[WARM_UP:]))
    keep(seconds, task=f"{name}, ranks")


# ---- the total number of clients -----------------------------------------------------------------

SAMPLES = 256  # of each client, whatever their number: clients share the samples of MNIST


def many_clients(total: int) -> tuple[float, float]:
    """Median seconds of a round of 10 clients, and peak memory of the process in bytes."""
    torch.set_num_threads(1)
    dataset = fl.load_dataset("mnist")
    draws = torch.Generator().manual_seed(0)
    samples = torch.randint(len(dataset.y_train), (total, SAMPLES), generator=draws)
    clients = fl.make_clients(dataset, fl.Partition(list(samples), 0))
    config = fl.RunConfig.for_dataset("mnist", **ONE, clients=total, clients_per_round=10)
    model = fl.build_model("mlp", dataset, fl.generator(0, "model"))
    run: Iterator[fl.Round] = fl.simulate(fl.FedAvg(), model, clients, config)
    seconds = [next(run).seconds for _ in range(30)][WARM_UP:]
    return median(seconds), peak_bytes()


def peak_bytes() -> int:
    """The most memory that this process has had; getrusage's would be its parent's too."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def test_total_number_of_clients() -> None:
    rows = []
    print("\nrounds of 10 clients")
    for total in (10, 100, 1000, 10000):
        seconds, peak = timing.in_fresh_process(many_clients, total)
        row = {"clients": total, "seconds": seconds, "peak_bytes": peak}
        row["index_bytes"] = total * SAMPLES * 8
        print(f"{total:6} clients {1e3 * seconds:8.2f} ms, peak {peak / 2**20:7.1f} MiB", row)
        rows.append({"task": "total number of clients", "variant": str(total), **row})
    record.append("fl_round", rows)
