"""What a client's SGD may minimise, whatever the method."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch.nn.functional as F
from torch import Tensor

import fedkern

from .client import Client
from .config import setting
from .errors import unknown_name

LossFunction = Callable[[Tensor, Tensor], Tensor]

CALIBRATIONS = ("label", "gradient")
COUNTS = ("batch", "client")


class Loss(Protocol):
    """A loss and its options."""

    def for_client(self, client: Client) -> LossFunction:
        """Maps a batch's logits and targets of this client to the scalar to minimise."""


@dataclass(frozen=True)
class CrossEntropy:
    """Plain softmax cross entropy."""

    def for_client(self, client: Client) -> LossFunction:
        """Maps a batch's logits and targets to the scalar to minimise."""
        return F.cross_entropy


@dataclass(frozen=True)
class CalibratedCE:
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

    def for_client(self, client: Client) -> LossFunction:
        """Maps a batch's logits and targets of this client to the scalar to minimise."""
        counts = client.class_counts() if self.counts == "client" else None
        return partial(fedkern.calibrated_ce, class_counts=counts, calibration=self.calibration)  # type: ignore[arg-type]


# Dataclasses that are a `Loss`; their fields are options on the command line.
LOSSES: dict[str, type[Any]] = {"cross_entropy": CrossEntropy, "calibrated_ce": CalibratedCE}
