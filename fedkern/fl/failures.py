"""What a round goes on without: clients that fail, and why."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch

from .errors import ConfigError, RunError
from .flat import all_finite
from .training import Job, Trained

CAUSES = ("no data", "injected", "error", "not finite", "out of memory", "no reply", "refused")
NO_DATA, INJECTED, ERROR, NOT_FINITE, OUT_OF_MEMORY, NO_REPLY, REFUSED = CAUSES

# Of RuntimeErrors: of torch's CPU allocator, of cuBLAS and cuDNN, of C++.
_WANT_OF_MEMORY = ("can't allocate memory", "ALLOC_FAILED", "std::bad_alloc")

T = TypeVar("T")


class Failure(NamedTuple):
    """A client that is left out.

    Attributes:
        client: its number.
        cause: one of `CAUSES`; the last two only of clients elsewhere.
        message: one line.
    """

    client: int
    cause: str
    message: str

    def __str__(self) -> str:
        return f"client {self.client} was left out: {self.cause}: {self.message}"


def attempt(train: Callable[[], T], job: Job) -> T | Failure:
    """What `train` returns, or the failure of the client in whose job it raised an error.

    Raises:
        ConfigError, RunError: those are not a client's.
    """
    try:
        return train()
    except (ConfigError, RunError):
        raise
    except Exception as error:
        failure = failure_of(job, error)
    # Not before, for the error holds what was on the stack.
    if failure.cause == OUT_OF_MEMORY:
        torch.cuda.empty_cache()  # which does nothing where CUDA is not in use
    return failure


def failure_of(job: Job, error: Exception) -> Failure:
    """What an error in a job was; the message says where it was raised, if that is not clear."""
    kind, text = type(error).__name__, str(error).partition("\n")[0]
    if isinstance(error, FloatingPointError):
        return failed(job, NOT_FINITE, text)
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(sign in str(error) for sign in _WANT_OF_MEMORY)
    ):
        return failed(job, OUT_OF_MEMORY, text or kind)
    *_, place = traceback.extract_tb(error.__traceback__)
    return failed(job, ERROR, f"{kind}: {text} ({Path(place.filename).name}:{place.lineno})")


def failed(job: Job, cause: str, message: str) -> Failure:
    """The failure of a job's client; the message says which of its jobs it was."""
    work = f"{job.draws.work}: " if job.draws.work else ""
    return Failure(job.client.number, cause, work + message)


def check_finite(trained: Trained) -> Trained:
    """Refuses nan and infinity, in one pass and with one wait for the device.

    Raises:
        FloatingPointError: the values, a floating-point buffer or the loss have such.
    """
    if not all_finite(trained.train_loss, trained.state.values, *trained.state.buffers):
        raise FloatingPointError(
            "wanted finite parameters, buffers and training loss, got nan or infinity; a lower lr "
            "or clip may help"
        )
    return trained
