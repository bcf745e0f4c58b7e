"""The twin of `fedkern.simplex.sample_ball`, as a function of the key that it draws."""

from math import comb, log

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedkern.reference.philox import HEAD, Draw, Floats, Words
from fedkern.reference.simplex_sample import from_simplex

TRIES = 1024
SWEEPS = 64


def simplex_sample_ball(
    key: Tensor,
    center: Tensor,
    radius: Tensor,
    num_samples: int,
    method: str = "exact",
    dtype: torch.dtype | None = None,
) -> Tensor:
    """The points that the kernel draws from the same key, in float64.

    `dtype`, by default center's, decides how many random bits a uniform number has.
    """
    dtype = center.dtype if dtype is None else dtype
    beta = center.double().reshape(-1, center.shape[-1]).numpy()
    radii = radius.double().expand(len(beta)).tolist()
    alpha = np.empty((len(beta), num_samples, beta.shape[1]))
    for k, rho in enumerate(radii):
        first = k * num_samples
        draw = Draw(int(key), np.arange(first, first + num_samples), 0, dtype)
        if method == "published":
            alpha[k] = as_published(draw, beta[k], rho)
        elif rho == 0:
            alpha[k] = beta[k]
        else:
            alpha[k] = from_subregion(draw, beta[k], rho)
    points = torch.from_numpy(alpha).to(dtype)
    return points if center.dim() == 2 else points[0]


def as_published(draw: Draw, center: Floats, radius: float) -> Floats:
    # The sign of a uniform number's 2 u - 1 is the uppermost bit's, its size the others'.
    u = draw.uniforms(len(center))
    v = np.where(u < 0.5, 2 * u, 2 * u - 2)
    length = radius * draw.head_uniform()
    return np.asarray(center + (length / np.abs(v).sum(1))[:, None] * v)


def from_subregion(draw: Draw, center: Floats, radius: float) -> Floats:
    """Rejection from the smallest of the regions that contain the subregion, then walks."""
    alpha = np.empty((len(draw.points), len(center)))
    region = smallest_region(center, radius)
    waiting = np.arange(len(draw.points))
    for attempt in range(TRIES):
        if not len(waiting):
            return alpha
        tried = Draw(draw.key, draw.points[waiting], attempt, draw.dtype)
        drawn = from_simplex(tried, len(center)) if region is None else from_ball(tried, *region)
        inside = (drawn >= 0).all(1)
        if radius < 2 and (region is None or region[1] > radius):
            inside &= np.abs(drawn - center).sum(1) <= radius
        alpha[waiting[inside]] = drawn[inside]
        waiting = waiting[~inside]
    for i in waiting:
        alpha[i] = walk(draw, int(draw.points[i]), center, radius)
    return alpha


def smallest_region(center: Floats, radius: float) -> tuple[Floats, float] | None:
    """The centre and radius of the ball to draw from; None: rather the whole simplex.

    Entries below a threshold are moved onto the largest. Volumes are over the simplex's.
    """
    size = len(center)
    best, least = None, 0.0
    if radius >= 2 or size == 1:
        return best
    for threshold in np.unique(center[center > 0]):
        moves = center < threshold
        moved = float(center[moves].sum())
        positive = size - int(moves.sum())
        volume = (size - 1) * log(radius / 2 + moved) + log(comb(size - 2 + positive, size - 1))
        if volume < least:
            least = volume
            folded = np.where(moves, 0, center)
            folded[center.argmax()] += moved
            best = folded, radius + 2 * moved
    return best


def from_ball(draw: Draw, center: Floats, radius: float) -> Floats:
    """Points around a centre, of which those with a negative entry are to be drawn anew."""
    size, members = len(center), np.flatnonzero(center > 0)
    f = len(members)
    weights = [comb(f, q) * comb(size - 2, q - 1) for q in range(1, min(f, size - 1) + 1)]
    below = np.cumsum([w / sum(weights) for w in weights])[:-1]
    q = 1 + (draw.blocks(HEAD)[:, :1] * 2.0**-32 >= below).sum(1)
    negative = np.zeros((len(q), size), dtype=bool)
    negative[:, members] = subsets(q, draw.choices(size)[:, members])
    t = radius / 2 * np.exp(-draw.head_exponential() / (size - 1))
    e = draw.exponentials(size)
    fall, rise = np.where(negative, e, 0), np.where(negative, 0, e)
    u = rise / rise.sum(1, keepdims=True) - fall / fall.sum(1, keepdims=True)
    return np.asarray(center + t[:, None] * u)


def subsets(wanted: npt.NDArray[np.int64], words: Words) -> npt.NDArray[np.bool_]:
    """A random subset of the columns for each row, of `wanted` elements: selection sampling."""
    chosen = np.zeros(words.shape, dtype=bool)
    wanted = wanted.copy()
    for i in range(words.shape[1]):
        left = words.shape[1] - i
        chosen[:, i] = words[:, i].astype(np.uint64) * np.uint64(left) >> np.uint64(32) < wanted
        wanted -= chosen[:, i]
    return chosen


def walk(draw: Draw, point: int, center: Floats, radius: float) -> Floats:
    """Hit-and-run from the centre along alpha_i + s, alpha_j - s."""
    size = len(center)
    alpha = center.copy()
    steps = Draw(draw.key, np.array([point]), TRIES, draw.dtype)
    blocks = steps.blocks(0, SWEEPS * size).reshape(-1, 4)
    for words, u in zip(blocks, steps.uniform_of(blocks), strict=True):
        i, j = int(words[0]) * size >> 32, int(words[1]) * (size - 1) >> 32
        j += j >= i
        total = alpha[i] + alpha[j]
        a, b = center[i], total - center[j]
        others = np.abs(np.delete(alpha - center, [i, j])).sum()
        low, high = (a + b - (radius - others)) / 2, (a + b + (radius - others)) / 2
        low, high = max(0.0, low), min(total, high)
        if low < high:
            alpha[i] = low + u * (high - low)
            alpha[j] = total - alpha[i]
    return np.asarray(alpha)
