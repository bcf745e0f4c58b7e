"""What Floco costs beside FedAvg: a training step, and the statistics of round tau.

The CNN and the settings of Floco's experiments (arXiv 2403.03333), on random images of CIFAR-10's
shape: batch 50, ten endpoints of the last layer, momentum and weight decay.

- a step: forward, backward and SGD step of a batch. FedAvg's with the plain model; Floco's with
  points of the whole simplex (before tau) and of a subregion (after it), drawn at each step;
- the statistics: what round tau begins with (every client's gradient, and the assignment of the
  subregions), beside the same local training of every client and nothing else.

`make bench` runs it. Medians, and ratios to FedAvg or to the training, are printed and kept.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import median

import record
import timing
import torch
import torch.nn.functional as F
from torch import nn

from fedkern import fl
from fedkern.fl.engine import make_engine
from fedkern.fl.server import SimulatedServer
from fedkern.fl.training import LocalWork, Question
from fedkern.nn import simplexify, subregion

CONFIG = fl.RunConfig(
    clients=100,
    clients_per_round=30,
    local_epochs=1,
    batch_size=50,
    lr=0.02,
    momentum=0.5,
    weight_decay=5e-4,
    clip=float("inf"),
    workers=1,
)
ENDPOINTS = 10
SAMPLES = 100  # of each client, for the statistics: two batches


def images(samples: int, device: str) -> fl.Dataset:
    draws = torch.Generator().manual_seed(0)
    x = torch.rand(samples, 3, 32, 32, generator=draws)
    y = torch.arange(samples) % 10
    return fl.Dataset("random", x, y, x[:10], y[:10], 10).to(device)


def network(dataset: fl.Dataset, device: str, num_endpoints: int = 0) -> nn.Module:
    model = fl.build_model("cnn", dataset, fl.generator(0, "model")).to(device)
    if num_endpoints:
        simplexify(model, num_endpoints=num_endpoints, generator=fl.generator(0, "method"))
    return model.train()


def sgd_step(model: nn.Module, dataset: fl.Dataset) -> Callable[[], None]:
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=CONFIG.lr,
        momentum=CONFIG.momentum,
        weight_decay=CONFIG.weight_decay,
    )

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(dataset.x_train), dataset.y_train).backward()
        optimizer.step()

    return step


def keep(times: timing.Times, first: str, setting: timing.Setting) -> None:
    """Prints and records medians, and the median over the rounds of each ratio to the first."""
    rows = []
    print(timing.describe(setting))
    for name, seconds in times.items():
        ratio = median(a / b for a, b in zip(seconds, times[first], strict=True))
        print(f"{name:28} {1e3 * median(seconds):9.2f} ms  {ratio:6.3f} x {first}")
        rows.append(
            {**setting, "variant": name, "seconds": median(seconds), f"ratio_to_{first}": ratio}
        )
    record.append("floco_step", rows)


@timing.everywhere
def test_step(device: str, threads: int) -> None:
    dataset = images(CONFIG.batch_size, device)
    on_simplex = network(dataset, device, ENDPOINTS)
    in_region = network(dataset, device, ENDPOINTS)
    center = torch.full((ENDPOINTS,), 1 / ENDPOINTS)
    draws = torch.Generator().manual_seed(0)
    with (
        timing.torch_threads(threads),
        subregion(on_simplex, generator=draws),
        subregion(in_region, center, 0.1, generator=draws),
    ):
        steps = {
            "fedavg": sgd_step(network(dataset, device), dataset),
            "floco, whole simplex": sgd_step(on_simplex, dataset),
            "floco, subregion": sgd_step(in_region, dataset),
        }
        times = timing.interleaved(steps, timing.clock_of(device))
    keep(times, "fedavg", {"measure": "step", "device": device, "threads": threads})


@timing.on_cpu
def test_statistics_of_round_tau(threads: int) -> None:
    dataset = images(CONFIG.clients * SAMPLES, "cpu")
    clients = fl.make_clients(dataset, fl.iid(dataset.y_train, CONFIG.clients, 0))
    method = fl.Floco(tau=1, endpoints=ENDPOINTS)
    engines = [make_engine(network(dataset, "cpu", m), dataset, CONFIG) for m in (0, ENDPOINTS)]
    plain, on_simplex = (SimulatedServer(engine, clients, CONFIG, fl.Ranks()) for engine in engines)
    on_simplex.number = method.tau
    nothing = Question(LocalWork(fl.CrossEntropy()), lambda *_: torch.empty(0))
    steps = {
        "training": lambda: plain.ask_all(nothing),
        "statistics": lambda: method.begin_round(on_simplex),
    }
    with timing.torch_threads(threads):
        times = timing.interleaved(steps, timing.wall_clock, rounds=5)
    keep(times, "training", {"measure": "statistics", "device": "cpu", "threads": threads})
