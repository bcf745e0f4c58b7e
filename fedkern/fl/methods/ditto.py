"""Ditto: a personal model beside the global one (Li, Hu, Beirami, Smith, arXiv 2012.04221).

The global model is trained as in FedAvg. In the rounds that it takes part in, a client also trains
a model v of its own, whose gradient has lambda (v - w) added, with w the global model it received.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from ..client import Client
from ..config import setting
from ..errors import check_not_negative
from ..flat import FlatModel
from ..training import LocalWork
from .fedavg import WEIGHTING_HELP, FedAvg

LAMDA_HELP = "how strongly personal models are held near the global one"
PERSONAL = "personal"  # of a client's models: its own


@dataclass(frozen=True)
class Ditto(FedAvg):
    """FedAvg, and a personal model for each client, held near the global one.

    A client's personal model starts as the first global model that the client receives.

    Attributes:
        lamda: lambda, how strongly.
    """

    weighting: str = setting("samples", WEIGHTING_HELP)
    lamda: float = setting(1.0, LAMDA_HELP)

    paper: ClassVar[str] = "arXiv 2012.04221"
    keeps: ClassVar[str] = "each client: its personal model"
    faults: ClassVar[Mapping[str, str]] = {}
    personalises: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_not_negative("lamda", self.lamda)

    def local_work(self, client: Client) -> Sequence[LocalWork]:
        """The client's personal model, held near the global one; then the global model."""
        return with_personal(super().local_work(client), self.lamda)

    def personal_model(
        self, model: FlatModel, client: Client
    ) -> AbstractContextManager[object] | None:
        """The personal model; the global one for a client that has not taken part yet."""
        if PERSONAL not in client.models:
            return None
        return model.holding(client.models[PERSONAL])


def with_personal(
    shared: Sequence[LocalWork], lamda: float, anchor_scale: float = 1.0
) -> list[LocalWork]:
    """The same work with a personal model, then the work itself."""
    changes: dict[str, Any] = {"pull": lamda, "anchor_scale": anchor_scale}
    return [
        *(replace(work, purpose=PERSONAL, keeps=PERSONAL, **changes) for work in shared),
        *shared,
    ]
