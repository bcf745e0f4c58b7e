"""The entries of simplex_project and its backward."""

import torch
from torch import Tensor

import fedkern
from fedkern import reference
from operators._entry import FLOATING, Arguments, Operator, generator, randn


def support_of(result: Tensor, dim: int) -> Tensor:
    """The bits of a float64 result's support, as the operator keeps them."""
    positive = result.movedim(dim, -1) > 0
    padded = torch.nn.functional.pad(positive, (0, -positive.shape[-1] % 8))
    bits = padded.unflatten(-1, (-1, 8)) * 2 ** torch.arange(8)
    return bits.sum(-1).to(torch.uint8)


def project_twin(x: Tensor, z: Tensor, dim: int = -1) -> tuple[Tensor, Tensor]:
    result = reference.simplex_project(x, z, dim)
    return result, support_of(result.detach(), dim)


def backward_twin(grad: Tensor, support: Tensor, dim: int) -> Tensor:
    rows = grad.movedim(dim, -1)
    bits = support.unsqueeze(-1) >> torch.arange(8) & 1
    member = bits.flatten(-2)[..., : rows.shape[-1]].bool()
    size = member.sum(-1, keepdim=True)
    mean = torch.where(member, rows, 0).sum(-1, keepdim=True) / size
    projected = torch.where(member, rows - mean, 0)
    return torch.where(size == 0, torch.nan, projected).movedim(-1, dim)


def number(z: float) -> Tensor:
    return torch.tensor(z, dtype=torch.float64)


def project_samples(dtype: torch.dtype) -> list[Arguments]:
    each = torch.rand(5, dtype=torch.float64, generator=generator(3)) + 0.5
    return [
        (randn(5, 10, dtype=dtype), number(1.0)),
        (randn(7, dtype=dtype), number(0.1), 0),
        (randn(5, 33, dtype=dtype), each),
        (randn(2, 3, 5, dtype=dtype), each[:3], 2),
        (randn(3, 17, 2, dtype=dtype), each[:3, None], 1),
        (randn(2, 70, dtype=dtype), number(30.0), -1),
        (randn(4, 1, dtype=dtype), each[:4]),
        (randn(0, 5, dtype=dtype), number(1.0)),
        (randn(3, 0, 40, dtype=dtype), each[:0]),
    ]


def nonfinite_rows() -> list[Arguments]:
    samples = []
    for length in (10, 70):
        for value in (torch.nan, torch.inf, -torch.inf):
            for column in (0, length // 2, length - 1):
                x = randn(3, length)
                x[1, column] = value
                samples.append((x, number(1.0)))
        some = randn(3, length)
        some[:, 1:-1] = -torch.inf
        samples.append((some, number(1.0)))
        samples.append((torch.full((2, length), -torch.inf), number(1.0)))
        samples.append((torch.full((2, length), torch.nan), number(1.0)))
    return samples


X, ONE = torch.zeros(4, 10), torch.tensor(1.0)

PROJECT = Operator(
    name="simplex_project",
    stem="simplex_project",
    family="simplex_project",
    documented=fedkern.simplex.project,
    twin=project_twin,
    dtypes=FLOATING,
    samples=project_samples,
    large=lambda dtype: (randn(300, 1000, dtype=dtype), number(1.0)),
    differentiable=(0,),
    vmap=None,
    offset=0,
    nonfinite=nonfinite_rows(),
    bad_inputs=[
        (TypeError, "x must be float32.*got Long", (X.long(), ONE)),
        (ValueError, r"x must have rows, got shape \[\]", (torch.tensor(1.0), ONE)),
        (ValueError, r"at least one element in dimension 1, got shape \[4, 0\]", (X[:, :0], ONE)),
        (IndexError, r"dim must be in \[-2, 2\), got 2", (X, ONE, 2)),
        (TypeError, "z must be float32.*got Long", (X, ONE.long())),
        (ValueError, "z must be a number or on x's device, cpu, got meta", (X, ONE.to("meta"))),
        (ValueError, r"broadcastable to \[4\], got shape \[3\]", (X, torch.ones(3))),
        (ValueError, r"broadcastable to \[10\], got shape \[4\]", (X, torch.ones(4), 0)),
        (ValueError, r"broadcastable to \[4\], got shape \[1, 4\]", (X, torch.ones(1, 4))),
        (ValueError, "z must be positive, finite and not subnormal, got -1", (X, -ONE)),
        (ValueError, "got 0 for row 2", (X, torch.tensor([1.0, 1.0, 0.0, 1.0]))),
        (ValueError, "got inf for row 3", (X, torch.tensor([1.0, 1.0, 1.0, torch.inf]))),
        (ValueError, "got nan", (X, ONE * torch.nan)),
        (ValueError, "got 0", (X, number(1e-60))),  # in float32
        (ValueError, "z must not require grad", (X, ONE.clone().requires_grad_())),
    ],
)


def backward_samples(dtype: torch.dtype) -> list[Arguments]:
    """Upstream gradients for the supports that project_samples have."""
    samples = []
    for x, z, *dim in project_samples(torch.float64):
        axis = dim[0] if dim else -1
        support = project_twin(x, z, axis)[1]
        samples.append((randn(*x.shape, dtype=dtype, seed=5), support, axis))
    return samples


def nonfinite_upstream() -> list[Arguments]:
    """What is upstream of the support reaches its own row; what is not, none. An empty support."""
    samples = []
    for length in (10, 70):
        first_two = torch.zeros(3, (length + 7) // 8, dtype=torch.uint8)
        first_two[:, 0] = 3
        for value in (torch.nan, torch.inf):
            for column in (1, 2):
                grad = randn(3, length)
                grad[1, column] = value
                samples.append((grad, first_two, -1))
        first_two = first_two.clone()
        first_two[1] = 0
        samples.append((randn(3, length), first_two, -1))
    return samples


BITS = torch.ones(4, 2, dtype=torch.uint8)

BACKWARD = Operator(
    name="simplex_project_backward",
    stem="simplex_project_backward",
    family="simplex_project",
    documented="internal: csrc/ops/simplex_project_backward.h documents it",
    twin=backward_twin,
    dtypes=FLOATING,
    samples=backward_samples,
    large=lambda dtype: (
        randn(300, 1000, dtype=dtype),
        torch.randint(256, (300, 125), generator=generator(1)).to(torch.uint8),
        -1,
    ),
    differentiable=(0,),
    vmap=None,
    offset="on the support an offset goes with the mean, but takes digits with it",
    nonfinite=nonfinite_upstream(),
    bad_inputs=[
        (TypeError, "grad must be float32.*got Long", (X.long(), BITS, -1)),
        (ValueError, r"grad must have rows, got shape \[\]", (ONE, BITS, -1)),
        (IndexError, r"dim must be in \[-2, 2\), got -3", (X, BITS, -3)),
        (TypeError, "support must be uint8, got Bool", (X, BITS.bool(), -1)),
        (ValueError, r"each element of grad, \[4, 2\], got shape \[4, 1\]", (X, BITS[:, :1], -1)),
        (ValueError, r"each element of grad, \[10, 1\], got shape \[4, 2\]", (X, BITS, 0)),
        (ValueError, "support must be on grad's device, cpu, got meta", (X, BITS.to("meta"), -1)),
    ],
)

OPERATORS = (PROJECT, BACKWARD)
