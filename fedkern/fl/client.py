"""A client: its data, and what it keeps from one round to the next."""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fedkern import class_counts

from .data import Dataset
from .flat import State
from .model_store import ClientModels, ModelStore
from .partition import Partition
from .reading import sent


@dataclass(eq=False)
class Client:
    """A client and its data: positions in a data set that all clients share.

    Attributes:
        number: its place among the clients, from 0.
        dataset: where its samples are.
        indices: its training samples, int64 [n_k], on the data set's device.
        test_indices: its local test samples, int64, may be empty.
        state: what is kept with this client between rounds, by name (its subregion, its weight):
            small things, replaced and not changed in place; empty before the first round.
        models: the same of models and parts of them (a personal model, private parameters, buffers
            of its own). They lie in a file: what is read is a copy.
    """

    number: int
    dataset: Dataset
    indices: Tensor
    test_indices: Tensor
    state: dict[str, Any] = field(default_factory=dict)
    models: MutableMapping[str, State] = field(
        default_factory=lambda: ClientModels(ModelStore(), 0)
    )

    def __len__(self) -> int:
        return len(self.indices)

    def order(self, draws: torch.Generator) -> Tensor:
        """Its training samples in a new random order: `indices` permuted, int64 [n_k]."""
        permutation = torch.randperm(len(self), generator=draws)
        return self.indices.index_select(0, sent(permutation, self.indices.device))

    def class_counts(self) -> Tensor:
        """How many training samples it has of each class: int64 [num_classes]."""
        return class_counts(self.dataset.y_train[self.indices], self.dataset.num_classes)


def make_clients(
    dataset: Dataset, partition: Partition, store: ModelStore | None = None
) -> list[Client]:
    """New clients of a data set, a partition's in their order.

    They have no local test samples if the partition has not shared the test set out.

    Args:
        dataset: where their samples are.
        partition: which of them each client has.
        store: where their models lie; by default in a temporary file, in the folder that TMPDIR
            names.
    """
    store = store or ModelStore()
    device = dataset.y_train.device
    nothing = torch.empty(0, dtype=torch.int64)
    test_indices = partition.test_indices or [nothing] * len(partition.indices)
    return [
        Client(
            number,
            dataset,
            own.to(device),
            own_test.to(device),
            models=ClientModels(store, number),
        )
        for number, (own, own_test) in enumerate(zip(partition.indices, test_indices, strict=True))
    ]
