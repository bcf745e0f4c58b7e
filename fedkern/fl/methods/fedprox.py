"""FedProx: local training is held near the global model (Li et al., arXiv 1812.06127).

Each client minimises its loss plus (mu / 2) |w - w_global|^2; the rest is FedAvg.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import nn

from fedkern.nn import endpoint_parameters

from ..client import Client
from ..config import setting
from ..errors import ConfigError, check_not_negative
from ..training import LocalWork
from .fedavg import FAULTS_OF_FEDGA, FedAvg


@dataclass(frozen=True)
class FedProx(FedAvg):
    """FedAvg with a proximal term.

    Attributes:
        mu: how strongly clients are held near the global model; with 0 it is FedAvg. The default is
            that of FedGA's experiments.
    """

    mu: float = setting(0.001, "fedprox: weight of the proximal term")

    paper: ClassVar[str] = "arXiv 1812.06127"
    faults: ClassVar[Mapping[str, str]] = {
        "fedga": f"{FAULTS_OF_FEDGA}; the norms of w - w_global, a tensor each, are not squared"
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        check_not_negative("mu", self.mu)

    def prepare(self, model: nn.Module, draws: torch.Generator) -> None:
        """Any model will do, but for a simplex with published faults."""
        if self.compat and endpoint_parameters(model):
            raise ConfigError("compat: wanted a model without simplex layers for fedprox, got some")

    def local_work(self, client: Client) -> Sequence[LocalWork]:
        """SGD on the loss and the proximal term, which the fused step adds."""
        evenly = bool(self.compat)
        works = super().local_work(client)
        return [replace(work, pull=self.mu, pulls_evenly=evenly) for work in works]
