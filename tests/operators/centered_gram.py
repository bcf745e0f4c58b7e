"""The entry of centered_gram, a part of assign_subregions."""

import torch

from fedkern.reference.simplex_assign_subregions import centered_gram
from operators._entry import FLOATING, Operator, randn, with_one

CENTERED_GRAM = Operator(
    name="centered_gram",
    stem="centered_gram",
    family="simplex_assign_subregions",
    documented="internal: csrc/ops/centered_gram.h documents it",
    twin=centered_gram,
    dtypes=FLOATING,
    result_dtype=torch.float64,
    cuda_kernel=False,
    samples=lambda dtype: [
        (randn(0, 3, dtype=dtype),),
        (randn(3, 0, dtype=dtype),),
        (randn(1, 5, dtype=dtype),),
        (randn(13, 257, dtype=dtype),),  # a tile of each width and more; a piece and more
        (randn(120, 600, dtype=dtype),),  # a whole block
        (randn(250, 300, dtype=dtype),),  # blocks of unequal size
    ],
    large=lambda dtype: (randn(250, 2000, dtype=dtype),),
    differentiable="it is not asked to be",
    vmap="the statistics of all clients are assigned at once",
    offset=0,
    nonfinite=[(with_one(v, 5, 7),) for v in (torch.nan, torch.inf, -torch.inf)],
    bad_inputs=[
        (TypeError, "stats must be float32, float64, .*, got Long", (torch.ones(2, 3).long(),)),
        (ValueError, r"stats must have shape \(K, D\), got \[3\]", (torch.ones(3),)),
    ],
)

OPERATORS = (CENTERED_GRAM,)
