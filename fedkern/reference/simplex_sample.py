"""The twin of `fedkern.simplex.sample`, as a function of the key that it draws."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fedkern.reference import philox


def simplex_sample(
    key: Tensor, size: Sequence[int], num_endpoints: int, dtype: torch.dtype
) -> Tensor:
    """Exponential variables over their sum, in float64, from the words for `dtype`."""
    draw = philox.Draw(int(key), np.arange(math.prod(size)), 0, dtype)
    alpha = from_simplex(draw, num_endpoints)
    return torch.from_numpy(alpha).reshape(*size, num_endpoints).to(dtype)


def from_simplex(draw: philox.Draw, num_endpoints: int) -> philox.Floats:
    e = draw.exponentials(num_endpoints)
    return np.asarray(e / e.sum(1, keepdims=True))
