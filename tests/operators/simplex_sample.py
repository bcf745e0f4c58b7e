"""The entry of simplex_sample."""

import torch

import fedkern
from fedkern import reference
from operators._entry import Operator

KEY = torch.tensor(-0x123456789ABCDEF)  # both of its halves count
ONE_KEY = "a point depends on its place in a call: torch's loop makes one call for each key"

SIMPLEX_SAMPLE = Operator(
    name="simplex_sample",
    stem="simplex_sample",
    family="simplex_sample",
    documented=fedkern.simplex.sample,
    twin=reference.simplex_sample,
    dtypes=(torch.float32, torch.float64),
    samples=lambda dtype: [
        (KEY, [], 3, dtype),
        (KEY, [5], 1, dtype),
        (KEY, [4, 9], 10, dtype),  # several vectors of points, and some of the next
        (KEY + 1, [2], 200, dtype),  # longer rows than are staged
        (KEY, [0], 3, dtype),
    ],
    large=lambda dtype: (KEY, [10_000], 10, dtype),
    differentiable="a draw has no argument to differentiate by",
    vmap=ONE_KEY,
    offset="a draw has no coordinates as arguments",
    nonfinite="a draw has no floating arguments",
    bad_inputs=[
        (TypeError, "key must be int64, got Float", (torch.tensor(1.0), [2], 3, torch.float32)),
        (ValueError, r"key must have shape \(\), got \[1\]", (KEY[None], [2], 3, torch.float32)),
        (TypeError, "dtype must be float32 or float64.*got Half", (KEY, [2], 3, torch.float16)),
        (ValueError, "num_endpoints must be at least 1, got 0", (KEY, [2], 0, torch.float32)),
        (ValueError, r"size must not be negative, got \[2, -1\]", (KEY, [2, -1], 3, torch.float32)),
    ],
)

OPERATORS = (SIMPLEX_SAMPLE,)
