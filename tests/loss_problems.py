"""Logits, labels, counts, weights and derivatives that the tests of losses share."""

import itertools
from typing import Any

import torch
from torch import Tensor

Arguments = dict[str, Any]


def make_logits(shape: tuple[int, ...], scale: float = 3.0, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=generator(seed)) * scale


def make_target(shape: tuple[int, ...], seed: int = 1) -> Tensor:
    """Labels of unequal frequency: low classes are common."""
    num_classes = shape[0] if len(shape) == 1 else shape[1]
    positions = shape[:0] if len(shape) == 1 else (shape[0], *shape[2:])
    u = torch.rand(positions, dtype=torch.float64, generator=generator(seed))
    return (u * u * num_classes).long()


def make_counts(num_classes: int, seed: int = 2) -> Tensor:
    return torch.randint(1, 1000, (num_classes,), generator=generator(seed))


def make_weight(num_classes: int, seed: int = 3) -> Tensor:
    return torch.rand(num_classes, dtype=torch.float64, generator=generator(seed)) + 0.1


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def classes_of(shape: tuple[int, ...]) -> int:
    return shape[0] if len(shape) == 1 else shape[1]


def value_and_gradient(
    loss_function: Any, logits: Tensor, target: Tensor, arguments: Arguments, seed: int = 4
) -> tuple[Tensor, Tensor]:
    """The loss and its gradient for a random upstream gradient (the same for the same seed)."""
    logits = logits.detach().requires_grad_()
    loss = loss_function(logits, target, **arguments)
    upstream = torch.randn(loss.shape, dtype=torch.float64, generator=generator(seed))
    loss.backward(upstream.to(loss))
    assert logits.grad is not None
    return loss.detach(), logits.grad


def three_derivatives(
    loss_function: Any, logits: Tensor, target: Tensor, arguments: Arguments
) -> tuple[Tensor, ...]:
    """The first, the second (by the logits and by the upstream gradient) and the third."""
    logits = logits.detach().requires_grad_()
    loss = loss_function(logits, target, **arguments)
    random = generator(4)
    upstream = torch.randn(loss.shape, dtype=torch.float64, generator=random).requires_grad_()
    (first,) = torch.autograd.grad(loss, logits, upstream, create_graph=True)
    v = torch.randn(logits.shape, dtype=torch.float64, generator=random)
    second = torch.autograd.grad(first, (logits, upstream), v, create_graph=True)
    (third,) = torch.autograd.grad(sum(s.square().sum() for s in second), logits)
    return (first, *second, third)


def every_argument(num_classes: int) -> list[Arguments]:
    """A grid over all arguments of calibrated_ce."""
    return [
        {
            "weight": weight,
            "class_counts": counts,
            "calibration": calibration,
            "ignore_index": ignore_index,
            "reduction": reduction,
            "label_smoothing": smoothing,
        }
        for weight, counts, calibration, ignore_index, reduction, smoothing in itertools.product(
            [None, make_weight(num_classes)],
            [None, make_counts(num_classes)],
            ["label", "gradient"],
            [-100, 0],
            ["mean", "sum", "none"],
            [0.0, 0.1],
        )
    ]
