"""The twin of calibrated_ce: the published formula through a dense, detached label."""

import torch
from torch import Tensor
from torch.nn import functional as F

from fedkern.reference.class_counts import class_counts as count


def calibrated_ce(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    class_counts: Tensor | None = None,
    calibration: str = "label",
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    logit_adjustment: Tensor | None = None,
) -> Tensor:
    """The same value and derivatives as `fedkern.calibrated_ce`, for the same arguments.

    `logit_adjustment`, [C], is added to the logits, as by `fedkern.logit_adjusted_ce`.
    Computes in input's dtype, with as many [N, C] intermediates as it takes.
    """
    class_dim = 0 if input.dim() == 1 else 1
    num_classes = input.shape[class_dim]
    logits = input.movedim(class_dim, -1).reshape(-1, num_classes)
    if logit_adjustment is not None:
        logits = logits + logit_adjustment.to(logits.dtype)
    labels = target.reshape(-1).long()
    keep = labels != ignore_index
    labels = torch.where(keep, labels, 0)  # any class will do for a row that counts for nothing

    counts = count(target, num_classes, ignore_index) if class_counts is None else class_counts
    n = counts.to(logits.dtype)
    w = torch.ones_like(n) if weight is None else weight.to(logits.dtype)
    n_y = torch.where(keep, n[labels], 1)

    log_p = F.log_softmax(logits, dim=1)
    p = log_p.exp()
    one_hot = F.one_hot(labels, num_classes).to(logits.dtype)
    smoothed = (1 - label_smoothing) * one_hot + label_smoothing / num_classes
    r = (n_y[:, None] - n) / n_y[:, None]
    t = smoothed + p.detach() * r  # the calibrated label
    loss = -_products(w * t, log_p).sum(1)
    if calibration == "gradient":
        loss = _with_gradient_of(loss, _aligned(logits, log_p, w * smoothed, n / n_y[:, None]))
    loss = torch.where(keep, loss, 0)

    if reduction == "none":
        return loss.reshape(target.shape)
    if reduction == "sum":
        return loss.sum()
    return loss.sum() / torch.where(keep, w[labels], 0).sum()


def _products(factor: Tensor, value: Tensor) -> Tensor:
    """factor * value, with 0 * -inf = 0."""
    return factor * torch.where(factor == 0, 0, value)


def _aligned(logits: Tensor, log_p: Tensor, weighted_label: Tensor, ratio: Tensor) -> Tensor:
    """A value per row whose gradient by z_j is W p_j n_j / n_y - w_j s_j.

    Cross entropy gives W p_j - w_j s_j; a constant times z_j adds what is missing.
    """
    label_sum = weighted_label.sum(1, keepdim=True)
    missing = (label_sum * log_p.exp() * (ratio - 1)).detach()
    return (_products(missing, logits) - _products(weighted_label, log_p)).sum(1)


def _with_gradient_of(value: Tensor, gradient: Tensor) -> Tensor:
    return value.detach() + gradient - gradient.detach()
