"""Measures of a model on labelled data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Evaluation:
    """How well a model does on one set of data.

    Attributes:
        data: which data, e.g. ``"test"``.
        samples: how many samples.
        accuracy: share of samples whose largest logit is at the label.
        macro_f1: mean F1 score over the classes that occur among labels or predictions.
        error_asymmetry: mean over the classes present of `error_asymmetry`; 1 is symmetric.
        cross_entropy: plain cross entropy, mean over samples.
        per_class_accuracy: accuracy on the samples of each class; nan for an absent class.
        absent_classes: how many classes no label has; they are left out of `error_asymmetry`.
    """

    data: str
    samples: int
    accuracy: float
    macro_f1: float
    error_asymmetry: float
    cross_entropy: float
    per_class_accuracy: list[float]
    absent_classes: int


def evaluate(
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    num_classes: int,
    *,
    data: str = "test",
    batch_size: int = 1000,
) -> Evaluation:
    """Evaluates a model, in eval mode, batch by batch.

    Args:
        model: maps inputs [n, ...] to logits [n, num_classes].
        inputs: float32 [n, ...] on the model's device, n > 0.
        targets: class indices, int64 [n].
        num_classes: how many classes the logits have.
        data: what the data are called in the result.
        batch_size: samples a forward pass; changes no number beyond rounding.
    """
    # Here, for it takes a second to import.
    from torchmetrics.functional.classification import multiclass_accuracy, multiclass_f1_score

    model.eval()
    with torch.inference_mode():
        # The sums on the CPU, where their order is fixed: the same logits give the same bits.
        logits = torch.cat([model(batch) for batch in torch.split(inputs, batch_size)]).cpu()
        targets = targets.cpu()
        counts = torch.bincount(targets, minlength=num_classes)
        settings: Any = {"num_classes": num_classes, "validate_args": False}
        recalls = multiclass_accuracy(logits, targets, average="none", **settings)
        return Evaluation(
            data=data,
            samples=len(targets),
            accuracy=multiclass_accuracy(logits, targets, average="micro", **settings).item(),
            macro_f1=multiclass_f1_score(logits, targets, average="macro", **settings).item(),
            error_asymmetry=error_asymmetry(logits, targets).nanmean().item(),
            cross_entropy=F.cross_entropy(logits, targets).item(),
            per_class_accuracy=recalls.where(counts > 0, torch.nan).tolist(),
            absent_classes=int((counts == 0).sum()),
        )


def error_asymmetry(logits: Tensor, targets: Tensor) -> Tensor:
    """Per class, the probability it loses over the probability it takes (FedGA, arXiv 2412.16582).

    With pi[c, j] the mean predicted probability of class j over the samples of class c,

        EA_c = (1 - pi[c, c]) / (sum_c' pi[c', c] - pi[c, c])

    (The published code applies the softmax twice; here it is applied once.)

    Args:
        logits: [n, C].
        targets: class indices, int64 [n].

    Returns:
        float64 [C]: 1 is symmetric, above 1 the class is predicted too rarely. nan for a class that
        no target has; inf where no other class's samples give the class any probability.
    """
    num_classes = logits.shape[1]
    probabilities = logits.double().softmax(1)
    pi = probabilities.new_zeros(num_classes, num_classes)
    pi.index_add_(0, targets, probabilities)
    counts = torch.bincount(targets, minlength=num_classes)
    pi /= counts.clamp(min=1).unsqueeze(1)
    pi.fill_diagonal_(0)  # what is left of row c sums to 1 - pi[c, c], without cancellation
    return (pi.sum(1) / pi.sum(0)).where(counts > 0, torch.nan)
