"""Measures of a model on labelled data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fedkern import calibrated_ce
from fedkern.losses import Reduction

from .reading import Reader
from .workers import thread_pool

# Samples a forward pass, by measurement: fewer cost calls, more leave the CPU's caches.
BATCH_SIZE = 250


@dataclass(frozen=True)
class Evaluation:
    """How the global model does on the global test data.

    Attributes:
        samples: how many samples.
        accuracy: share of samples whose largest logit is at the label.
        macro_f1: mean F1 score over the classes that occur among labels or predictions.
        error_asymmetry: mean over the classes present of `error_asymmetry`; 1 is symmetric.
        cross_entropy: plain cross entropy, mean over samples.
        calibration_error: expected calibration error of the largest probability, 15 bins.
        per_class_accuracy: accuracy on the samples of each class; nan for an absent class.
        absent_classes: how many classes no label has; they are left out of `error_asymmetry`.
    """

    samples: int
    accuracy: float
    macro_f1: float
    error_asymmetry: float
    cross_entropy: float
    calibration_error: float
    per_class_accuracy: list[float]
    absent_classes: int


@dataclass(frozen=True)
class LocalEvaluation:
    """How a model, or each client's own, does on the clients' local test data.

    Clients without local test data are left out of all means.

    Attributes:
        model: ``"global"``, one model for all, or ``"personal"``, each client's own.
        mean_accuracy: the clients' accuracies, each of the same weight.
        pooled_accuracy: over all local samples together.
        worst_accuracy: of the client with the lowest.
        lowest_tenth_accuracy: mean over the tenth of the clients (rounded up) with the lowest.
        std_accuracy: standard deviation over the clients (all of them, so it divides by their
            number).
        cross_entropy: plain cross entropy, mean over all local samples.
        calibration_error: expected calibration error of all local samples together, 15 bins.
        samples: of each client, int64 [clients].
        accuracies: of each client, float32 [clients], nan where it has no samples.
        cross_entropies: the same of the mean cross entropy.
    """

    model: str
    mean_accuracy: float
    pooled_accuracy: float
    worst_accuracy: float
    lowest_tenth_accuracy: float
    std_accuracy: float
    cross_entropy: float
    calibration_error: float
    samples: Tensor = field(compare=False, repr=False)
    accuracies: Tensor = field(compare=False, repr=False)
    cross_entropies: Tensor = field(compare=False, repr=False)


def predict(
    model: nn.Module,
    inputs: Tensor,
    indices: Tensor | None = None,
    *,
    batch_size: int = BATCH_SIZE,
    workers: int = 1,
) -> Tensor:
    """A model's logits [n, C] in eval mode, on the CPU.

    There the order of later sums is fixed: the same logits give the same bits.

    Args:
        model: maps inputs [n, ...] to logits [n, C].
        inputs: as a data set stores them, on the model's device; read by a `Reader`.
        indices: which of them, int64 [n], n > 0; all if None.
        batch_size: samples a forward pass; changes no number beyond rounding.
        workers: how many threads call the model, on batches of their own; changes no bit.
    """
    model.eval()
    if indices is None:
        indices = torch.arange(len(inputs), device=inputs.device)
    batches = torch.split(indices, batch_size)
    parts = min(workers, len(batches))

    @torch.no_grad()
    def predicted(part: int) -> list[Tensor]:
        read = Reader(inputs)
        # A copy: logits may be a view of the inputs, whose memory the next batch takes.
        return [model(read(batch)).clone() for batch in batches[part::parts]]

    if parts == 1:
        return torch.cat(predicted(0)).cpu()
    logits: list[Any] = [None] * len(batches)
    with thread_pool(parts) as pool:
        for part, done in enumerate(pool.map(predicted, range(parts))):
            logits[part::parts] = done
    return torch.cat(logits).cpu()


def evaluate(
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    num_classes: int,
    *,
    batch_size: int = BATCH_SIZE,
) -> Evaluation:
    """`measure` of what a model predicts, see `predict`."""
    return measure(predict(model, inputs, batch_size=batch_size), targets, num_classes)


def measure(
    logits: Tensor, targets: Tensor, num_classes: int, *, softmax_twice: bool = False
) -> Evaluation:
    """Evaluates predictions.

    Args:
        logits: [n, num_classes], n > 0, on the CPU.
        targets: class indices, int64 [n].
        num_classes: how many classes the logits have.
        softmax_twice: in the error asymmetry, as FedGA's published code does by mistake.
    """
    # Here, for it takes a second to import.
    from torchmetrics.functional.classification import multiclass_accuracy, multiclass_f1_score

    targets = targets.cpu()
    counts = torch.bincount(targets, minlength=num_classes)
    settings: Any = {"num_classes": num_classes, "validate_args": False}
    recalls = multiclass_accuracy(logits, targets, average="none", **settings)
    probabilities = logits.double().softmax(1)
    shown = probabilities.softmax(1) if softmax_twice else probabilities
    return Evaluation(
        samples=len(targets),
        accuracy=multiclass_accuracy(logits, targets, average="micro", **settings).item(),
        macro_f1=multiclass_f1_score(logits, targets, average="macro", **settings).item(),
        error_asymmetry=_error_asymmetry(shown, targets).nanmean().item(),
        cross_entropy=cross_entropy(logits, targets).item(),
        calibration_error=_calibration_error(probabilities, targets, num_classes),
        per_class_accuracy=recalls.where(counts > 0, torch.nan).tolist(),
        absent_classes=int((counts == 0).sum()),
    )


def measure_local(
    logits: Sequence[Tensor], targets: Sequence[Tensor], num_classes: int, model: str = "global"
) -> LocalEvaluation:
    """Evaluates predictions for the clients' local test data.

    Args:
        logits: for each client [n_k, num_classes] on the CPU; some n_k may be 0, not all.
        targets: for each client class indices, int64 [n_k].
        num_classes: how many classes the logits have.
        model: whose predictions they are, ``"global"`` or ``"personal"``.
    """
    samples = torch.tensor([len(one) for one in targets])
    owners = torch.arange(len(samples)).repeat_interleave(samples)
    pooled_logits, pooled_targets = torch.cat(list(logits)), torch.cat(list(targets)).cpu()

    def by_client(values: Tensor) -> Tensor:
        sums = torch.zeros(len(samples), dtype=torch.float64).index_add_(0, owners, values.double())
        return sums / samples  # nan of no samples

    correct = pooled_logits.argmax(1) == pooled_targets
    losses = cross_entropy(pooled_logits, pooled_targets, reduction="none")
    accuracies = by_client(correct)
    over_clients = spread(accuracies[samples > 0])
    return LocalEvaluation(
        model=model,
        mean_accuracy=over_clients["mean"],
        pooled_accuracy=correct.double().mean().item(),
        worst_accuracy=over_clients["worst"],
        lowest_tenth_accuracy=over_clients["lowest-tenth"],
        std_accuracy=over_clients["std"],
        cross_entropy=losses.mean().item(),
        calibration_error=_calibration_error(
            pooled_logits.double().softmax(1), pooled_targets, num_classes
        ),
        samples=samples,
        accuracies=accuracies.float(),
        cross_entropies=by_client(losses).float(),
    )


def spread(accuracies: Tensor) -> dict[str, float]:
    """How clients' accuracies, [K], differ: see `LocalEvaluation`."""
    ordered = accuracies.sort().values
    return {
        "mean": ordered.mean().item(),
        "worst": ordered[0].item(),
        "lowest-tenth": ordered[: math.ceil(len(ordered) / 10)].mean().item(),
        "std": ordered.std(correction=0).item(),
    }


def cross_entropy(logits: Tensor, targets: Tensor, reduction: Reduction = "mean") -> Tensor:
    """Plain cross entropy by the fused kernel: a fifth of `torch.nn.functional`'s time."""
    equal_counts = logits.new_ones(logits.shape[1])
    return calibrated_ce(logits, targets, class_counts=equal_counts, reduction=reduction)


def _calibration_error(probabilities: Tensor, targets: Tensor, num_classes: int) -> float:
    """Expected calibration error: 15 bins of confidence, weighted by their samples."""
    from torchmetrics.functional.classification import multiclass_calibration_error

    error = multiclass_calibration_error(
        probabilities.float(), targets, num_classes, n_bins=15, norm="l1", validate_args=False
    )
    return error.item()


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
    return _error_asymmetry(logits.double().softmax(1), targets)


def _error_asymmetry(probabilities: Tensor, targets: Tensor) -> Tensor:
    num_classes = probabilities.shape[1]
    pi = probabilities.new_zeros(num_classes, num_classes)
    pi.index_add_(0, targets, probabilities)
    counts = torch.bincount(targets, minlength=num_classes)
    pi /= counts.clamp(min=1).unsqueeze(1)
    pi.fill_diagonal_(0)  # what is left of row c sums to 1 - pi[c, c], without cancellation
    return (pi.sum(1) / pi.sum(0)).where(counts > 0, torch.nan)
