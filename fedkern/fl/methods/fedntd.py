"""FedNTD: the global model's view of the other classes is not to be forgotten (Lee et al., arXiv
2106.03097).

Each client minimises its loss plus beta tau^2 KL(q || p), where q and p are the softmax over tau of
the global model's and its own logits without the sample's own class; the rest is FedAvg.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, cast

from torch import Tensor

import fedkern
from fedkern import _library

from ..client import Client
from ..config import setting
from ..errors import ConfigError, check_not_negative
from ..losses import Loss
from ..training import LocalWork
from .fedavg import FedAvg


@dataclass(frozen=True)
class NotTrueDistillation(Loss):
    """A loss, and the distillation beside it."""

    loss: Loss
    beta: float
    tau: float

    needs_teacher: ClassVar[bool] = True

    def constants(self, client: Client) -> tuple[Tensor, ...]:
        """The loss's own."""
        return self.loss.constants(client)

    def __call__(self, logits: Tensor, targets: Tensor, *constants: Tensor) -> Tensor:
        """The sum."""
        *own, teacher = constants
        distillation = fedkern.not_true_distillation(logits, teacher, targets, tau=self.tau)
        return self.loss(logits, targets, *own) + self.beta * distillation

    def gradient(self, logits: Tensor, targets: Tensor, *constants: Tensor) -> Tensor:
        """The gradient for the logits."""
        *own, teacher = constants
        _, gradient = _library.call_not_true_distillation_forward(
            logits, teacher, targets, self.tau, -100, "mean", False, True
        )
        own_gradient = self.loss.gradient(logits, targets, *own)
        return own_gradient.add_(cast(Tensor, gradient), alpha=self.beta)


@dataclass(frozen=True)
class FedNTD(FedAvg):
    """FedAvg with distillation of the classes that a sample does not have.

    Attributes:
        ntd_beta: beta, the weight of the distillation; with 0 it is FedAvg.
        ntd_tau: tau, the temperature.
    """

    ntd_beta: float = setting(1.0, "fedntd: weight of the distillation")
    ntd_tau: float = setting(1.0, "fedntd: temperature of the distillation")

    paper: ClassVar[str] = "arXiv 2106.03097"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_not_negative("ntd_beta", self.ntd_beta)
        if not 1e-30 <= self.ntd_tau <= 1e30:
            raise ConfigError(f"ntd_tau: wanted a number from 1e-30 to 1e30, got {self.ntd_tau}")

    def local_work(self, client: Client) -> Sequence[LocalWork]:
        """SGD on loss and distillation."""
        loss = NotTrueDistillation(self.loss, self.ntd_beta, self.ntd_tau)
        return [replace(work, loss=loss) for work in super().local_work(client)]
