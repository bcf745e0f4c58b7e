"""Losses: calibrated cross entropy, cross entropy of adjusted logits, not-true distillation."""

from typing import Literal, TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.overrides import has_torch_function

from fedkern import _library

Calibration: TypeAlias = Literal["label", "gradient"]
Reduction: TypeAlias = Literal["none", "mean", "sum"]


def calibrated_ce(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    class_counts: Tensor | None = None,
    calibration: Calibration = "label",
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    r"""FedGA's calibrated cross entropy (arXiv 2412.16582), loss and gradient in one pass.

    Takes the place of :func:`torch.nn.functional.cross_entropy` with class indices as target; equal
    class counts make it exactly that. With logits z, p = softmax(z), class counts n, class weights
    w (default 1), label smoothing e and r_c = 1 - n_c / n_y, the label y of a sample becomes

        t_c = (1 - e) [c = y] + e / C + stop_gradient(p_c) r_c        loss = - sum_c w_c t_c log p_c

    The calibrated label does not sum to one, so the loss may be negative: watch plain cross entropy
    beside it. For w = 1, e = 0 the gradient is p_j (1 + (n_j - sum_c p_c n_c) / n_y) - [j = y]: the
    rarer its label, the harder a sample pushes a common class down.

    Args:
        input: logits, [C], [N, C] or [N, C, d1, ...]; float32, float64, bfloat16 or float16, any
            strides. Half types accumulate in float32. Under autocast it is converted to float32.
            The gradient is kept in this dtype with the mean's 1 / N in it. In float16 it therefore
            saturates to infinity as cross_entropy's would, but sooner where counts differ by more
            than about 1e4 times, and may underflow before any loss scaling: for such counts, or
            large batches, use autocast or bfloat16.
        target: class indices in [0, C), [], [N] or [N, d1, ...]; any integer dtype.
        weight: class weights w, [C], floating.
        class_counts: class counts n, [C], any real dtype: finite, not negative, positive for every
            class that is a label. Only their ratios matter. Default: the histogram of this call's
            labels (all positions of the call together; under data parallelism or gradient
            accumulation, each rank's and each micro-batch's own). A call with a single sample has a
            histogram of one label, which is *not* cross entropy: pass counts there.
        calibration: "label" (the published gradient, above) or "gradient": the same loss value,
            but p_j n_j / n_y - [j = y] is sent back, the idealised form in which a missing class
            gets no push at all. In training "label" is what works.
        ignore_index: a label that counts for nothing: loss, gradient, histogram and mean.
        reduction: "mean" (over the weights of the labels that count, as in cross_entropy), "sum" or
            "none".
        label_smoothing: e, in [0, 1]. The calibration term is not scaled by 1 - e.

    Returns:
        The loss in input's dtype: a scalar, or target's shape for "none". The mean over no sample
        is nan, as in cross_entropy. Derivatives of any order; the calibrated label is a constant in
        all of them. Forward-mode derivatives are refused. Under torch.vmap a stack of calls is one
        call of the fused kernel.

    Raises:
        TypeError: a dtype that is not supported, e.g. class probabilities as target.
        ValueError: a shape, device, count or option that is not as above, or a `weight` or
            `class_counts` that requires grad.
        IndexError: a label outside [0, C). On CUDA bad labels and counts are device-side asserts.
    """
    options = (calibration, ignore_index, reduction, label_smoothing)
    return _calibrated_ce(input, target, weight, class_counts, None, *options)


def logit_adjusted_ce(
    input: Tensor,
    target: Tensor,
    logit_adjustment: Tensor,
    weight: Tensor | None = None,
    *,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    r"""Cross entropy of logits plus a constant per class, loss and gradient in one pass.

    Value and derivatives are those of :func:`torch.nn.functional.cross_entropy` with class indices
    as target, for the logits z + b, which are never written down: b is added when z is read. With
    n the class counts of a client and `prior` the frequencies n / sum(n), b is

        n.log()             balanced softmax (arXiv 2007.10740)
        tau * prior.log()   logit adjustment (arXiv 2007.07314)
        -tau * n ** -0.25   FedLC (arXiv 2209.00189)

    For a class without samples all of them give -inf. That is normal: where it is no label, the
    class has probability 0 and its gradient is exactly 0 (label smoothing, which makes every class
    a label, makes the loss infinite, as in cross_entropy).

    Args:
        input: logits z, [C], [N, C] or [N, C, d1, ...]; float32, float64, bfloat16 or float16, any
            strides. Half types are added to b, and accumulate, in float32. Under autocast it is
            converted to float32.
        target: class indices in [0, C), [], [N] or [N, d1, ...]; any integer dtype.
        logit_adjustment: b, [C], any floating dtype, on input's device. A label whose entry is -inf
            has the loss inf and the gradient p - [j = y], which is finite; a nan or +inf makes
            every row nan: all as in cross_entropy.
        weight: class weights, [C], floating.
        ignore_index: a label that counts for nothing: loss, gradient and mean.
        reduction: "mean" (over the weights of the labels that count, as in cross_entropy), "sum" or
            "none".
        label_smoothing: in [0, 1], as in cross_entropy.

    Returns:
        The loss in input's dtype: a scalar, or target's shape for "none". The mean over no sample
        is nan. Derivatives of any order by input; forward-mode derivatives are refused. Under
        torch.vmap, which may map b, a stack of calls is one call of the fused kernel.

    Raises:
        TypeError: a dtype that is not supported, e.g. class probabilities as target.
        ValueError: a shape, device or option that is not as above, or a `weight` or
            `logit_adjustment` that requires grad.
        IndexError: a label outside [0, C). On CUDA bad labels are device-side asserts.
    """
    # Equal counts make the calibrated loss the plain one.
    counts = torch.ones_like(logit_adjustment)
    options = ("label", ignore_index, reduction, label_smoothing)
    return _calibrated_ce(input, target, weight, counts, logit_adjustment, *options)


def _calibrated_ce(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    class_counts: Tensor | None,
    logit_adjustment: Tensor | None,
    *options: str | float,
) -> Tensor:
    """The operator, called the cheapest way."""
    tensors = (input, target, weight, class_counts)
    # Groups are what vmap makes of a stack of calls.
    arguments = (*tensors, *options, False, logit_adjustment)
    # A straight call costs less than one through torch.ops; but compilers and what imitates tensors
    # need the latter, and it says which argument is of a wrong type.
    if not (torch.compiler.is_compiling() or has_torch_function((*tensors, logit_adjustment))):
        try:  # contextlib.suppress would cost more than this path saves
            return cast(Tensor, _library.call_calibrated_ce(*arguments))
        except TypeError:
            pass
    return cast(Tensor, torch.ops.fedkern.calibrated_ce.default(*arguments))


def not_true_distillation(
    input: Tensor,
    teacher: Tensor,
    target: Tensor,
    *,
    tau: float = 1.0,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""FedNTD's not-true distillation (arXiv 2106.03097), loss and gradient in one pass.

    Keeps what a global model knows of the classes that a sample does not belong to. With logits z,
    the teacher's logits g and the label y, over the classes c != y:

        p = softmax(z / tau), q = softmax(g / tau)        loss = tau^2 sum_c q_c (log q_c - log p_c)

    The gradient by z_j is tau (p_j - q_j), and 0 for j = y. FedNTD adds beta times this loss to
    cross entropy, with the global model at the round's start for a teacher.

    Args:
        input: the student's logits z, [C], [N, C] or [N, C, d1, ...]; float32, float64, bfloat16 or
            float16, any strides. Half types accumulate in float32. Under autocast it is converted
            to float32. The gradient is kept in this dtype with the mean's 1 / N in it: in float16
            it may underflow before any loss scaling; use autocast or bfloat16 for large batches.
        teacher: the teacher's logits g, with input's shape, dtype and device, any strides: a
            constant, which must not require grad.
        target: class indices in [0, C), [], [N] or [N, d1, ...]; any integer dtype.
        tau: the temperature, positive and finite (1e-30 to 1e30).
        ignore_index: a label that counts for nothing: loss, gradient and mean.
        reduction: "mean" (over the samples that count), "sum" or "none".

    Returns:
        The loss in input's dtype: a scalar, or target's shape for "none". The mean over no sample
        is nan. With one class there is no other, and the loss is 0. A class whose q is 0, as where
        g is -inf, adds nothing whatever z is; where only z is -inf, the loss is inf. A sample whose
        z or g is -inf for all c != y is nan. Derivatives of any order by `input`; forward-mode
        derivatives are refused. Under torch.vmap a stack of calls is one call of the fused kernel.

    Raises:
        TypeError: a dtype that is not supported, or not the same for input and teacher.
        ValueError: a shape, device or option that is not as above, or a teacher that requires grad.
        IndexError: a label outside [0, C). On CUDA bad labels are device-side asserts.
    """
    arguments = (
        input,
        teacher,
        target,
        tau,
        ignore_index,
        reduction,
        False,  # grouped: what vmap makes of a stack of calls
    )
    # As in calibrated_ce: a straight call where nothing needs the one through torch.ops.
    if not (torch.compiler.is_compiling() or has_torch_function(arguments[:3])):
        try:
            return cast(Tensor, _library.call_not_true_distillation(*arguments))
        except TypeError:
            pass
    return cast(Tensor, torch.ops.fedkern.not_true_distillation.default(*arguments))


def class_counts(target: Tensor, num_classes: int, ignore_index: int = -100) -> Tensor:
    """How often each class occurs in `target`: what `calibrated_ce` takes as `class_counts`.

    Args:
        target: class indices in [0, num_classes), any shape, any integer dtype.
        num_classes: C.
        ignore_index: a label that is not counted.

    Returns:
        int64 [C], on target's device, without waiting for it.

    Raises:
        TypeError: target is no integer tensor.
        ValueError: num_classes is less than 1.
        IndexError: a label outside [0, C) (on CUDA a device-side assert).
    """
    return cast(Tensor, torch.ops.fedkern.class_counts.default(target, num_classes, ignore_index))


class CalibratedCrossEntropyLoss(nn.Module):
    """`calibrated_ce` as a module, in the place of :class:`torch.nn.CrossEntropyLoss`.

    `weight` and `class_counts` are buffers: they move with the module and are in its state_dict.
    """

    weight: Tensor | None
    class_counts: Tensor | None

    def __init__(
        self,
        weight: Tensor | None = None,
        *,
        class_counts: Tensor | None = None,
        calibration: Calibration = "label",
        ignore_index: int = -100,
        reduction: Reduction = "mean",
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("class_counts", class_counts)
        self.calibration = calibration
        self.ignore_index = ignore_index
        self.reduction = reduction
        self.label_smoothing = label_smoothing

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """The loss of logits `input` and class indices `target`: see `calibrated_ce`."""
        return calibrated_ce(
            input,
            target,
            self.weight,
            class_counts=self.class_counts,
            calibration=self.calibration,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
        )

    def extra_repr(self) -> str:
        return (
            f"calibration={self.calibration!r}, ignore_index={self.ignore_index}, "
            f"reduction={self.reduction!r}, label_smoothing={self.label_smoothing}"
        )
