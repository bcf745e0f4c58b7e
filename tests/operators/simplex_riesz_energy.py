"""The entries of simplex_riesz_energy, of given points and by size."""

import torch
from torch import Tensor

from fedkern import reference, simplex
from fedkern.reference.simplex_assign_subregions import simplex_riesz_energy_by_size
from operators._entry import FLOATING, Operator, randn, with_one

SQUARE = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])


def sizes(count: int) -> Tensor:
    return torch.linspace(1e-4, 1, count, dtype=torch.float64)


SIMPLEX_RIESZ_ENERGY = Operator(
    name="simplex_riesz_energy",
    stem="simplex_riesz_energy",
    family="simplex_riesz_energy",
    documented=simplex.riesz_energy,
    twin=reference.simplex_riesz_energy,
    dtypes=FLOATING,
    result_dtype=torch.float64,
    samples=lambda dtype: [
        (SQUARE.to(dtype),),
        (randn(37, 10, dtype=dtype),),
        (randn(300, 5, dtype=dtype), 1.5, 0.3),  # more than one tile
        (torch.zeros(5, 2, dtype=dtype), 3.0),
        (torch.zeros(2, 0, dtype=dtype),),
    ],
    large=lambda dtype: (randn(2000, 10, dtype=dtype),),
    differentiable="it is not asked to be",
    vmap="points are given once; energies of many sets come from simplex_riesz_energy_by_size",
    offset="rounding makes neighbours of what an offset is added to",
    nonfinite=[(with_one(v, 40, 3),) for v in (torch.nan, torch.inf, -torch.inf)],
    bad_inputs=[
        (TypeError, "points must be floating, got Long", (SQUARE.long(),)),
        (ValueError, r"shape \(K, M\) with K >= 2, got \[1, 2\]", (SQUARE[:1],)),
        (ValueError, r"got \[4\]", (SQUARE[:, 0],)),
        (ValueError, "s must be positive and finite, got 0", (SQUARE, 0.0)),
        (ValueError, "min_distance must be positive and finite, got -1", (SQUARE, 2.0, -1.0)),
    ],
)

DOUBLE = SQUARE.double()
SIMPLEX_RIESZ_ENERGY_BY_SIZE = Operator(
    name="simplex_riesz_energy_by_size",
    stem="simplex_riesz_energy",
    family="simplex_assign_subregions",
    documented="internal: csrc/ops/simplex_riesz_energy.h documents it",
    twin=simplex_riesz_energy_by_size,
    dtypes=(torch.float64,),
    samples=lambda _: [
        (randn(11, 10), sizes(7)),
        (randn(300, 5) / 10, sizes(3), torch.tensor([True, False, True])),
        (randn(2, 1), sizes(2)),
        (randn(40, 33), sizes(2)),
        (torch.zeros(4, 3, dtype=torch.float64), sizes(2)),
        (randn(4, 3), sizes(0)),
    ],
    large=lambda _: (randn(300, 10), sizes(20)),
    differentiable="it is not asked to be",
    vmap="the statistics of all clients are assigned at once",
    offset="what rounding does to a score with an offset is much on a small simplex",
    nonfinite=[(with_one(v, 40, 3), sizes(2)) for v in (torch.nan, torch.inf, -torch.inf)],
    bad_inputs=[
        (TypeError, "scores and sizes must be float64, got Float", (SQUARE, sizes(2))),
        (ValueError, r"with K >= 2 and M >= 1, got \[4, 0\]", (DOUBLE[:, :0], sizes(2))),
        (ValueError, r"sizes must have shape \(Z\), got \[\]", (DOUBLE, sizes(2)[0])),
        (TypeError, "wanted must be bool, got Double", (DOUBLE, sizes(2), sizes(2))),
        (ValueError, r"wanted must have sizes' shape .*got \[3\]",
         (DOUBLE, sizes(2), torch.ones(3).bool())),
    ],
)  # fmt: skip

OPERATORS = (SIMPLEX_RIESZ_ENERGY, SIMPLEX_RIESZ_ENERGY_BY_SIZE)
