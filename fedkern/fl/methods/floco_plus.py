"""Floco+: Floco, and a personal model for each client (arXiv 2403.03333, section 3).

The personal model is Ditto's, on points of the client's subregion.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace

from torch import nn

from fedkern.nn import subregion

from ..client import Client
from ..config import RunConfig, setting
from ..seeding import Draws
from ..state import holding, state_tensors
from .base import Update
from .ditto import LAMDA_HELP, PERSONAL, check_lamda, train_personal
from .floco import Floco


@dataclass(frozen=True)
class FlocoPlus(Floco):
    """Floco, and a personal copy of the whole simplex for each client, held near the global one.

    A client that has no copy yet, for it has not taken part, has Floco's model.

    Attributes:
        lamda: lambda, how strongly.
    """

    lamda: float = setting(1.0, LAMDA_HELP)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_lamda(self.lamda)

    def client_update(
        self, model: nn.Module, client: Client, config: RunConfig, draws: Draws
    ) -> Update:
        """Trains the client's personal model, then `model`, which holds the global state."""
        alpha = replace(draws, work="personal")("alpha")
        with subregion(model, **self.region(client), generator=alpha):
            train_personal(model, client, self.loss, self.lamda, config, draws)
        return super().client_update(model, client, config, draws)

    def personal_model(
        self, model: nn.Module, client: Client
    ) -> AbstractContextManager[object] | None:
        """The personal model at the centre of the client's subregion."""
        if PERSONAL not in client.state:
            return super().personal_model(model, client)
        return self._personal_model(model, client)

    @contextmanager
    def _personal_model(self, model: nn.Module, client: Client) -> Iterator[None]:
        personal = holding(state_tensors(model), client.state[PERSONAL])
        with personal, super().personal_model(model, client) or nullcontext():
            yield
