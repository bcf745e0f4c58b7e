"""Floco+: Floco, and a personal model for each client (arXiv 2403.03333, section 3).

The personal model is Ditto's, on points of the client's subregion.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import ClassVar

from ..client import Client
from ..config import setting
from ..errors import ConfigError, check_not_negative
from ..flat import FlatModel
from ..training import LocalWork
from .ditto import LAMDA_HELP, PERSONAL, with_personal
from .floco import FAULTS_OF_FLOCO, Floco


@dataclass(frozen=True)
class FlocoPlus(Floco):
    """Floco, and a personal simplex for each client, held near the global one.

    A client that has no copy yet, for it has not taken part, has Floco's model.

    Attributes:
        lamda: lambda, how strongly.
    """

    lamda: float = setting(1.0, LAMDA_HELP)

    keeps: ClassVar[str] = "each client: the centre of its subregion and its personal model"
    faults: ClassVar[Mapping[str, str]] = {
        "floco": f"{FAULTS_OF_FLOCO}; to the personal gradient lamda theta_personal - theta_global "
        "is added, without parentheses"
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        check_not_negative("lamda", self.lamda)
        if self.compat and self.lamda == 0:
            raise ConfigError("lamda: wanted a number > 0 with compat floco, got 0")

    def local_work(self, client: Client) -> Sequence[LocalWork]:
        """The client's personal model, held near the global one; then the global model."""
        anchor_scale = 1 / self.lamda if self.compat else 1.0
        return with_personal(super().local_work(client), self.lamda, anchor_scale)

    def personal_model(
        self, model: FlatModel, client: Client
    ) -> AbstractContextManager[object] | None:
        """The personal model at the centre of the client's subregion."""
        if PERSONAL not in client.models:
            return super().personal_model(model, client)
        return self._personal_model(model, client)

    @contextmanager
    def _personal_model(self, model: FlatModel, client: Client) -> Iterator[None]:
        personal = model.holding(client.models[PERSONAL])
        with personal, super().personal_model(model, client) or nullcontext():
            yield
