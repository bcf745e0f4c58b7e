"""Philox 4x32-10 (Salmon, Moraes, Dror, Shaw, SC 2011), and numbers from its words."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

Words = npt.NDArray[np.uint32]
Floats = npt.NDArray[Any]

HEAD = 2**32 - 1  # the block of what belongs to a whole point
CHOICES = 2**31  # + a group's index: the block of its coordinates' choices


def philox(counter: npt.NDArray[Any], key: int) -> Words:
    """The words [..., 4] of counters [..., 4] under a key of 64 bits, signed or not."""
    x0, x1, x2, x3 = np.moveaxis(counter.astype(np.uint64), -1, 0)
    k0, k1 = key & 0xFFFFFFFF, key >> 32 & 0xFFFFFFFF
    low, half = np.uint64(0xFFFFFFFF), np.uint64(32)
    for _ in range(10):
        p0, p1 = x0 * np.uint64(0xD2511F53), x2 * np.uint64(0xCD9E8D57)
        x0, x2 = p1 >> half ^ x1 ^ np.uint64(k0), p0 >> half ^ x3 ^ np.uint64(k1)
        x1, x3 = p1 & low, p0 & low
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return np.stack([x0, x1, x2, x3], -1).astype(np.uint32)


@dataclass(frozen=True)
class Draw:
    """An attempt at drawing points of a result. All it gives has a row for each of `points`.

    A uniform number has 32 random bits for float32, 64 for float64, and is computed in float64. The
    coordinates of a point come in groups whose uniform numbers take one block of four words.
    """

    key: int
    points: npt.NDArray[np.int64]
    attempt: int
    dtype: torch.dtype

    @property
    def group(self) -> int:
        return 4 if self.dtype == torch.float32 else 2

    def blocks(self, first: int, count: int = 1) -> Words:
        """The words of blocks first, first + 1, ...: [points, 4 count]."""
        counter = np.empty((len(self.points), count, 4), np.uint64)
        counter[:, :, 0], counter[:, :, 1] = np.arange(first, first + count), self.attempt
        counter[:, :, 2] = self.points[:, None] & 0xFFFFFFFF
        counter[:, :, 3] = self.points[:, None] >> 32
        return philox(counter, self.key).reshape(len(self.points), 4 * count)

    def uniforms(self, size: int) -> Floats:
        """Uniform on (0, 1), one for each of `size` coordinates."""
        return self._pairs(size)[0]

    def exponentials(self, size: int) -> Floats:
        """-log of these, from u or from 1 - u, whichever is smaller and so has more digits."""
        return _exponential(*self._pairs(size))

    def head_uniform(self) -> Floats:
        """The uniform number of a whole point."""
        return self.uniform_of(self.blocks(HEAD))

    def head_exponential(self) -> Floats:
        u, complement = _uniforms(self.blocks(HEAD), self.dtype)
        return _exponential(u, complement)[:, self.group // 2]

    def uniform_of(self, block: Words) -> Floats:
        """What the last two words of blocks [..., 4] make; in float32, the first of the two."""
        return _uniforms(block, self.dtype)[0][:, self.group // 2]

    def choices(self, size: int) -> Words:
        """A word for each of `size` coordinates."""
        words = self.blocks(CHOICES, self._groups(size))
        used = np.arange(words.shape[1]) % 4 < self.group
        return words[:, used][:, :size]

    def _groups(self, size: int) -> int:
        return -(-size // self.group)

    def _pairs(self, size: int) -> tuple[Floats, Floats]:
        u, complement = _uniforms(self.blocks(0, self._groups(size)), self.dtype)
        return u[:, :size], complement[:, :size]


def _uniforms(words: Words, dtype: torch.dtype) -> tuple[Floats, Floats]:
    """u = (w + 1/2) / 2^b for each b bits w of a row, and 1 - u."""
    if dtype == torch.float32:
        return (words + 0.5) * 2.0**-32, (~words + 0.5) * 2.0**-32
    u, complement = (w[:, ::2] * 2.0**-32 + (w[:, 1::2] + 0.5) * 2.0**-64 for w in (words, ~words))
    return u, complement


def _exponential(u: Floats, complement: Floats) -> Floats:
    return np.where(u < 0.5, -np.log(u), -np.log1p(-complement))
