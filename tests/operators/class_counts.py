"""The entry of class_counts."""

import torch
from torch import Tensor

import fedkern
from fedkern import reference
from operators._entry import Operator, labels


def class_counts_twin(
    target: Tensor, num_classes: int, ignore_index: int = -100, grouped: bool = False
) -> Tensor:
    if not grouped:
        return reference.class_counts(target, num_classes, ignore_index)
    rows = [reference.class_counts(t, num_classes, ignore_index) for t in target]
    return torch.stack(rows) if rows else torch.zeros(0, num_classes, dtype=torch.long)


CLASS_COUNTS = Operator(
    name="class_counts",
    stem="class_counts",
    family="class_counts",
    documented=fedkern.class_counts,
    twin=class_counts_twin,
    dtypes=(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8),
    samples=lambda dtype: [
        (labels(7, num_classes=5).to(dtype), 5),
        (labels(3, 4, num_classes=5).to(dtype), 5, 2),
        (labels(2, 600, num_classes=3).to(dtype), 100, 1, True),
        (labels(num_classes=3).to(dtype), 3),
        (labels(0, num_classes=3).to(dtype), 3),
        (labels(0, 4, num_classes=3).to(dtype), 3, -100, True),
    ],
    large=lambda dtype: (labels(200_000, num_classes=10).to(dtype), 10),
    differentiable="counts of integers have no derivative",
    vmap=None,
    offset="labels are no coordinates",
    nonfinite="integers are finite",
    bad_inputs=[
        (TypeError, "target must hold class indices.*got Float", (torch.zeros(3), 2)),
        (TypeError, "got Bool", (torch.zeros(3, dtype=torch.bool), 2)),
        (ValueError, "num_classes must be at least 1, got 0", (torch.zeros(3).long(), 0)),
        (ValueError, "must have groups", (torch.tensor(0), 2, -100, True)),
        (IndexError, r"\[0, 2\), got 2 at position 1", (torch.tensor([0, 2]), 2)),
    ],
)

OPERATORS = (CLASS_COUNTS,)
