"""The entry of sgd_step_."""

from typing import Any

import torch
from torch import Tensor

from fedkern import optim, reference
from operators._entry import FLOATING, Arguments, Operator, randn

NO_TENSORS = (None, None, None, None)


def sgd_step_twin(*arguments: Any) -> tuple[Tensor, ...]:
    return tuple(result for result in reference.sgd_step(*arguments) if result is not None)


def alpha_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def sgd_step_samples(dtype: torch.dtype) -> list[Arguments]:
    """Each option by itself, then all; one row and three; three endpoints of five elements."""

    def r(*shape: int, seed: int = 0) -> Tensor:
        return randn(*shape, dtype=dtype, seed=seed)

    weights = r(3, 3, seed=5).to(alpha_dtype(dtype)).softmax(-1)
    active, one = torch.tensor([True, False, True]), torch.ones(1, dtype=weights.dtype)
    three, grads = r(3, 30), r(3, 30, seed=1)
    row, grad, short = three[0], grads[0], grads[:, 10:]
    buffers, anchors = r(3, 30, seed=2), r(3, 30, seed=3)
    return [
        (row, grad, *NO_TENSORS, 0.1),
        (row, grad, *NO_TENSORS, 0.1, 0.0, 0.0, 0.5, 0.0, True),
        (row, grad, *NO_TENSORS, 0.1, 0.0, 0.0, 1e3),
        (row, grad, *NO_TENSORS, 0.1, 0.0, 0.0, torch.inf),
        (row, grad, buffers[0], None, None, None, 0.1, 0.9),
        (row, grad, *NO_TENSORS, 0.1, 0.0, 0.01),
        (row, grad, None, anchors[0], None, None, 0.1, 0.0, 0.0, 0.5, 0.3),
        (row, short[0], None, None, weights[0], None, 0.1, 0.0, 0.0, 0.5, 0.0, True),
        (row, grad, None, None, one, active[1], 0.1, 0.0, 0.0, None, 0.0, True),
        (three, short, buffers, anchors, weights, active, 0.1, 0.9, 0.01, 0.5, 0.3, True),
        (three, short, buffers, anchors[0], weights[0], active, 0.1, 0.9, 0.01, 0.5, 0.3, False),
        (row[:0], grad[:0], *NO_TENSORS, 0.1, 0.0, 0.0, 0.5),
        (three[:0], short[:0], buffers[:0], anchors[:0], weights[:0], active[:0], 0.1, 0.9, 0.01,
         0.5, 0.3, True),
    ]  # fmt: skip


def large_step(dtype: torch.dtype) -> Arguments:
    """Two rows, fewer than threads; more pieces than a thread's least share of them."""
    size, endpoint, endpoints = 150_000, 10_000, 4
    return (
        randn(2, size, dtype=dtype),
        randn(2, size - (endpoints - 1) * endpoint, dtype=dtype, seed=1),
        randn(2, size, dtype=dtype, seed=2),
        randn(size, dtype=dtype, seed=3),
        randn(endpoints, dtype=alpha_dtype(dtype), seed=4).softmax(0),
        None,
        *(0.1, 0.9, 0.01, 5.0, 0.3, True),
    )


def nonfinite_steps() -> list[Arguments]:
    samples: list[Arguments] = []
    for value in (torch.nan, torch.inf, -torch.inf):
        param, grad = randn(3, 40), randn(3, 40, seed=1)
        bad_param, bad_grad = param.clone(), grad.clone()
        bad_param[1, 25] = bad_grad[1, 25] = value
        clipped = (0.1, 0.0, 0.0, 0.5)
        samples += [
            (param, bad_grad, *NO_TENSORS, *clipped),
            (param, bad_grad, *NO_TENSORS, 0.1),
            (bad_param, grad, *NO_TENSORS, *clipped),
            (bad_param, grad, None, param[0].clone(), None, None, *clipped, 0.3),
        ]
        # 0 times an infinite gradient, in the norm as in the step
        weights = torch.tensor([0.0, 1.0], dtype=torch.float64)
        samples.append((param, bad_grad[:, :30].clone(), None, None, weights, None, *clipped))
    return samples


P, G = torch.zeros(6), torch.ones(6)
WEIGHTS = torch.full((3,), 1 / 3)


def call(param: Tensor = P, grad: Tensor = G, lr: float = 0.1, **options: Any) -> Arguments:
    names = ("momentum_buffer", "anchor", "alpha", "active")
    rest = {"momentum": 0.0, "weight_decay": 0.0, "max_norm": None, "pull": 0.0, "zero_grad": False}
    tensors = [options.pop(name, None) for name in names]
    return (param, grad, *tensors, lr, *(rest | options).values())


BAD_STEPS: list[tuple[type[Exception], str, Arguments]] = [
    (TypeError, "param must be float32.*got Long", call(P.long(), G.long())),
    (ValueError, r"param must have shape .* got \[\]", call(P[0], G[0])),
    (ValueError, r"param must have contiguous rows, got strides \[2\]",
     call(torch.zeros(12)[::2])),
    (ValueError, "param's rows must not overlap", call(P.expand(2, 6), G.expand(2, 6))),
    (ValueError, "grad's rows must not overlap",
     call(torch.zeros(2, 6), G.expand(2, 6), zero_grad=True)),
    (TypeError, "grad must have param's dtype, Float, got Double", call(grad=G.double())),
    (ValueError, "grad must have rows as long as param's, 6", call(grad=torch.ones(5))),
    (ValueError, "grad must have as many rows as param", call(torch.zeros(2, 6))),
    (ValueError, "grad must not be param", call(grad=P)),
    (ValueError, "momentum_buffer must not be grad", call(momentum_buffer=G, momentum=0.9)),
    (ValueError, "anchor must not be param", call(anchor=P[:], pull=0.1)),
    (ValueError, "momentum_buffer is needed, since momentum is 0.9", call(momentum=0.9)),
    (ValueError, "momentum_buffer must be left out, since momentum is 0",
     call(momentum_buffer=G.clone())),
    (ValueError, "momentum_buffer must have rows as long",
     call(momentum_buffer=torch.zeros(5), momentum=0.9)),
    (ValueError, "anchor is needed, since pull is 0.1", call(pull=0.1)),
    (ValueError, r"anchor must have as many rows .* got shape \[2, 6\]",
     call(anchor=torch.zeros(2, 6), pull=0.1)),
    (TypeError, "alpha must be Float where param is Float, got Double",
     call(alpha=WEIGHTS.double())),
    (ValueError, r"alpha must have shape .* got \[0\]", call(alpha=WEIGHTS[:0])),
    (ValueError, r"alpha must have shape .* got \[2, 3\]", call(alpha=WEIGHTS.expand(2, 3))),
    (ValueError, r"grad must have P - M D \+ D .* M = 3 .* got shape \[3\]",
     call(grad=G[:3], alpha=WEIGHTS)),
    (ValueError, r"grad must have P - M D \+ D .* got shape \[6\]", call(alpha=WEIGHTS)),
    (TypeError, "active must be bool, got Long", call(active=torch.tensor(1))),
    (ValueError, "active must have one entry for each row", call(active=torch.ones(1).bool())),
    (ValueError, "lr must be finite and not negative, got nan", call(lr=float("nan"))),
    (ValueError, "momentum must be finite and not negative, got -1",
     call(momentum_buffer=G.clone(), momentum=-1.0)),
    (ValueError, "weight_decay must be finite .* got inf", call(weight_decay=float("inf"))),
    (ValueError, "pull must be finite .* got -1", call(anchor=G.clone(), pull=-1.0)),
    (ValueError, "max_norm must be positive, got 0", call(max_norm=0.0)),
    (ValueError, "param requires grad, but a step has no derivative",
     call(torch.zeros(6, requires_grad=True))),
]  # fmt: skip

SGD_STEP = Operator(
    name="sgd_step_",
    stem="sgd_step",
    family="sgd_step",
    documented=optim.sgd_step_,
    twin=sgd_step_twin,
    dtypes=FLOATING,
    samples=sgd_step_samples,
    large=large_step,
    differentiable="a step changes its arguments, and is the end of what gradients are for",
    vmap="its rows are the models of a stack",
    offset="a product of parameters and weight decay is not invariant",
    nonfinite=nonfinite_steps(),
    bad_inputs=BAD_STEPS,
    mutated=(0, 1, 2),
    strides="rows must be contiguous: a copy could not be stepped in place",
)

OPERATORS = (SGD_STEP,)
