"""FedRoD: a generic and a personal classifier on the same features (Chen, Chao, arXiv 2107.00778).

The model has two heads. The generic one is trained with the balanced softmax, and averaged with
the body as in FedAvg. The personal one is a client's own: it is trained with cross entropy of the
sum of both heads' logits, with features and generic logits detached; the sum predicts the client.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..client import Client
from ..config import setting
from ..errors import ConfigError
from ..flat import FlatModel
from ..heads import TwoHeads, last_layer
from ..losses import BalancedSoftmaxLoss, CrossEntropy, Loss
from ..training import LocalWork
from .fedavg import WEIGHTING_HELP, FedAvg


@dataclass(frozen=True)
class BothHeads(Loss):
    """A loss of the generic logits, and cross entropy of the personal ones."""

    loss: Loss

    def constants(self, client: Client) -> tuple[Tensor, ...]:
        """Cross entropy's one, then the loss's own."""
        return (*CrossEntropy().constants(client), *self.loss.constants(client))

    def __call__(self, logits: Tensor, targets: Tensor, *constants: Tensor) -> Tensor:
        """The sum; logits [b, 2 C], the generic head's first."""
        generic, personal = logits.chunk(2, dim=1)
        own = CrossEntropy()(generic.detach() + personal, targets, constants[0])
        return self.loss(generic, targets, *constants[1:]) + own

    def gradient(self, logits: Tensor, targets: Tensor, *constants: Tensor) -> Tensor:
        """The gradient for the logits."""
        generic, personal = logits.chunk(2, dim=1)
        own = CrossEntropy().gradient(generic + personal, targets, constants[0])
        return torch.cat([self.loss.gradient(generic, targets, *constants[1:]), own], 1)


@dataclass(frozen=True)
class FedRoD(FedAvg):
    """FedAvg with the balanced softmax, and a personal head for each client.

    The personal head starts as zeros: a client that has not taken part has the global model.

    Attributes:
        loss: of the generic head.
    """

    weighting: str = setting("samples", WEIGHTING_HELP)
    loss: Loss = field(default_factory=BalancedSoftmaxLoss)

    paper: ClassVar[str] = "arXiv 2107.00778"
    keeps: ClassVar[str] = "each client: its personal head"
    faults: ClassVar[Mapping[str, str]] = {}
    personalises: ClassVar[bool] = True

    def prepare(self, model: nn.Module, draws: torch.Generator) -> None:
        """Makes the last layer two heads.

        Raises:
            ConfigError: the last layer is no `torch.nn.Linear`.
        """
        layer = last_layer(model)
        if not isinstance(layer, nn.Linear):
            got = type(layer).__name__
            raise ConfigError(f"model: wanted a Linear layer at the end for fedrod, got {got}")
        TwoHeads.become(layer)

    def private(self, model: FlatModel) -> Tensor | None:
        """The personal head."""
        places = model.places()
        parameters = last_layer(model.module).parameters()
        return torch.cat([places[p][len(p) // 2 :].flatten() for p in parameters if p in places])

    def local_work(self, client: Client) -> Sequence[LocalWork]:
        """SGD on both heads' losses."""
        loss = BothHeads(self.loss)
        return [replace(work, loss=loss) for work in super().local_work(client)]

    def personal_model(
        self, model: FlatModel, client: Client
    ) -> AbstractContextManager[object] | None:
        """The sum of both heads' logits."""
        return _with_both_heads(last_layer(model.module))


@contextmanager
def _with_both_heads(heads: nn.Module) -> Iterator[None]:
    assert isinstance(heads, TwoHeads)
    heads.personal = True
    try:
        yield
    finally:
        heads.personal = False
