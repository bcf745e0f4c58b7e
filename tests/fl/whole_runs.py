"""A run with all that comes of it, to be compared with another one's."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fedkern import fl
from fedkern.fl.flat import FlatModel
from fedkern.fl.ranks import Ranks
from fedkern.fl.training import Job, LocalWork

# Small clients, several epochs, in batches that do not divide them.
SMALL = fl.RunConfig(
    clients=6,
    clients_per_round=4,
    rounds=3,
    local_epochs=2,
    batch_size=16,
    partition="shards",
    workers=1,
)


def convolutional() -> nn.Module:
    """No chain of layers: autograd runs in the workers."""
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), nn.Flatten(), nn.Linear(144, 4)
    )


def chain() -> nn.Module:
    """A model of the same images that is run without autograd."""
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 4))


class Alone(NamedTuple):
    """The training of clients by one rank."""

    clients: int
    ranks: Ranks = Ranks()

    def sum(self, tensors: Sequence[Tensor]) -> None:
        """There is nobody to sum with."""


class Run(NamedTuple):
    """What is reported but for times, all numbers at the end, and the engine's facts."""

    rounds: list[fl.Round]
    ends: list[Tensor]
    facts: dict[str, Any]


def drawn(module: nn.Module) -> nn.Module:
    """A module with the same parameters in every process, of a size that trains."""
    draws = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in module.parameters():
            p.uniform_(-1, 1, generator=draws).mul_(max(1, p[0].numel()) ** -0.5)
    return module


def run(
    dataset: fl.Dataset,
    config: fl.RunConfig,
    method: fl.Method,
    build: Callable[[], nn.Module],
    partition: fl.Partition | None = None,
) -> Run:
    """Simulates; what clients keep is part of the numbers at the end."""
    clients = fl.make_clients(dataset, partition or fl.make_partition(dataset, config))
    module = drawn(build()).to(dataset.y_train.device)
    rounds = list(fl.simulate(method, module, clients, config))
    ends = [*module.parameters(), *module.buffers()]
    ends += [tensor for client in clients for tensor in _tensors(client.state)]
    ends += [tensor for client in clients for tensor in _tensors({**client.models})]
    reported = [replace(round, seconds=0.0, engine={}) for round in rounds]
    return Run(reported, [tensor.detach().cpu() for tensor in ends], rounds[-1].engine)


def jobs_of(model: FlatModel, dataset: fl.Dataset, clients: int = 6) -> list[Job]:
    """Ordinary work of clients that share out the data, from the model as it is."""
    parts = torch.arange(len(dataset.y_train)).chunk(clients)
    return [
        Job(
            fl.Client(k, dataset, part, torch.arange(0)),
            LocalWork(fl.CrossEntropy()),
            model.state.copy(),
            fl.Draws(0, 1, k),
        )
        for k, part in enumerate(parts)
    ]


def _tensors(kept: Any) -> Iterator[Tensor]:
    if isinstance(kept, Tensor):
        yield kept
    elif isinstance(kept, float | bool):
        yield torch.tensor(float(kept))
    else:
        for part in kept.values() if isinstance(kept, dict) else kept:
            yield from _tensors(part)


def assert_same_bits(first: Run, second: Run) -> None:
    assert first.rounds == second.rounds
    assert len(first.ends) == len(second.ends)
    assert all(map(torch.equal, first.ends, second.ends))


def assert_close(first: Run, second: Run, rtol: float, atol: float) -> None:
    """Of parameters, buffers and what clients keep; training losses are float32 sums."""
    torch.testing.assert_close(first.ends, second.ends, rtol=rtol, atol=atol)
    losses = ([round.train_loss for round in one.rounds] for one in (first, second))
    torch.testing.assert_close(*map(torch.tensor, losses), rtol=1e-5, atol=0, equal_nan=True)
