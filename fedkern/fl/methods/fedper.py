"""FedPer: the last layer stays with the clients (Arivazhagan et al., arXiv 1912.00818).

Clients train the whole model, the server averages all of it but the last layer. There is no global
model to speak of: the server's last layer is the initial one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..config import setting
from ..flat import FlatModel
from ..heads import last_layer
from .fedavg import WEIGHTING_HELP, FedAvg


@dataclass(frozen=True)
class FedPer(FedAvg):
    """FedAvg but for the last layer, of which each client has its own.

    A client that has not taken part yet has the initial one.
    """

    weighting: str = setting("samples", WEIGHTING_HELP)

    paper: ClassVar[str] = "arXiv 1912.00818"
    keeps: ClassVar[str] = "each client: its last layer"
    faults: ClassVar[Mapping[str, str]] = {}
    personalises: ClassVar[bool] = True
    has_global_model: ClassVar[bool] = False

    def private(self, model: FlatModel) -> Tensor | None:
        """The last layer's weight and bias."""
        places = model.places()
        parameters = last_layer(model.module).parameters()
        return torch.cat([places[p].flatten() for p in parameters if p in places])
