"""What the samplers' tests share: one distribution or two, samplers to compare with, replays.

The samplers are NumPy's and know nothing of fedkern's words: rejection from the whole simplex where
enough is accepted, else the direct draw from the ball in its plainest form.
"""

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Floats = npt.NDArray[np.float64]

LEVEL = 1e-10  # of one comparison; there are fewer than 1e4 in the whole test suite


# ---- Kolmogorov-Smirnov -------------------------------------------------------------------------


def features(points: Floats, center: Floats) -> Floats:
    """What is compared: every coordinate, the sums of the first neighbours, the L1 distance."""
    distance = np.abs(points - center).sum(1, keepdims=True)
    return np.concatenate([points, (points[:, :-1] + points[:, 1:])[:, :9], distance], 1)


def ks_statistic(a: Floats, b: Floats) -> float:
    """sqrt(n m / (n + m)) times the largest distance of two empirical distribution functions."""
    a, b = np.sort(a), np.sort(b)
    at = np.sort(np.concatenate([a, b]), kind="stable")
    distance = np.abs(
        np.searchsorted(a, at, "right") / len(a) - np.searchsorted(b, at, "right") / len(b)
    ).max()
    return float(distance * math.sqrt(len(a) * len(b) / (len(a) + len(b))))


def largest_statistic(points: Tensor | Floats, expected: Tensor | Floats, center: Tensor) -> float:
    a, b, c = (np.asarray(x, dtype=np.float64) for x in (points, expected, center))
    pairs = zip(features(a, c).T, features(b, c).T, strict=True)
    # A feature that is constant but for rounding (the sum of two coordinates that are all) says
    # nothing.
    return max(ks_statistic(x, y) for x, y in pairs if np.ptp(y) > 1e-6)


# P(statistic > x) < 2 exp(-2 x^2)
LARGEST = math.sqrt(math.log(2 / LEVEL) / 2)


def assert_same_distribution(
    points: Tensor | Floats, expected: Tensor | Floats, center: Tensor
) -> None:
    assert len(points) >= 100_000
    assert len(expected) >= 100_000
    statistic = largest_statistic(points, expected, center)
    assert statistic < LARGEST, f"{statistic:.2f}, at most {LARGEST:.2f}"


# ---- samplers -----------------------------------------------------------------------------------


def collect(draw: Callable[[], Floats], n: int) -> Floats:
    kept: list[Floats] = []
    while sum(map(len, kept)) < n:
        kept.append(draw())
    return np.concatenate(kept)[:n]


def by_rejection(center: Floats, radius: float, n: int, rng: np.random.Generator) -> Floats:
    """Points of the simplex that are within the radius."""

    def draw() -> Floats:
        e = rng.standard_exponential((200_000, len(center)))
        alpha = e / e.sum(1, keepdims=True)
        return np.asarray(alpha[np.abs(alpha - center).sum(1) <= radius])

    return collect(draw, n)


def directly(
    center: Floats,
    radius: float,
    n: int,
    rng: np.random.Generator,
    *,
    t_power: float | None = None,
    weigh_q: bool = True,
) -> Floats:
    """The direct draw from the ball. `t_power` and `weigh_q` plant faults."""
    size, members = len(center), np.flatnonzero(center)
    f = len(members)
    most = min(f, size - 1)
    weights = np.array(
        [
            math.comb(f, q) * math.comb(size - 2, q - 1) if weigh_q else 1
            for q in range(1, most + 1)
        ],
        dtype=float,
    )

    def draw() -> Floats:
        count = 100_000
        q = rng.choice(most, count, p=weights / weights.sum()) + 1
        ranks = rng.random((count, f)).argsort(1).argsort(1)
        negative = np.zeros((count, size), dtype=bool)
        negative[:, members] = ranks < q[:, None]
        power = 1 / (size - 1) if t_power is None else t_power
        t = radius / 2 * rng.random((count, 1)) ** power
        e = rng.standard_exponential((count, size))
        fall, rise = np.where(negative, e, 0), np.where(negative, 0, e)
        alpha = center + t * (rise / rise.sum(1, keepdims=True) - fall / fall.sum(1, keepdims=True))
        return np.asarray(alpha[(alpha >= 0).all(1)])

    return collect(draw, n)


def as_published(center: Floats, radius: float, n: int, rng: np.random.Generator) -> Floats:
    v = rng.uniform(-1, 1, (n, len(center)))
    v /= np.abs(v).sum(1, keepdims=True)
    return np.asarray(center + rng.uniform(0, radius, (n, 1)) * v)


# ---- CUDA graphs --------------------------------------------------------------------------------


def assert_replays_draw_anew(draw: Callable[[], Tensor]) -> None:
    """Of a draw on a GPU that is captured in a graph."""
    draw()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        points = draw()
    draws = []
    for _ in range(3):
        graph.replay()
        draws.append(points.clone())
    assert not torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[1], draws[2])
