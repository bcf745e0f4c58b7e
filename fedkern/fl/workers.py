"""Workers that train side by side on the CPU: threads, or processes where these are safe.

Threads are held up by each other's Python, the more the shorter a batch is. Processes are not: they
are forked once, so they have model and data without a copy, and are told the rest for each job.
"""

from __future__ import annotations

import mmap
import os
import pickle
import signal
import sys
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from copy import deepcopy
from multiprocessing import get_context
from multiprocessing.connection import Connection, Pipe, wait
from queue import SimpleQueue
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from .client import Client
from .config import RunConfig
from .data import Dataset
from .errors import ConfigError, RunError
from .flat import FlatModel, State
from .training import Job, Trained, Trainer


class Workers(Protocol):
    """Train jobs side by side."""

    def train(self, jobs: Sequence[Job], anchor: Tensor) -> Iterator[Trained]:
        """The results in the order of the jobs; no more than two a worker are in memory."""


def make_workers(trainer: Trainer, count: int, dataset: Dataset, config: RunConfig) -> Workers:
    """Processes for a chain of layers, which calls nobody's code and no autograd; else threads.

    A forked process must not use several threads of torch, nor autograd where there is a GPU.
    """
    if trainer.is_chain and torch.get_num_threads() == 1 and sys.platform == "linux":
        trainer.settle()
        return ForkedWorkers(trainer, count, dataset)
    copies = [FlatModel(deepcopy(trainer.model.module)) for _ in range(count - 1)]
    return ThreadWorkers([trainer, *(Trainer(model, dataset, config) for model in copies)])


# ---- threads -------------------------------------------------------------------------------------


class ThreadWorkers:
    """Threads with a model each."""

    def __init__(self, trainers: Sequence[Trainer]) -> None:
        self._trainers = trainers

    def train(self, jobs: Sequence[Job], anchor: Tensor) -> Iterator[Trained]:
        """See `Workers`."""
        idle: SimpleQueue[Trainer] = SimpleQueue()
        for trainer in self._trainers:
            idle.put(trainer)

        def train(job: Job) -> Trained:
            trainer = idle.get()
            try:
                state, train_loss = trainer.train(job, anchor)
                return Trained(state.copy(), train_loss)
            finally:
                idle.put(trainer)

        pool = thread_pool(len(self._trainers))
        try:
            waiting: deque[Future[Trained]] = deque()
            for job in jobs:
                waiting.append(pool.submit(train, job))
                if len(waiting) == 2 * len(self._trainers):
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def thread_pool(workers: int) -> ThreadPoolExecutor:
    """Threads in which torch's operators use as many threads as in this one."""
    # A new thread's number of them is that of the machine's cores.
    return ThreadPoolExecutor(workers, "worker", torch.set_num_threads, (torch.get_num_threads(),))


# ---- processes -----------------------------------------------------------------------------------


class ForkedWorkers:
    """Processes that were forked from this one; they end with it, or with this object."""

    def __init__(self, trainer: Trainer, count: int, dataset: Dataset) -> None:
        self._anchor = _shared_like(trainer.model.values)
        self._all = [_Forked(trainer, dataset, self._anchor) for _ in range(count)]

    def train(self, jobs: Sequence[Job], anchor: Tensor) -> Iterator[Trained]:
        """See `Workers`."""
        self._anchor.copy_(anchor)
        idle, waiting = list(self._all), deque(enumerate(jobs))
        busy: dict[Connection, tuple[int, _Forked]] = {}
        done: dict[int, Trained | Exception] = {}
        try:
            for number in range(len(jobs)):
                while True:
                    while idle and waiting and waiting[0][0] < number + 2 * len(self._all):
                        which, job = waiting.popleft()
                        worker = idle.pop()
                        worker.send(job, job.start.values is anchor)
                        busy[worker.connection] = which, worker
                    if number in done:
                        break
                    for connection in wait(list(busy)):
                        which, worker = busy.pop(cast(Connection, connection))
                        idle.append(worker)
                        done[which] = worker.receive()
                result = done.pop(number)
                if isinstance(result, Exception):
                    raise result
                yield result
        finally:
            for _, worker in busy.values():
                worker.forget()


class _Forked:
    """One process, and the memory through which parameters go to and fro.

    It ends when the connection is closed, that is with this object.
    """

    def __init__(self, trainer: Trainer, dataset: Dataset, anchor: Tensor) -> None:
        self._values = _shared_like(anchor)
        self.connection, other = Pipe()
        self._process = get_context("fork").Process(
            target=_work,
            args=(trainer, dataset, anchor, self._values, other, self.connection),
            daemon=True,
        )
        with warnings.catch_warnings():  # of other threads: the process uses nothing of theirs
            warnings.simplefilter("ignore", DeprecationWarning)
            self._process.start()
        other.close()  # so that reading ends when the process does

    def send(self, job: Job, from_anchor: bool) -> None:
        if not from_anchor:
            self._values.copy_(job.start.values)
        client = job.client
        message = client.number, client.indices, job.work, job.draws, from_anchor, job.start.buffers
        # Plain pickle: multiprocessing's own would put every tensor into a shared file.
        with suppress(BrokenPipeError):  # `receive` says that the process has ended
            self.connection.send_bytes(pickle.dumps(message))

    def receive(self) -> Trained | Exception:
        """What came of the job that it was sent last."""
        try:
            reply = pickle.loads(self.connection.recv_bytes())
        except (EOFError, ConnectionResetError):
            self._process.join()
            return RunError(
                "workers: wanted a client's update, got the end of the worker's process, exit "
                f"code {self._process.exitcode} (-9: killed, perhaps for want of memory)"
            )
        if isinstance(reply, Exception):
            return reply
        buffers, train_loss = reply
        return Trained(State(self._values.clone(), buffers), train_loss)

    def forget(self) -> None:
        """Takes the result of what it was sent last; nobody wants it."""
        with suppress(EOFError, ConnectionResetError):
            self.connection.recv_bytes()


def _work(
    trainer: Trainer,
    dataset: Dataset,
    anchor: Tensor,
    values: Tensor,
    connection: Connection,
    other: Connection,
) -> None:
    """What a process does: jobs, until the other end of the connection is closed."""
    other.close()  # here; there it is what ends this process
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that asks
    while True:
        try:
            message = connection.recv_bytes()
        except EOFError:
            return
        try:
            reply = pickle.dumps(_reply(trainer, dataset, anchor, values, pickle.loads(message)))
        except Exception as error:
            reply = pickle.dumps(error)
        connection.send_bytes(reply)


def _reply(
    trainer: Trainer, dataset: Dataset, anchor: Tensor, values: Tensor, message: Any
) -> tuple[list[Tensor], Tensor]:
    number, indices, work, draws, from_anchor, buffers = message
    start = State(anchor if from_anchor else values, buffers)
    client = Client(number, dataset, indices, indices[:0])
    state, train_loss = trainer.train(Job(client, work, start, draws), anchor)
    values.copy_(state.values)
    return state.buffers, train_loss


def _shared_like(values: Tensor) -> Tensor:
    """New memory that forked processes share; not a file, whose space may be small."""
    size = values.numel() * values.element_size()
    return torch.frombuffer(mmap.mmap(-1, max(1, size)), dtype=values.dtype, count=values.numel())


# ---- how many ------------------------------------------------------------------------------------


def num_workers(config: RunConfig, device: torch.device) -> int:
    """How many clients are trained side by side; by default as many as the CPU has room for.

    Raises:
        ConfigError: several on a GPU.
    """
    if device.type != "cpu" and (config.workers or 1) > 1:
        raise ConfigError(
            "workers: wanted 1 on a GPU (there engine=vmap trains a round's clients side by side), "
            f"got {config.workers}"
        )
    if config.workers is not None or device.type != "cpu":
        return config.workers or 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min(config.clients_per_round, (cores or 1) // torch.get_num_threads()))
