"""What a client's SGD may minimise, whatever the method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import Tensor

import fedkern
from fedkern import _library

from .client import Client
from .config import setting
from .errors import unknown_name

CALIBRATIONS = ("label", "gradient")
COUNTS = ("batch", "client")


class Loss(Protocol):
    """A loss and its options."""

    def class_counts(self, client: Client) -> Tensor | None:
        """What it needs to know of a client: class counts, [num_classes], or nothing."""

    def __call__(self, logits: Tensor, targets: Tensor, class_counts: Tensor | None) -> Tensor:
        """The scalar to minimise for a batch of a client: a mean over samples.

        Samples whose target is -100 count for nothing. It must work under `torch.vmap`, mapped over
        all arguments.
        """

    def gradient(self, logits: Tensor, targets: Tensor, class_counts: Tensor | None) -> Tensor:
        """The gradient for the logits, which do not require it."""
        logits = logits.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(self(logits, targets, class_counts), [logits])
        return gradient


@dataclass(frozen=True)
class CrossEntropy(Loss):
    """Plain softmax cross entropy."""

    def class_counts(self, client: Client) -> Tensor:
        """As many of each class: those make the calibrated cross entropy the plain one."""
        return torch.ones(client.dataset.num_classes, device=client.indices.device)

    def __call__(self, logits: Tensor, targets: Tensor, class_counts: Tensor | None) -> Tensor:
        """The mean over samples, in one pass for loss and gradient."""
        return fedkern.calibrated_ce(logits, targets, class_counts=class_counts)

    def gradient(self, logits: Tensor, targets: Tensor, class_counts: Tensor | None) -> Tensor:
        """The gradient for the logits."""
        return _gradient(logits, targets, class_counts, "label")


@dataclass(frozen=True)
class CalibratedCE(Loss):
    """FedGA's calibrated cross entropy (arXiv 2412.16582), `fedkern.calibrated_ce`.

    Attributes:
        calibration: ``"label"`` (the published code) or ``"gradient"`` (the idealised form).
        counts: whose class counts: of each ``"batch"`` (the published code) or of all the data of
            the ``"client"``.
    """

    calibration: str = setting("label", "calibrated_ce's gradient: label or gradient")
    counts: str = setting("batch", "calibrated_ce's class counts: of the batch or of the client")

    def __post_init__(self) -> None:
        if self.calibration not in CALIBRATIONS:
            raise unknown_name("calibration", self.calibration, CALIBRATIONS)
        if self.counts not in COUNTS:
            raise unknown_name("counts", self.counts, COUNTS)

    def class_counts(self, client: Client) -> Tensor | None:
        """The client's, unless each batch has its own."""
        return client.class_counts() if self.counts == "client" else None

    def __call__(self, logits: Tensor, targets: Tensor, class_counts: Tensor | None) -> Tensor:
        """The mean over samples."""
        return fedkern.calibrated_ce(
            logits, targets, class_counts=class_counts, calibration=cast(Any, self.calibration)
        )

    def gradient(self, logits: Tensor, targets: Tensor, class_counts: Tensor | None) -> Tensor:
        """The gradient for the logits."""
        return _gradient(logits, targets, class_counts, self.calibration)


def _gradient(
    logits: Tensor, targets: Tensor, class_counts: Tensor | None, calibration: str
) -> Tensor:
    """What the fused operator computes beside the loss; autograd's graph for it would cost more."""
    _, gradient = _library.call_calibrated_ce_forward(
        logits, targets, None, class_counts, calibration, -100, "mean", 0.0, False, None, True
    )
    return cast(Tensor, gradient)


# Dataclasses that are a `Loss`; their fields are options on the command line.
LOSSES: dict[str, type[Any]] = {"cross_entropy": CrossEntropy, "calibrated_ce": CalibratedCE}
