"""The twin of `fedkern.not_true_distillation`: the C - 1 other logits gathered, then softmaxes."""

import torch
from torch import Tensor
from torch.nn import functional as F


def not_true_distillation(
    input: Tensor,
    teacher: Tensor,
    target: Tensor,
    *,
    tau: float = 1.0,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    """The same value and derivatives as `fedkern.not_true_distillation`, for the same arguments.

    Computes in input's dtype, with as many [N, C - 1] intermediates as it takes.
    """
    class_dim = 0 if input.dim() == 1 else 1
    num_classes = input.shape[class_dim]
    labels = target.reshape(-1).long()
    keep = labels != ignore_index
    labels = torch.where(keep, labels, 0)  # any class will do for a row that counts for nothing
    not_true = torch.arange(num_classes, device=labels.device) != labels[:, None]

    def others(logits: Tensor) -> Tensor:
        rows = logits.movedim(class_dim, -1).reshape(-1, num_classes)
        return rows[not_true].reshape(len(labels), num_classes - 1) / tau

    log_p = F.log_softmax(others(input), dim=1)
    log_q = F.log_softmax(others(teacher), dim=1)
    q = log_q.exp()
    loss = tau**2 * (q * torch.where(q == 0, 0, log_q - log_p)).sum(1)
    loss = torch.where(keep, loss, 0)

    if reduction == "none":
        return loss.reshape(target.shape)
    return loss.sum() / keep.sum() if reduction == "mean" else loss.sum()
