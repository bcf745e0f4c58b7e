"""How the server combines the models of a round's clients.

Beside the mean, three that a few clients who send anything cannot ruin, whatever they send:

    median          of every coordinate (Yin et al., arXiv 1803.01498)
    trimmed_mean    of every coordinate without its smallest and its largest values (the same)
    clipped_mean    of updates w_k - w_g, none longer than a bound (Sun et al., arXiv 1911.07963)

They treat floating-point buffers (batch norm's statistics) as they do the parameters. Of integers
(its counters) all take the largest. All compute in float64.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from .config import setting
from .errors import ConfigError, check_not_negative
from .flat import State
from .ranks import Ranks

_COLUMNS = 2**14  # that are sorted at a time: what lies in the cache
_PART = 2**18  # of a row that is summed at a time, of a large model


class Gathered(Protocol):
    """What the server holds of a round's models while they come."""

    def add(self, state: State, weight: float) -> None:
        """Takes a client's model, which is not used later."""

    @property
    def parts(self) -> list[Tensor]:
        """What all ranks have taken is the sum of these, put in their place (`Ranks.sum`)."""

    def combined(self) -> State:
        """What comes of all of them, at least one; in float64."""


class Aggregation(Protocol):
    """A way to combine models, with its options: a frozen dataclass."""

    def gather(self, before: State, clients: int, ranks: Ranks) -> Gathered:
        """Starts a round.

        Args:
            before: its global state.
            clients: how many models come at most, to all ranks.
            ranks: among which they are shared out.
        """


# ---- the mean ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mean(Aggregation):
    """The weighted mean, accumulated in the order in which the models come."""

    def gather(self, before: State, clients: int, ranks: Ranks) -> Gathered:
        """See `Aggregation`."""
        return _Sums(before, ranks)


class _Sums:
    def __init__(self, before: State, ranks: Ranks) -> None:
        self._rank = ranks.rank
        self._weight = torch.zeros((), dtype=torch.float64)
        # Of integers each rank has a row, for its largest.
        self._sums = [
            torch.zeros_like(tensor, dtype=torch.float64)
            if tensor.is_floating_point()
            else tensor.new_zeros(ranks.size, *tensor.shape)
            for tensor in (before.values, *before.buffers)
        ]

    def add(self, state: State, weight: float) -> None:
        for summed, tensor in zip(self._sums, (state.values, *state.buffers), strict=True):
            if tensor.is_floating_point():
                _add(summed, tensor, weight)
            else:
                torch.maximum(summed[self._rank], tensor, out=summed[self._rank])
        self._weight += weight

    @property
    def parts(self) -> list[Tensor]:
        return [self._weight, *self._sums]

    def combined(self) -> State:
        values, *buffers = [
            summed.div_(self._weight) if summed.is_floating_point() else summed.amax(0)
            for summed in self._sums
        ]
        return State(values, buffers)


def _add(summed: Tensor, tensor: Tensor, weight: float) -> None:
    """Adds weight times a tensor, in float64; a long row by parts, to copy little at a time."""
    by_parts = tensor.is_cpu and tensor.dim() == 1 and len(tensor) > _PART
    parts = [torch.split(t, _PART) if by_parts else (t,) for t in (summed, tensor)]
    for into, part in zip(*parts, strict=True):
        into.add_(part.to(summed.dtype), alpha=weight)


# ---- robust ones ---------------------------------------------------------------------------------


class Robust(Aggregation):
    """An aggregation that looks at all models at once."""

    def gather(self, before: State, clients: int, ranks: Ranks) -> Gathered:
        """See `Aggregation`."""
        return _Rows(self, before, clients, ranks)

    def reduce(self, rows: Tensor, weights: Tensor, before: Tensor) -> Tensor:
        """One row of several.

        Args:
            rows: parameters, or a buffer, of each client, [n, P].
            weights: of the clients, float64 [n].
            before: the global ones, [P].

        Returns:
            float64 [P].
        """
        raise NotImplementedError


class _Rows:
    def __init__(self, aggregation: Robust, before: State, clients: int, ranks: Ranks) -> None:
        self._aggregation = aggregation
        self._before = [before.values, *before.buffers]
        self._rows = [tensor.new_zeros(clients, *tensor.shape) for tensor in self._before]
        self._weights = torch.zeros(clients, dtype=torch.float64)  # 0 where no model has come
        self._free = iter(range(ranks.rank, clients, ranks.size))

    def add(self, state: State, weight: float) -> None:
        row = next(self._free)
        for rows, tensor in zip(self._rows, (state.values, *state.buffers), strict=True):
            rows[row] = tensor
        self._weights[row] = weight

    @property
    def parts(self) -> list[Tensor]:
        return [self._weights, *self._rows]

    def combined(self) -> State:
        values, *buffers = map(self._reduced, self._rows, self._before)
        return State(values, buffers)

    def _reduced(self, rows: Tensor, before: Tensor) -> Tensor:
        come = self._weights > 0
        if not come.all():
            rows = rows[come.to(rows.device)]
        if not rows.is_floating_point():
            return rows.amax(0)
        weights = self._weights[come].to(rows.device)
        rows = rows.view(len(rows), -1)
        return self._aggregation.reduce(rows, weights, before.flatten()).view_as(before)


@dataclass(frozen=True)
class Median(Robust):
    """The median of every coordinate, the mean of the two middle values of an even number.

    It holds against less than half of the clients. They weigh the same.
    """

    def reduce(self, rows: Tensor, weights: Tensor, before: Tensor) -> Tensor:
        """See `Robust`."""
        return _mean_of_middle(rows, (len(rows) - 1) // 2)


@dataclass(frozen=True)
class TrimmedMean(Robust):
    """The mean of every coordinate without its smallest and its largest values.

    They weigh the same.

    Attributes:
        trim: the part of the clients that is cut off at either end, rounded down to whole clients;
            as many may send anything.
    """

    trim: float = setting(0.4, "trimmed_mean: part of the clients cut off at either end")

    def __post_init__(self) -> None:
        if not 0 <= self.trim < 0.5:
            raise ConfigError(f"trim: wanted a number in [0, 0.5), got {self.trim}")

    def reduce(self, rows: Tensor, weights: Tensor, before: Tensor) -> Tensor:
        """See `Robust`."""
        return _mean_of_middle(rows, int(self.trim * len(rows) + 1e-9))  # 0.29 of 100 is 29


@dataclass(frozen=True)
class ClippedMean(Robust):
    """The weighted mean, no client's update longer than a bound.

    Attributes:
        clip_norm: the largest L2 norm of the update of a client's parameters, and of each of its
            buffers; 0 for the median of the round's norms.
    """

    clip_norm: float = setting(
        0.0, "clipped_mean: largest norm of a client's update, 0 for the median of the round's"
    )

    def __post_init__(self) -> None:
        check_not_negative("clip_norm", self.clip_norm)

    def reduce(self, rows: Tensor, weights: Tensor, before: Tensor) -> Tensor:
        """See `Robust`."""
        start = before.double()
        norms = torch.stack([(row - start).norm() for row in rows])
        bound = self.clip_norm or _mean_of_middle(norms[:, None], (len(norms) - 1) // 2)
        weights = weights / weights.sum() * (bound / norms).nan_to_num(nan=1.0).clamp(max=1)
        update = torch.zeros_like(start)
        for row, weight in zip(rows, weights, strict=True):
            update += weight * (row - start)
        return start + update


def _mean_of_middle(rows: Tensor, cut: int) -> Tensor:
    """The mean of each column of [n, P] without its `cut` smallest and largest: float64 [P]."""
    parts = []
    for part in torch.split(rows, _COLUMNS, 1):
        ordered = _sorted(part)[cut : len(rows) - cut]
        parts.append(torch.stack(ordered).mean(0, dtype=torch.float64))
    return torch.cat(parts)


def _sorted(rows: Tensor) -> list[Tensor]:
    """Rows [n, P] whose columns are sorted: much faster than torch.sort for few long rows."""
    ordered = list(rows)
    for i, j in _exchanges(len(ordered)):
        a, b = ordered[i], ordered[j]
        ordered[i], ordered[j] = torch.minimum(a, b), torch.maximum(a, b)
    return ordered


def _exchanges(n: int) -> Iterator[tuple[int, int]]:
    """The pairs (i, j) that sort any n things, if each is put in order, one after the other.

    Batcher's merge exchange: Knuth, The Art of Computer Programming 3, 5.2.2, algorithm M.
    """
    top = 1 << max(0, (n - 1).bit_length() - 1)
    p = top
    while p > 0:
        q, r, d = top, 0, p
        while d > 0:
            yield from ((i, i + d) for i in range(n - d) if i & p == r)
            d, q, r = q - p, q // 2, p
        p //= 2


# Dataclasses that are an `Aggregation`; their fields are options on the command line.
AGGREGATIONS: dict[str, type[Any]] = {
    "mean": Mean,
    "median": Median,
    "trimmed_mean": TrimmedMean,
    "clipped_mean": ClippedMean,
}
