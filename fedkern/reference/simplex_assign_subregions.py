"""The twin of `fedkern.simplex.assign_subregions`: a full decomposition, then size by size."""

import torch
from torch import Tensor

from fedkern.reference.simplex_project import simplex_project
from fedkern.reference.simplex_riesz_energy import simplex_riesz_energy


def simplex_assign_subregions(
    stats: Tensor, num_endpoints: int, num_sizes: int = 1000
) -> tuple[Tensor, Tensor]:
    """The subregions' centres [K, M] and the energies [num_sizes] of all sizes, in float64."""
    scores = principal_components(stats, num_endpoints)
    sizes = torch.linspace(1e-4, 1, num_sizes, dtype=torch.float64)
    energies = simplex_riesz_energy_by_size(scores, sizes)
    best = min(range(num_sizes), key=lambda i: float(energies[i]))
    return _on_the_simplex(scores, sizes[best]), energies


def centered_gram(stats: Tensor) -> Tensor:
    centred = _centred(stats)
    return centred @ centred.mT


def principal_components(stats: Tensor, num_components: int) -> Tensor:
    """Scores of the centred rows, the first largest loading of each component positive."""
    centred = _centred(stats)
    left, singular_values, right = torch.linalg.svd(centred, full_matrices=False)
    eigenvalues = singular_values.square()
    negligible = eigenvalues < len(stats) * torch.finfo(torch.float64).eps * eigenvalues[0]
    loadings = right.mT
    largest = loadings.gather(0, loadings.abs().argmax(0, keepdim=True))
    scores = torch.where(negligible, 0, left * singular_values * largest.sign())
    return scores[:, :num_components]


def _centred(stats: Tensor) -> Tensor:
    return stats.double() - stats.double().mean(0)


def simplex_riesz_energy_by_size(
    scores: Tensor, sizes: Tensor, wanted: Tensor | None = None, screen: bool = False
) -> Tensor:
    """The energy of the scores on the simplex of each size; inf where it is not wanted."""
    if wanted is None:
        wanted = torch.ones_like(sizes, dtype=torch.bool)
    energies = [
        simplex_riesz_energy(_on_the_simplex(scores, z)) if w else torch.tensor(torch.inf)
        for z, w in zip(sizes, wanted, strict=True)
    ]
    return torch.stack(energies).double() if energies else torch.empty(0, dtype=torch.float64)


def _on_the_simplex(scores: Tensor, size: Tensor) -> Tensor:
    points = simplex_project(scores, size.expand(len(scores)))
    return points / points.sum(1, keepdim=True)
