"""The entry of simplex_sample_ball."""

import torch
from torch import Tensor

import fedkern
from fedkern import reference
from operators._entry import Arguments, Operator
from operators.simplex_sample import KEY, ONE_KEY


def centers(dtype: torch.dtype) -> Tensor:
    """Two positive entries, many small ones, equal ones, a vertex."""
    small = [0.001] * 9
    rows = [[0.5, *[0] * 8, 0.5], [*small, 1 - sum(small)], [0.1] * 10, [*[0] * 4, 1, *[0] * 5]]
    return torch.tensor(rows, dtype=dtype)


def samples(dtype: torch.dtype) -> list[Arguments]:
    rows = centers(dtype)
    wide = torch.zeros(1, 150, dtype=dtype)  # longer than is staged on a GPU
    wide[0, ::50] = 1 / 3
    radius = torch.tensor(0.3, dtype=torch.float64)
    each = torch.tensor([0.0, 0.1, 1.0, 2.0], dtype=dtype)
    return [
        (KEY, rows, each, 19, "exact"),  # a vector of points, and some of the next
        (KEY, rows, radius, 5, "exact"),
        (KEY, rows[1], radius, 5, "exact"),
        (KEY, rows, each, 5, "published"),
        (KEY, torch.ones(2, 1, dtype=dtype), radius, 3, "exact"),
        (KEY, wide, radius, 3, "exact"),
        (KEY, rows, radius, 0, "exact"),
        (KEY, rows[:0], each[:0], 5, "exact"),
    ]


def large(dtype: torch.dtype) -> Arguments:
    return (KEY, centers(dtype), torch.tensor(0.3), 3000, "exact")


CENTER, RADIUS = torch.full((2, 4), 0.25), torch.tensor(0.3)
BAD_CALLS: list[tuple[type[Exception], str, Arguments]] = [
    (TypeError, "key must be int64", (KEY.int(), CENTER, RADIUS, 2, "exact")),
    (ValueError, "key must have shape", (KEY[None], CENTER, RADIUS, 2, "exact")),
    (TypeError, "center must be float32 or float64.*got Half",
     (KEY, CENTER.half(), RADIUS, 2, "exact")),
    (ValueError, r"center must have shape \(M\) or \(K, M\).*got \[\]",
     (KEY, RADIUS, RADIUS, 2, "exact")),
    (ValueError, r"center must have shape.*got \[2, 0\]",
     (KEY, CENTER[:, :0], RADIUS, 2, "exact")),
    (ValueError, r"center must be finite .*; center 1 does not",
     (KEY, torch.stack([CENTER[0], CENTER[1] * 1.01]), RADIUS, 2, "exact")),
    (ValueError, r"center must be finite .*; center 0 does not",
     (KEY, torch.tensor([1.5, -0.5]), RADIUS, 2, "exact")),
    (ValueError, r"center must be finite .*; center 0 does not",
     (KEY, torch.tensor([1.0, torch.nan]), RADIUS, 2, "exact")),
    (TypeError, "radius must be floating, got Long", (KEY, CENTER, KEY, 2, "exact")),
    (ValueError, r"radius must be a number or have one entry per center, got shape \[3\]",
     (KEY, CENTER, torch.ones(3), 2, "exact")),
    (ValueError, r"radius must be a number.* got shape \[1\] for center's \[4\]",
     (KEY, CENTER[0], torch.ones(1), 2, "exact")),
    (ValueError, "radius must be finite and not negative, got -0.3",
     (KEY, CENTER, -RADIUS, 2, "exact")),
    (ValueError, "radius must be finite and not negative, got inf",
     (KEY, CENTER, RADIUS + torch.inf, 2, "exact")),
    (ValueError, "num_samples must not be negative, got -1", (KEY, CENTER, RADIUS, -1, "exact")),
    (ValueError, "method must be 'exact' or 'published', got 'Exact'",
     (KEY, CENTER, RADIUS, 2, "Exact")),
]  # fmt: skip

SIMPLEX_SAMPLE_BALL = Operator(
    name="simplex_sample_ball",
    stem="simplex_sample_ball",
    family="simplex_sample_ball",
    documented=fedkern.simplex.sample_ball,
    twin=reference.simplex_sample_ball,
    dtypes=(torch.float32, torch.float64),
    samples=samples,
    large=large,
    differentiable="points are drawn, and constants",
    vmap=ONE_KEY,
    offset="a moved centre leaves the simplex",
    nonfinite="nan and infinity are refused",
    bad_inputs=BAD_CALLS,
    doubles=False,
)

OPERATORS = (SIMPLEX_SAMPLE_BALL,)
