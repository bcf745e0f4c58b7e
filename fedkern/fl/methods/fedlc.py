"""FedLC: logits calibrated by the client's class counts (Zhang et al., arXiv 2209.00189).

tau n_c^(-1/4) is taken off the logits in training; the rest is FedAvg.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from ..losses import FedLCLoss, Loss
from .fedavg import FedAvg


@dataclass(frozen=True)
class FedLC(FedAvg):
    """FedAvg with logits calibrated by class counts in the local loss."""

    loss: Loss = field(default_factory=FedLCLoss)

    paper: ClassVar[str] = "arXiv 2209.00189"
    faults: ClassVar[Mapping[str, str]] = {}
