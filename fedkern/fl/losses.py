"""What a client's SGD may minimise, whatever the method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, cast

import torch
from torch import Tensor

import fedkern
from fedkern import _library

from .client import Client
from .config import setting
from .errors import check_not_negative, unknown_name

CALIBRATIONS = ("label", "gradient")
COUNTS = ("batch", "client")


class Loss(Protocol):
    """A loss and its options: a frozen dataclass, so that workers can be told of it.

    Whatever `constants` returns is passed on with every batch. It must work under `torch.vmap`,
    mapped over all tensors.
    """

    needs_teacher: ClassVar[bool] = False
    """Whether the last argument is what the round's global model makes of the batch, its logits."""

    def constants(self, client: Client) -> tuple[Tensor, ...]:
        """What it needs to know of a client's training data, as many tensors for every client."""

    def __call__(self, logits: Tensor, targets: Tensor, *constants: Tensor) -> Tensor:
        """The scalar to minimise for a batch of a client: a mean over samples.

        Args:
            logits: [b, C].
            targets: class indices, int64 [b]; samples whose target is -100 count for nothing.
            constants: the client's, then those of the method (`LocalWork.constants`), then the
                teacher's logits [b, C], if it needs them.
        """

    def gradient(self, logits: Tensor, targets: Tensor, *constants: Tensor) -> Tensor:
        """The gradient for the logits, which do not require it."""
        logits = logits.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(self(logits, targets, *constants), [logits])
        return gradient


@dataclass(frozen=True)
class CrossEntropy(Loss):
    """Plain softmax cross entropy."""

    def constants(self, client: Client) -> tuple[Tensor, ...]:
        """As many of each class: those make the calibrated cross entropy the plain one."""
        return (torch.ones(client.dataset.num_classes, device=client.indices.device),)

    def __call__(self, logits: Tensor, targets: Tensor, *constants: Tensor) -> Tensor:
        """The mean over samples, in one pass for loss and gradient."""
        return fedkern.calibrated_ce(logits, targets, class_counts=constants[0])

    def gradient(self, logits: Tensor, targets: Tensor, *constants: Tensor) -> Tensor:
        """The gradient for the logits."""
        return fused_gradient(logits, targets, class_counts=constants[0])


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

    def constants(self, client: Client) -> tuple[Tensor, ...]:
        """The client's class counts, unless each batch has its own."""
        return (client.class_counts(),) if self.counts == "client" else ()

    def __call__(self, logits: Tensor, targets: Tensor, *constants: Tensor) -> Tensor:
        """The mean over samples."""
        return fedkern.calibrated_ce(
            logits,
            targets,
            class_counts=constants[0] if constants else None,
            calibration=cast(Any, self.calibration),
        )

    def gradient(self, logits: Tensor, targets: Tensor, *constants: Tensor) -> Tensor:
        """The gradient for the logits."""
        counts = constants[0] if constants else None
        return fused_gradient(logits, targets, class_counts=counts, calibration=self.calibration)


class LogitAdjusted(Loss):
    """Cross entropy of logits to which each class has something added, `adjustment`."""

    def adjustment(self, class_counts: Tensor) -> Tensor:
        """What is added, [C], -inf for nothing of a class, for a client's counts, int64 [C]."""
        raise NotImplementedError

    def constants(self, client: Client) -> tuple[Tensor, ...]:
        """The client's adjustment."""
        return (self.adjustment(client.class_counts()),)

    def __call__(self, logits: Tensor, targets: Tensor, *constants: Tensor) -> Tensor:
        """The mean over samples."""
        return fedkern.logit_adjusted_ce(logits, targets, constants[0])

    def gradient(self, logits: Tensor, targets: Tensor, *constants: Tensor) -> Tensor:
        """The gradient for the logits."""
        equal_counts = torch.ones_like(constants[0])
        return fused_gradient(
            logits, targets, class_counts=equal_counts, logit_adjustment=constants[0]
        )


@dataclass(frozen=True)
class BalancedSoftmaxLoss(LogitAdjusted):
    """Balanced softmax, or logit adjustment (arXiv 2007.10740, 2007.07314): log n_c is added."""

    def adjustment(self, class_counts: Tensor) -> Tensor:
        """The logarithm of the counts."""
        return class_counts.double().log()


@dataclass(frozen=True)
class FedLCLoss(LogitAdjusted):
    """FedLC's calibrated logits (arXiv 2209.00189): lc_tau n_c^(-1/4) is taken off.

    Attributes:
        lc_tau: tau, how much; with 0 it is cross entropy.
    """

    lc_tau: float = setting(1.0, "fedlc's tau, how strongly rare classes' logits are lowered")

    def __post_init__(self) -> None:
        check_not_negative("lc_tau", self.lc_tau)

    def adjustment(self, class_counts: Tensor) -> Tensor:
        """It lowers the logits of rare classes, to -inf for those that the client has not."""
        if self.lc_tau == 0:  # 0 times infinity is nan
            return torch.zeros_like(class_counts, dtype=torch.float64)
        adjustment: Tensor = -self.lc_tau * class_counts.double() ** -0.25
        return adjustment


def fused_gradient(
    logits: Tensor,
    targets: Tensor,
    *,
    class_counts: Tensor | None,
    weight: Tensor | None = None,
    logit_adjustment: Tensor | None = None,
    calibration: str = "label",
) -> Tensor:
    """What `fedkern.calibrated_ce` computes beside the loss; autograd's graph would cost more."""
    _, gradient = _library.call_calibrated_ce_forward(
        logits,
        targets,
        weight,
        class_counts,
        calibration,
        -100,
        "mean",
        0.0,
        False,
        logit_adjustment,
        True,
    )
    return cast(Tensor, gradient)


# Dataclasses that are a `Loss`; their fields are options on the command line.
LOSSES: dict[str, type[Any]] = {
    "cross_entropy": CrossEntropy,
    "calibrated_ce": CalibratedCE,
    "balanced_softmax": BalancedSoftmaxLoss,
    "fedlc": FedLCLoss,
}
