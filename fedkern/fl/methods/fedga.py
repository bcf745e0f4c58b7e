"""FedGA: federated averaging with gradient alignment (Xiao, Zuo, Wang, arXiv 2412.16582).

Averaging as in FedAvg; locally, the cross entropy's labels are calibrated by the class counts, so
that a client's gradient no longer pushes rare and missing classes away as hard as frequent ones.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from ..losses import CalibratedCE, Loss
from .fedavg import FedAvg


@dataclass(frozen=True)
class FedGA(FedAvg):
    """FedAvg with the calibrated cross entropy as the local loss."""

    loss: Loss = field(default_factory=CalibratedCE)

    paper: ClassVar[str] = "arXiv 2412.16582"
