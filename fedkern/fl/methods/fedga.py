"""FedGA: federated averaging with gradient alignment (Xiao, Zuo, Wang, arXiv 2412.16582).

Averaging as in FedAvg; locally, the cross entropy's labels are calibrated by the class counts, so
that a client's gradient no longer pushes rare and missing classes away as hard as frequent ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import fedkern

from ..config import setting
from ..errors import unknown_name
from ..training import Client, LossFunction
from .fedavg import FedAvg

CALIBRATIONS = ("label", "gradient")
COUNTS = ("batch", "client")


@dataclass(frozen=True)
class FedGA(FedAvg):
    """FedAvg with the calibrated cross entropy as the local loss.

    Attributes:
        calibration: ``"label"`` (the published code) or ``"gradient"`` (the idealised form); see
            `fedkern.calibrated_ce`.
        counts: whose class counts: of each ``"batch"`` (the published code) or of all the data of
            the ``"client"``.
    """

    calibration: str = setting("label", "fedga's gradient: label or gradient")
    counts: str = setting("batch", "fedga's class counts: of the batch or of the client")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.calibration not in CALIBRATIONS:
            raise unknown_name("calibration", self.calibration, CALIBRATIONS)
        if self.counts not in COUNTS:
            raise unknown_name("counts", self.counts, COUNTS)

    def loss(self, client: Client) -> LossFunction:
        """The calibrated cross entropy with the batch's or the client's class counts."""
        counts = None
        if self.counts == "client":
            labels = client.targets[client.indices]
            counts = fedkern.class_counts(labels, client.num_classes)
        return partial(fedkern.calibrated_ce, class_counts=counts, calibration=self.calibration)  # type: ignore[arg-type]
