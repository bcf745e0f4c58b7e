"""The entries of simplex_interpolate and of its backward."""

import torch
from torch import Tensor

import fedkern
from fedkern import reference
from operators._entry import FLOATING, Arguments, Operator, randn


def simplex_interpolate_twin(
    endpoints: list[Tensor], alpha: Tensor, grouped: bool = False
) -> list[Tensor]:
    if not grouped:
        return reference.simplex_interpolate(endpoints, alpha)

    def interpolate(stack: Tensor) -> Tensor:
        shape = stack.shape[2:]
        theta = stack.reshape(*stack.shape[:2], shape.numel())
        if alpha.dim() == 3:  # the same for each of a group's points
            theta = theta.unsqueeze(1)
        weights = alpha.to(stack.dtype).unsqueeze(-1)
        return (weights * theta).sum(-2).reshape(*alpha.shape[:-1], *shape)

    return [interpolate(stack) for stack in endpoints]


def simplex_interpolate_backward_twin(
    grads: list[Tensor], endpoints: list[Tensor], grouped: bool, dtype: torch.dtype
) -> Tensor:
    def products(grad: Tensor, endpoint: Tensor) -> Tensor:
        leading = grouped + (grad.dim() == endpoint.dim())
        shape = endpoint.shape[1 + grouped :]
        rows = grad.reshape(*grad.shape[:leading], 1, shape.numel())
        others = endpoint.reshape(*endpoint.shape[: 1 + grouped], shape.numel())
        if leading > grouped:
            others = others.unsqueeze(-3)
        return (rows * others).sum(-1)

    return sum(map(products, grads, endpoints), start=torch.zeros(())).to(dtype)


def rows(*leading: int, dtype: torch.dtype, seed: int = 0) -> list[Tensor]:
    """Tensors of several shapes, one of them empty; all [*leading, *shape]."""
    shapes = ((2, 3), (), (0, 4), (37,))
    return [randn(*leading, *shape, dtype=dtype, seed=seed + i) for i, shape in enumerate(shapes)]


def simplex_interpolate_samples(dtype: torch.dtype) -> list[Arguments]:
    """One point, several; groups of each; one endpoint, none; no group, no point."""
    return [
        (rows(3, dtype=dtype), randn(3)),
        (rows(3, dtype=dtype), randn(5, 3).float()),
        (rows(2, 3, dtype=dtype), randn(2, 3), True),
        (rows(2, 3, dtype=dtype), randn(2, 5, 3).to(dtype), True),
        ([randn(1, 4, dtype=dtype)], randn(1), False),
        (rows(0, dtype=dtype), randn(0)),
        (rows(0, 3, dtype=dtype), randn(0, 3), True),
        (rows(3, dtype=dtype), randn(0, 3)),
    ]


def simplex_interpolate_backward_samples(dtype: torch.dtype) -> list[Arguments]:
    return [
        (rows(dtype=dtype, seed=5), rows(3, dtype=dtype), False, dtype),
        (rows(5, dtype=dtype, seed=5), rows(3, dtype=dtype), False, dtype),
        (rows(2, dtype=dtype, seed=5), rows(2, 3, dtype=dtype), True, dtype),
        (rows(2, 5, dtype=dtype, seed=5), rows(2, 3, dtype=dtype), True, dtype),
        ([randn(4, dtype=dtype, seed=5)], [randn(1, 4, dtype=dtype)], False, dtype),
        ([randn(0, dtype=dtype)], [randn(3, 0, dtype=dtype)], False, dtype),
        (rows(dtype=dtype), rows(0, dtype=dtype), False, dtype),
        (rows(0, dtype=dtype), rows(0, 3, dtype=dtype), True, dtype),
    ]


def nonfinite() -> Tensor:
    """[2, 40]: an endpoint with nan and infinities, and a finite one."""
    endpoints = randn(2, 40)
    endpoints[0, :3] = torch.tensor([torch.nan, torch.inf, -torch.inf])
    return endpoints


ENDPOINTS, ALPHA = torch.zeros(3, 4), torch.zeros(3)

SIMPLEX_INTERPOLATE = Operator(
    name="simplex_interpolate",
    stem="simplex_interpolate",
    family="simplex_interpolate",
    documented=fedkern.simplex.interpolate,
    twin=simplex_interpolate_twin,
    dtypes=FLOATING,
    samples=simplex_interpolate_samples,
    large=lambda dtype: ([randn(4, 30_000, dtype=dtype), randn(4, 3, dtype=dtype)], randn(2, 4)),
    differentiable=(0, 1),
    vmap=None,
    offset="a sum with weights of any sum is not invariant",
    # a weight of zero times an infinity among them
    nonfinite=[
        ([nonfinite()], torch.tensor(alpha).double())
        for alpha in ([0.5, 0.5], [0.0, 1.0], [torch.nan, 1.0], [1.0, torch.inf])
    ],
    bad_inputs=[
        (ValueError, "endpoints must hold at least one tensor", ([], ALPHA)),
        (TypeError, "endpoints must be float32.*got Long", ([ENDPOINTS.long()], ALPHA)),
        (TypeError, r"endpoints\[1\] must have endpoints\[0\]'s dtype, Float, got Double",
         ([ENDPOINTS, ENDPOINTS.double()], ALPHA)),
        (ValueError, r"endpoints\[1\] must be on endpoints\[0\]'s device, cpu, got meta",
         ([ENDPOINTS, ENDPOINTS.to("meta")], ALPHA)),
        (ValueError, r"endpoints\[0\] must have shape \(M, ...\), got \[\]",
         ([torch.tensor(1.0)], ALPHA)),
        (ValueError, r"endpoints\[1\] must hold as many endpoints as alpha weights, 3, "
         r"got shape \[2, 4\]", ([ENDPOINTS, ENDPOINTS[:2]], ALPHA)),
        (ValueError, r"endpoints\[0\] must have as many groups as alpha, 2, got shape \[1, 3, 4\]",
         ([ENDPOINTS[None]], ALPHA.expand(2, 3), True)),
        (TypeError, "alpha must be floating, got Long", ([ENDPOINTS], ALPHA.long())),
        (ValueError, "alpha must be on endpoints' device", ([ENDPOINTS], ALPHA.to("meta"))),
        (ValueError, r"alpha must have shape \(M\) or \(G, M\), got \[\]",
         ([ENDPOINTS], torch.tensor(1.0))),
        (ValueError, r"alpha must have shape \(B, M\) or \(B, G, M\), got \[3\]",
         ([ENDPOINTS[None]], ALPHA, True)),
    ],
)  # fmt: skip

SIMPLEX_INTERPOLATE_BACKWARD = Operator(
    name="simplex_interpolate_backward",
    stem="simplex_interpolate_backward",
    family="simplex_interpolate",
    documented="internal: csrc/ops/simplex_interpolate_backward.h documents it",
    twin=simplex_interpolate_backward_twin,
    dtypes=FLOATING,
    samples=simplex_interpolate_backward_samples,
    large=lambda dtype: (
        [randn(2, 30_000, dtype=dtype), randn(2, 3, dtype=dtype)],
        [randn(4, 30_000, dtype=dtype), randn(4, 3, dtype=dtype)],
        False,
        dtype,
    ),
    differentiable=(0, 1),
    vmap=None,
    offset="products are not invariant",
    nonfinite=[
        ([grad], [nonfinite()], False, torch.float64)
        for grad in (randn(40), torch.zeros(40).double(), nonfinite()[0])
    ],
    bad_inputs=[
        (ValueError, "endpoints must hold at least one tensor", ([ALPHA], [], False, torch.float)),
        (ValueError, "grads must hold a tensor for each of endpoints, 2, got 1",
         ([ENDPOINTS[0]], [ENDPOINTS, ENDPOINTS], False, torch.float)),
        (TypeError, "dtype must be floating, got Long",
         ([ENDPOINTS[0]], [ENDPOINTS], False, torch.long)),
        (TypeError, r"grads\[0\] must have endpoints' dtype, Float, got Double",
         ([ENDPOINTS[0].double()], [ENDPOINTS], False, torch.float)),
        (ValueError, r"grads\[0\] must be on endpoints' device, cpu, got meta",
         ([ENDPOINTS[0].to("meta")], [ENDPOINTS], False, torch.float)),
        (ValueError, r"grads\[0\] must have shape .* for endpoints of shape \[3, 4\], got \[3\]",
         ([ALPHA], [ENDPOINTS], False, torch.float)),
        (ValueError, r"grads\[1\] must have shape .* got \[4\]",
         ([ENDPOINTS, ENDPOINTS[0]], [ENDPOINTS, ENDPOINTS], False, torch.float)),
        (ValueError, r"endpoints\[1\] must have .* number of endpoints .* got shape \[2, 4\]",
         ([ENDPOINTS[0], ENDPOINTS[0]], [ENDPOINTS, ENDPOINTS[:2]], False, torch.float)),
        (ValueError, r"endpoints\[0\] must have the groups of grads .* got shape \[1, 3, 4\]",
         ([ENDPOINTS[:2]], [ENDPOINTS[None]], True, torch.float)),
    ],
)  # fmt: skip

OPERATORS = (SIMPLEX_INTERPOLATE, SIMPLEX_INTERPOLATE_BACKWARD)
