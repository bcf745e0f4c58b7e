"""Balanced softmax (Ren et al., arXiv 2007.10740), or logit adjustment (Menon et al., 2007.07314).

log n_c is added to the logits in training, with n the client's class counts; the rest is FedAvg.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from ..losses import BalancedSoftmaxLoss, Loss
from .fedavg import FedAvg


@dataclass(frozen=True)
class BalancedSoftmax(FedAvg):
    """FedAvg with the balanced softmax as the local loss."""

    loss: Loss = field(default_factory=BalancedSoftmaxLoss)

    paper: ClassVar[str] = "arXiv 2007.10740, 2007.07314"
    faults: ClassVar[Mapping[str, str]] = {}
