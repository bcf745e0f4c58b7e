"""The twin of `fedkern.simplex.riesz_energy`."""

import torch
from torch import Tensor


def simplex_riesz_energy(points: Tensor, s: float = 2.0, min_distance: float = 1e-4) -> Tensor:
    """The logarithm of the mean over all pairs of 1 / max(distance, min_distance)^s."""
    distances = torch.pdist(points.double()).clamp(min=min_distance)
    return distances.pow(-s).mean().log()
