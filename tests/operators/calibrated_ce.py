"""The entries of calibrated_ce, its forward and its backward."""

from typing import Any

import torch
from torch import Tensor

import fedkern
from fedkern import reference
from operators._entry import FLOATING, Arguments, Operator, counts, generator, labels, randn


def with_all(arguments: Arguments) -> Arguments:
    """calibrated_ce's arguments, those left out filled in."""
    defaults = (None, None, "label", -100, "mean", 0.0, False, None)
    return (*arguments, *defaults[len(arguments) - 2 :])


def calibrated_ce_twin(*arguments: Any) -> Tensor:
    input, target, weight, class_counts, *options, grouped, adjustment = with_all(arguments)
    names = ("calibration", "ignore_index", "reduction", "label_smoothing")
    named = dict(zip(names, options, strict=True))
    if not grouped:
        return reference.calibrated_ce(
            input, target, weight, class_counts=class_counts, logit_adjustment=adjustment, **named
        )

    def of_group(vector: Tensor | None, g: int) -> Tensor | None:
        return vector[g] if vector is not None and vector.dim() == 2 else vector

    losses = [
        reference.calibrated_ce(
            z,
            y,
            of_group(weight, g),
            class_counts=of_group(class_counts, g),
            logit_adjustment=of_group(adjustment, g),
            **named,
        )
        for g, (z, y) in enumerate(zip(input, target, strict=True))
    ]
    return torch.stack(losses) if losses else input.new_zeros(target.shape[: 1 + target.dim()])


def calibrated_ce_forward_twin(*arguments: Any) -> tuple[Tensor, Tensor]:
    input, *rest, compute_gradient = arguments
    if not compute_gradient:
        return calibrated_ce_twin(input, *rest), input.new_empty(0)
    with torch.enable_grad():
        logits = input if input.requires_grad else input.detach().requires_grad_()
        loss = calibrated_ce_twin(logits, *rest)
        (gradient,) = torch.autograd.grad(loss.sum(), logits, create_graph=True)
    return (loss, gradient) if input.requires_grad else (loss.detach(), gradient.detach())


def calibrated_ce_backward_twin(
    grad_loss: Tensor, gradient: Tensor, target: Tensor, ignore_index: int, grouped: bool
) -> Tensor:
    missing = target.dim() - grad_loss.dim()
    factor = grad_loss.reshape([*grad_loss.shape, *[1] * missing]).expand_as(target)
    factor = torch.where(target == ignore_index, 0, factor)
    class_dim = grouped + (gradient.dim() > 1 + grouped)
    return gradient * factor.unsqueeze(class_dim)


def calibrated_ce_samples(dtype: torch.dtype) -> list[Arguments]:
    weight = torch.rand(5, dtype=torch.float64, generator=generator(3)) + 0.1
    of_groups = torch.rand(2, 5, dtype=torch.float64, generator=generator(3)) + 0.1
    none, label = (None, None), ("label", -100)
    b = randn(5, seed=4)
    absent = torch.where(torch.arange(5) == 4, -torch.inf, b)
    return [
        (randn(6, 5, dtype=dtype), labels(6, num_classes=5)),
        (randn(5, dtype=dtype), labels(num_classes=5), None, counts(5)),
        (randn(6, 5, dtype=dtype), labels(6, num_classes=5), weight, counts(5), "gradient", 1,
         "none", 0.1),
        (randn(2, 5, 3, 2, dtype=dtype), labels(2, 3, 2, num_classes=5), weight, None, "label", 2,
         "sum", 0.0),
        (randn(2, 33, dtype=dtype), labels(2, num_classes=33), *none, *label, "none"),
        (randn(2, 6, 5, dtype=dtype), labels(2, 6, num_classes=5), of_groups, counts(2, 5), *label,
         "mean", 0.1, True),
        (randn(2, 3, 5, 4, dtype=dtype), labels(2, 3, 4, num_classes=5), weight, counts(5), *label,
         "none", 0.0, True),
        (randn(3, 5, dtype=dtype), labels(3, num_classes=5), *none, *label, "mean", 0.0, False),
        (randn(6, 5, dtype=dtype), labels(6, num_classes=4), *none, *label, "none", 0.0, False,
         absent),
        (randn(2, 5, 3, dtype=dtype), labels(2, 3, num_classes=5), weight, counts(5), "gradient",
         1, "mean", 0.1, False, b),
        (randn(2, 6, 5, dtype=dtype), labels(2, 6, num_classes=5), None, counts(5), *label, "sum",
         0.0, True, randn(2, 5, seed=4)),
        (randn(0, 5, dtype=dtype), labels(0, num_classes=5), *none, *label, "sum"),
        (randn(2, 0, 5, dtype=dtype), labels(2, 0, num_classes=5), *none, *label, "sum", 0.0, True),
    ]  # fmt: skip


def nonfinite_logits() -> list[Arguments]:
    samples = []
    for value in (torch.nan, torch.inf, -torch.inf):
        for column in (0, 16, 36):
            logits = randn(3, 37)
            logits[1, column] = value
            samples.append((logits, torch.tensor([1, 2, 3]), None, None, "label", -100, "none"))
    masked = randn(3, 37)
    masked[:, 20:] = -torch.inf
    samples.append((masked, torch.tensor([1, 2, 3])))
    samples.append((torch.full((2, 5), -torch.inf), torch.tensor([1, 2])))
    return samples


LOGITS, TARGET = torch.zeros(4, 10), torch.zeros(4, dtype=torch.long)
BAD_CALLS: list[tuple[type[Exception], str, Arguments]] = [
    (TypeError, "input must be float32.*got Long", (LOGITS.long(), TARGET)),
    (ValueError, r"input must have shape .* got \[\]", (torch.tensor(1.0), torch.tensor(0))),
    (TypeError, "class probabilities are not supported", (LOGITS, LOGITS)),
    (ValueError, r"input's shape .*\[4\], got \[3\]", (LOGITS, TARGET[:3])),
    (ValueError, r"weight must have one entry .* got shape \[9\]", (LOGITS, TARGET, torch.ones(9))),
    (TypeError, "class_counts must be real", (LOGITS, TARGET, None, torch.ones(10).cfloat())),
    (ValueError, "class_counts must be finite", (LOGITS, TARGET, None, torch.full((10,), -1.0))),
    (IndexError, r"\[0, 10\), got 12 at position 0", (LOGITS, TARGET + 12)),
    (ValueError, "calibration must be", (LOGITS, TARGET, None, None, "Label")),
    (ValueError, "reduction must be", (LOGITS, TARGET, None, None, "label", 0, "avg")),
    (ValueError, "label_smoothing must be in",
     (LOGITS, TARGET, None, None, "label", 0, "sum", 2.0)),
    (ValueError, r"logit_adjustment must have one entry .* got shape \[9\]",
     (LOGITS, TARGET, None, None, "label", 0, "sum", 0.0, False, torch.zeros(9))),
    (TypeError, "logit_adjustment must be floating, got Long",
     (LOGITS, TARGET, None, None, "label", 0, "sum", 0.0, False, torch.zeros(10).long())),
    (ValueError, r"got shape \[3, 10\]",  # three groups' weights for two groups
     (LOGITS.view(2, 2, 10), TARGET.view(2, 2), torch.ones(3, 10), None, "label", 0, "sum", 0.0,
      True)),
]  # fmt: skip

CALIBRATED_CE = Operator(
    name="calibrated_ce",
    stem="calibrated_ce",
    family="calibrated_ce",
    documented=fedkern.calibrated_ce,
    twin=calibrated_ce_twin,
    dtypes=FLOATING,
    samples=calibrated_ce_samples,
    large=lambda dtype: (randn(300, 1000, dtype=dtype), labels(300, num_classes=1000)),
    differentiable=(0,),
    vmap=None,
    offset=0,
    nonfinite=nonfinite_logits(),
    bad_inputs=BAD_CALLS,
)

CALIBRATED_CE_FORWARD = Operator(
    name="calibrated_ce_forward",
    stem="calibrated_ce",
    family="calibrated_ce",
    documented="internal: csrc/ops/calibrated_ce.h documents it",
    twin=calibrated_ce_forward_twin,
    dtypes=FLOATING,
    samples=lambda dtype: [
        (*with_all(s), i != 0) for i, s in enumerate(calibrated_ce_samples(dtype))
    ],
    large=lambda dtype: (*with_all(CALIBRATED_CE.large(dtype)), True),
    differentiable=(0,),
    vmap=None,
    offset=0,
    nonfinite=[(*with_all(s), True) for s in nonfinite_logits()],
    bad_inputs=[(error, message, (*with_all(a), True)) for error, message, a in BAD_CALLS],
)


def backward_samples(dtype: torch.dtype) -> list[Arguments]:
    """Upstream gradients of a scalar, of rows, expanded ones, of groups; ones among them."""
    rows, one = randn(6, dtype=dtype, seed=5), torch.ones((), dtype=dtype)
    six, target = randn(6, 5, dtype=dtype), labels(6, num_classes=5)
    stack, of_stack = randn(2, 6, 5, dtype=dtype), labels(2, 6, num_classes=5)
    maps, of_maps = randn(2, 5, 3, 2, dtype=dtype), labels(2, 3, 2, num_classes=5)
    return [
        (rows[0], six, target, -100, False),
        (one, six, target, -100, False),
        (rows, six, target, 1, False),
        (rows[:1].expand(6), six, target, -100, False),
        (rows[0], six[0], target[0], -100, False),
        (randn(2, 3, 2, dtype=dtype, seed=5), maps, of_maps, 1, False),
        (one.expand(2, 3, 2), maps, of_maps, -100, False),
        (rows[:2], stack, of_stack, 1, True),
        (randn(2, 6, dtype=dtype), stack, of_stack, 1, True),
        (rows[0], six[:0], target[:0], -100, False),
    ]  # fmt: skip


BAD_BACKWARDS: list[tuple[type[Exception], str, Arguments]] = [
    (ValueError, r"grad_loss must have the loss's shape, \[4\] or \[\], got \[3\]",
     (torch.ones(3), LOGITS, TARGET, -100, False)),
    (ValueError, r"target must have gradient's shape .* \[4\], got \[3\]",
     (torch.ones(()), LOGITS, TARGET[:3], -100, False)),
    (TypeError, "grad_loss must have gradient's dtype, Float, got Double",
     (torch.ones(()).double(), LOGITS, TARGET, -100, False)),
    (ValueError, r"gradient must have shape .* got \[\]",
     (torch.ones(()), torch.ones(()), torch.tensor(0), -100, False)),
]  # fmt: skip

# An upstream nan reaches its own row, and no ignored one.
NONFINITE_UPSTREAM, ONES = torch.tensor([1.0, torch.nan, torch.inf]), torch.ones(3, 5)
NONFINITE_BACKWARDS: list[Arguments] = [
    (NONFINITE_UPSTREAM, ONES, torch.tensor([0, 1, 2]), -100, False),
    (NONFINITE_UPSTREAM, ONES, torch.tensor([0, 1, 1]), 1, False),
]


def gradient_first(arguments: Arguments) -> Arguments:
    return (arguments[1], arguments[0], *arguments[2:])


CALIBRATED_CE_BACKWARD = Operator(
    name="calibrated_ce_backward",
    stem="calibrated_ce_backward",
    family="calibrated_ce",
    documented="internal: csrc/ops/calibrated_ce_backward.h documents it",
    twin=calibrated_ce_backward_twin,
    dtypes=FLOATING,
    samples=backward_samples,
    large=lambda dtype: (
        randn(300, dtype=dtype),
        randn(300, 1000, dtype=dtype),
        labels(300, num_classes=1000),
        3,
        False,
    ),
    differentiable=(0, 1),
    vmap=None,
    offset="a product is not invariant",
    nonfinite=NONFINITE_BACKWARDS,
    bad_inputs=BAD_BACKWARDS,
)

CALIBRATED_CE_BACKWARD_ = Operator(
    name="calibrated_ce_backward_",
    stem="calibrated_ce_backward",
    family="calibrated_ce",
    documented="internal: csrc/ops/calibrated_ce_backward.h documents it",
    twin=lambda gradient, grad_loss, *rest: calibrated_ce_backward_twin(grad_loss, gradient, *rest),
    dtypes=FLOATING,
    samples=lambda dtype: [gradient_first(a) for a in backward_samples(dtype)],
    large=lambda dtype: gradient_first(CALIBRATED_CE_BACKWARD.large(dtype)),
    differentiable="only the last backward through a graph calls it, which records nothing",
    vmap="a gradient under vmap goes through calibrated_ce_backward",
    offset="a product is not invariant",
    nonfinite=[gradient_first(a) for a in NONFINITE_BACKWARDS],
    bad_inputs=[(error, message, gradient_first(a)) for error, message, a in BAD_BACKWARDS],
    mutated=(0,),
)

OPERATORS = (
    CALIBRATED_CE,
    CALIBRATED_CE_FORWARD,
    CALIBRATED_CE_BACKWARD,
    CALIBRATED_CE_BACKWARD_,
)
