"""Floco+: Floco, and a personal model for each client (arXiv 2403.03333, section 3).

The personal model is Ditto's, on points of the client's subregion.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

from ..client import Client
from ..config import setting
from ..flat import FlatModel
from ..training import LocalWork
from .ditto import LAMDA_HELP, PERSONAL, check_lamda, with_personal
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

    def local_work(self, client: Client) -> Sequence[LocalWork]:
        """The client's personal model, held near the global one; then the global model."""
        return with_personal(super().local_work(client), self.lamda)

    def personal_model(
        self, model: FlatModel, client: Client
    ) -> AbstractContextManager[object] | None:
        """The personal model at the centre of the client's subregion."""
        if PERSONAL not in client.state:
            return super().personal_model(model, client)
        return self._personal_model(model, client)

    @contextmanager
    def _personal_model(self, model: FlatModel, client: Client) -> Iterator[None]:
        personal = model.holding(client.state[PERSONAL])
        with personal, super().personal_model(model, client) or nullcontext():
            yield
