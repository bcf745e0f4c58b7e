"""The processes that share a run's clients: ranks of torch.distributed, which torchrun starts.

Every rank has all clients and the same global model, and trains its share of a round's clients. All
that comes of it is summed in one all-reduce, and what clients keep goes to all ranks: after a round
they are in the same state.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from .errors import RunError
from .flat import State

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """All processes of a run, as one of them sees them; by default it is alone.

    Attributes:
        rank: this one's number, from 0.
        size: how many there are.
        device: where tensors are when they are sent.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = torch.device("cpu")  # noqa: RUF009

    def share(self, things: Sequence[T]) -> Sequence[T]:
        """This rank's share of things that all ranks have in the same order."""
        return things[self.rank :: self.size]

    def sum(self, tensors: Sequence[Tensor]) -> None:
        """Puts the sums over all ranks, in float64, in the place of tensors: one all-reduce."""
        if self.size == 1:
            return
        row = torch.cat([tensor.to(self.device, torch.float64).flatten() for tensor in tensors])
        self._call(dist.all_reduce, row)
        totals = torch.split(row, [tensor.numel() for tensor in tensors])
        for tensor, total in zip(tensors, totals, strict=True):
            tensor.copy_(total.view_as(tensor))

    def collect(self, things: list[T]) -> list[T]:
        """The things of all ranks, in their order; tensors must be on the CPU."""
        if self.size == 1:
            return things
        lists: list[list[T]] = [[]] * self.size
        self._call(dist.all_gather_object, lists, things)
        return [thing for one in lists for thing in one]

    def send(self, state: State, owner: int) -> State:
        """A rank's state, on all ranks; the others' have the same shapes."""
        sent = [tensor.to(self.device, copy=True) for tensor in (state.values, *state.buffers)]
        for tensor in sent:
            self._call(dist.broadcast, tensor, owner)
        values, *buffers = sent
        return State(values, buffers)

    def send_object(self, thing: T) -> T:
        """The first rank's thing, on all ranks."""
        if self.size == 1:
            return thing
        things = [thing]
        self._call(dist.broadcast_object_list, things, 0)
        return things[0]

    def _call(self, function: Callable[..., Any], *arguments: Any) -> None:
        try:
            function(*arguments)
        except RuntimeError as error:
            reason = str(error).partition("\n")[0]
            raise RunError(
                f"ranks: wanted an answer of all {self.size}, but one has ended: {reason}"
            ) from error


@contextmanager
def joined_ranks(device: torch.device) -> Iterator[Ranks]:
    """The ranks that torchrun has started, or one alone, while in it.

    Args:
        device: of the run; on a GPU each rank of a machine takes its own, if there are enough.
    """
    if not dist.is_torchelastic_launched():
        yield Ranks()
        return
    own_gpu = device.type == "cuda" and torch.cuda.device_count() >= local_ranks()
    if own_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if own_gpu else "gloo")
    ranks = Ranks(
        dist.get_rank(), dist.get_world_size(), device if own_gpu else torch.device("cpu")
    )
    yield ranks
    dist.destroy_process_group()  # not after an error: it would wait for the others


def local_ranks() -> int:
    """How many ranks share this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if dist.is_torchelastic_launched() else 1
