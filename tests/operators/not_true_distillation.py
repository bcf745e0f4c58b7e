"""The entries of not_true_distillation and its forward."""

from typing import Any

import torch
from torch import Tensor

import fedkern
from fedkern import reference
from operators._entry import FLOATING, Arguments, Operator, labels, randn


def with_all(arguments: Arguments) -> Arguments:
    """not_true_distillation's arguments, those left out filled in."""
    defaults = (1.0, -100, "mean", False)
    return (*arguments, *defaults[len(arguments) - 3 :])


def not_true_distillation_twin(*arguments: Any) -> Tensor:
    input, teacher, target, tau, ignore_index, reduction, grouped = with_all(arguments)
    named = {"tau": tau, "ignore_index": ignore_index, "reduction": reduction}
    if not grouped:
        return reference.not_true_distillation(input, teacher, target, **named)
    losses = [
        reference.not_true_distillation(*group, **named)
        for group in zip(input, teacher, target, strict=True)
    ]
    return torch.stack(losses) if losses else input.new_zeros(target.shape[: 1 + target.dim()])


def not_true_distillation_forward_twin(*arguments: Any) -> tuple[Tensor, Tensor]:
    input, *rest, compute_gradient = arguments
    if not compute_gradient:
        return not_true_distillation_twin(input, *rest), input.new_empty(0)
    with torch.enable_grad():
        logits = input if input.requires_grad else input.detach().requires_grad_()
        loss = not_true_distillation_twin(logits, *rest)
        (gradient,) = torch.autograd.grad(loss.sum(), logits, create_graph=True)
    return (loss, gradient) if input.requires_grad else (loss.detach(), gradient.detach())


def samples(dtype: torch.dtype) -> list[Arguments]:
    """One of everything, classes that fill no vector, and several groups; two empty ones."""

    def both(*shape: int) -> tuple[Tensor, Tensor]:
        return randn(*shape, dtype=dtype), randn(*shape, dtype=dtype, seed=8)

    return [
        (*both(6, 5), labels(6, num_classes=5)),
        (*both(5), labels(num_classes=5), 2.0),
        (*both(6, 5), labels(6, num_classes=5), 0.5, 1, "none"),
        (*both(2, 5, 3, 2), labels(2, 3, 2, num_classes=5), 1.0, 2, "sum"),
        (*both(2, 33), labels(2, num_classes=33), 3.0, -100, "none"),
        (*both(3, 1), labels(3, num_classes=1)),
        (*both(2, 6, 5), labels(2, 6, num_classes=5), 1.0, 3, "mean", True),
        (*both(2, 3, 5, 4), labels(2, 3, 4, num_classes=5), 1.0, -100, "none", True),
        (*both(0, 5), labels(0, num_classes=5), 1.0, -100, "sum"),
        (*both(2, 0, 5), labels(2, 0, num_classes=5), 1.0, -100, "sum", True),
    ]


def nonfinite_logits() -> list[Arguments]:
    """Student and teacher in turns, and both; at a label, and elsewhere."""
    target, rest = torch.tensor([1, 16, 3]), (1.0, -100, "none")
    clean, other = randn(3, 37), randn(3, 37, seed=8)
    found = []
    for value in (torch.nan, torch.inf, -torch.inf):
        for column in (0, 16, 36):
            spoiled = clean.clone()
            spoiled[1, column] = value
            found += [
                (spoiled, other, target, *rest),
                (other, spoiled, target, *rest),
                (spoiled, spoiled, target, *rest),
            ]
    masked = torch.full_like(clean, -torch.inf)
    found += [(masked, clean, target, *rest), (clean, masked, target, *rest)]
    return found


LOGITS, TARGET = torch.zeros(4, 10), torch.zeros(4, dtype=torch.long)
BAD_CALLS: list[tuple[type[Exception], str, Arguments]] = [
    (TypeError, "input must be float32.*got Long", (LOGITS.long(), LOGITS, TARGET)),
    (ValueError, r"input must have shape .* got \[\]",
     (torch.tensor(1.0), torch.tensor(1.0), torch.tensor(0))),
    (TypeError, "class probabilities are not supported", (LOGITS, LOGITS, LOGITS)),
    (ValueError, r"input's shape .*\[4\], got \[3\]", (LOGITS, LOGITS, TARGET[:3])),
    (ValueError, r"teacher must have input's shape, \[4, 10\], got \[4, 9\]",
     (LOGITS, LOGITS[:, 1:], TARGET)),
    (TypeError, "teacher must have input's dtype, Float, got Double",
     (LOGITS, LOGITS.double(), TARGET)),
    (ValueError, "tau must be positive and finite .* got 0", (LOGITS, LOGITS, TARGET, 0.0)),
    (IndexError, r"\[0, 10\), got 12 at position 0", (LOGITS, LOGITS, TARGET + 12)),
    (ValueError, "reduction must be", (LOGITS, LOGITS, TARGET, 1.0, 0, "avg")),
]  # fmt: skip

NOT_TRUE_DISTILLATION = Operator(
    name="not_true_distillation",
    stem="not_true_distillation",
    family="not_true_distillation",
    documented=fedkern.not_true_distillation,
    twin=not_true_distillation_twin,
    dtypes=FLOATING,
    samples=samples,
    large=lambda dtype: (
        randn(300, 1000, dtype=dtype),
        randn(300, 1000, dtype=dtype, seed=8),
        labels(300, num_classes=1000),
    ),
    differentiable=(0,),
    vmap=None,
    offset=0,
    nonfinite=nonfinite_logits(),
    bad_inputs=BAD_CALLS,
)

NOT_TRUE_DISTILLATION_FORWARD = Operator(
    name="not_true_distillation_forward",
    stem="not_true_distillation",
    family="not_true_distillation",
    documented="internal: csrc/ops/not_true_distillation.h documents it",
    twin=not_true_distillation_forward_twin,
    dtypes=FLOATING,
    samples=lambda dtype: [(*with_all(s), i != 0) for i, s in enumerate(samples(dtype))],
    large=lambda dtype: (*with_all(NOT_TRUE_DISTILLATION.large(dtype)), True),
    differentiable=(0,),
    vmap=None,
    offset=0,
    nonfinite=[(*with_all(s), True) for s in nonfinite_logits()],
    bad_inputs=[(error, message, (*with_all(a), True)) for error, message, a in BAD_CALLS],
)

OPERATORS = (NOT_TRUE_DISTILLATION, NOT_TRUE_DISTILLATION_FORWARD)
