"""Sharing a training set out to clients.

`dirichlet` is the scheme of FedGA's experiments (arXiv 2412.16582): label skew with clients of
the same expected size. `iid` deals the shuffled samples out evenly.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fedkern import class_counts

from .errors import ConfigError, unknown_name
from .seeding import generator


@dataclass(frozen=True)
class Partition:
    """Which samples each client holds; no sample belongs to two clients.

    Attributes:
        indices: for each client an int64 tensor [n_k] of sample positions; may be empty.
        discarded: how many samples no client holds.
    """

    indices: list[Tensor]
    discarded: int

    @property
    def sizes(self) -> list[int]:
        """The number of samples of each client."""
        return [len(index) for index in self.indices]

    @property
    def clients_without_data(self) -> list[int]:
        """The clients that hold no sample: they keep weight 0 in every round."""
        return [client for client, size in enumerate(self.sizes) if size == 0]

    def label_counts(self, targets: Tensor, num_classes: int) -> Tensor:
        """How often each client holds each class: int64 [clients, num_classes]."""
        return torch.stack([class_counts(targets[index], num_classes) for index in self.indices])


def dirichlet(targets: Tensor, clients: int, alpha: float, seed: int) -> Partition:
    """Label-skewed clients of the same expected size.

    Each client draws class proportions from Dirichlet(alpha, ..., alpha) over the classes that
    occur. All proportions are scaled by the largest factor for which no class runs out, and each
    class is cut accordingly. What then remains of the other classes is discarded; the smaller
    alpha, the more. There is no rejection, so this ends for every alpha > 0.

    Args:
        targets: class indices, int64 [n], on the CPU.
        clients: how many clients, at least 1.
        alpha: concentration, > 0: small gives clients of few classes, large near-IID ones.
        seed: of the run; client k's proportions depend on (seed, k) only.

    Raises:
        ConfigError: `clients` or `alpha` is not positive.
    """
    _check_clients(clients)
    if not (alpha > 0 and math.isfinite(alpha)):
        raise ConfigError(f"alpha: wanted a finite number > 0, got {alpha}")
    classes, counts = torch.unique(targets, return_counts=True)
    proportions = torch.stack(
        [
            _dirichlet_draw(len(classes), alpha, generator(seed, "partition proportions", client))
            for client in range(clients)
        ]
    )
    # Cumulative shares, so that rounding neither loses nor repeats a sample of a class.
    taken = proportions.cumsum(0)
    scale = (counts / taken[-1]).min()
    # The tiny factor keeps the scarcest class whole where the product rounds just below its count.
    cuts = (taken * scale * (1 + 1e-12)).floor().long().minimum(counts)
    cuts = torch.cat([torch.zeros_like(cuts[:1]), cuts])

    pieces: list[list[Tensor]] = [[] for _ in range(clients)]
    for position, label in enumerate(classes.tolist()):
        samples = (targets == label).nonzero().flatten()
        shuffle = generator(seed, "partition samples", label)
        samples = samples[torch.randperm(len(samples), generator=shuffle)]
        bounds = cuts[:, position].tolist()
        for client in range(clients):
            pieces[client].append(samples[bounds[client] : bounds[client + 1]])
    return Partition([torch.cat(piece) for piece in pieces], len(targets) - int(cuts[-1].sum()))


def iid(targets: Tensor, clients: int, seed: int) -> Partition:
    """Clients whose samples are drawn alike; sizes differ by at most one, nothing is discarded.

    Args:
        targets: class indices, int64 [n], on the CPU; only their number matters.
        clients: how many clients, at least 1.
        seed: of the run.

    Raises:
        ConfigError: `clients` is not positive.
    """
    _check_clients(clients)
    order = torch.randperm(len(targets), generator=generator(seed, "partition samples"))
    return Partition(list(order.tensor_split(clients)), discarded=0)


def make_partition(
    kind: str, targets: Tensor, clients: int, *, alpha: float, seed: int
) -> Partition:
    """The partition called `kind`: ``"dirichlet"`` or ``"iid"`` (which ignores `alpha`)."""
    if kind == "dirichlet":
        return dirichlet(targets, clients, alpha, seed)
    if kind == "iid":
        return iid(targets, clients, seed)
    raise unknown_name("partition", kind, PARTITIONS)


PARTITIONS = ("dirichlet", "iid")


def _check_clients(clients: int) -> None:
    if clients < 1:
        raise ConfigError(f"clients: wanted at least 1, got {clients}")


def _dirichlet_draw(size: int, alpha: float, draws: torch.Generator) -> Tensor:
    """One draw of Dirichlet(alpha, ..., alpha), float64 [size].

    In logarithms, by Gamma(alpha) = Gamma(alpha + 1) U^(1 / alpha): with alpha = 0.01 ordinary
    gamma variates underflow to 0, and where all of them do their proportions would be nan.
    """
    gamma = torch._standard_gamma(
        torch.full((size,), alpha + 1, dtype=torch.float64), generator=draws
    )
    uniform = 1 - torch.rand(size, dtype=torch.float64, generator=draws)  # in (0, 1]
    return (gamma.log() + uniform.log() / alpha).softmax(0)
