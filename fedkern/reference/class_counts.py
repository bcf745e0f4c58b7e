"""The twin of `fedkern.class_counts`."""

import torch
from torch import Tensor


def class_counts(target: Tensor, num_classes: int, ignore_index: int = -100) -> Tensor:
    """How often each class occurs in `target`, int64 [num_classes]."""
    labels = target.flatten().long()
    return torch.bincount(labels[labels != ignore_index], minlength=num_classes)
