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
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection, Pipe, wait
from queue import SimpleQueue
from typing import Any, Protocol

import torch
from torch import Tensor

from .client import Client
from .config import RunConfig
from .data import Dataset
from .errors import ConfigError
from .failures import ERROR, OUT_OF_MEMORY, Failure, attempt, check_finite, failed
from .flat import FlatModel, State
from .ranks import local_ranks
from .training import Job, Trained, Trainer


class Workers(Protocol):
    """Train jobs side by side."""

    def train(self, jobs: Sequence[Job], anchor: Tensor) -> Iterator[Trained | Failure]:
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

    def train(self, jobs: Sequence[Job], anchor: Tensor) -> Iterator[Trained | Failure]:
        """See `Workers`."""
        idle: SimpleQueue[Trainer] = SimpleQueue()
        for trainer in self._trainers:
            idle.put(trainer)

        def train(trainer: Trainer, job: Job) -> Trained:
            state, train_loss = check_finite(trainer.train(job, anchor))
            return Trained(state.copy(), train_loss)

        def train_with_idle(job: Job) -> Trained | Failure:
            trainer = idle.get()
            try:
                return attempt(partial(train, trainer, job), job)
            finally:
                idle.put(trainer)

        pool = thread_pool(len(self._trainers))
        try:
            waiting: deque[Future[Trained | Failure]] = deque()
            for job in jobs:
                waiting.append(pool.submit(train_with_idle, job))
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


_ENDED = (EOFError, OSError)  # of a connection whose other end is gone


class ForkedWorkers:
    """Processes that were forked from this one; they end with it, or with this object.

    Each has two jobs at a time while there are many, so that none waits for this process. One that
    dies costs the job it was at; another one is forked in its place.
    """

    def __init__(self, trainer: Trainer, count: int, dataset: Dataset) -> None:
        self._anchor = _shared_like(trainer.model.values)
        self._fork = partial(_Forked, trainer, dataset, self._anchor)
        self._all = [self._fork() for _ in range(count)]

    def train(self, jobs: Sequence[Job], anchor: Tensor) -> Iterator[Trained | Failure]:
        """See `Workers`."""
        for worker in self._all:
            worker.forget()
        self._anchor.copy_(anchor)
        waiting = deque(enumerate(jobs))
        done: dict[int, Trained | Failure | Exception] = {}
        for number in range(len(jobs)):
            self._hand_out(waiting, number + 2 * len(self._all), anchor)
            while number not in done:
                done.update(self._received(waiting))
                self._hand_out(waiting, number + 2 * len(self._all), anchor)
            result = done.pop(number)
            if isinstance(result, Exception):
                raise result
            yield result

    def _hand_out(self, waiting: deque[tuple[int, Job]], end: int, anchor: Tensor) -> None:
        """Sends jobs before `end`: to each worker one, and a second one but for the last jobs.

        Those are for whoever is free first.
        """
        while waiting and waiting[0][0] < end:
            place = min(range(len(self._all)), key=lambda place: len(self._all[place].sent))
            worker = self._all[place]
            if len(worker.sent) >= (2 if len(waiting) > len(self._all) else 1):
                return
            if not worker.sent and worker.has_ended():
                worker = self._all[place] = self._fork()
            number, job = waiting.popleft()
            worker.send(number, job, job.start.values is anchor)

    def _received(
        self, waiting: deque[tuple[int, Job]]
    ) -> Iterator[tuple[int, Trained | Failure | Exception]]:
        """Waits for results, and numbers of their jobs; what a dead process had not begun waits."""
        ready = wait([worker.connection for worker in self._all if worker.sent])
        for worker in self._all:
            if worker.connection in ready:
                try:
                    yield worker.receive()
                except _ENDED:
                    (number, job), *others = worker.forget()
                    waiting.extendleft(reversed(others))
                    yield number, worker.failure(job)


class _Forked:
    """One process, and the memory through which parameters go to and fro, for two jobs.

    It ends when the connection is closed, that is with this object.

    Attributes:
        connection: what is ready when a result has come.
        sent: the jobs that it has been sent, and their numbers, whose results have not come.
    """

    def __init__(self, trainer: Trainer, dataset: Dataset, anchor: Tensor) -> None:
        self.sent: deque[tuple[int, Job]] = deque()
        self._values = _shared_like(anchor), _shared_like(anchor)
        self._jobs = 0  # sent so far: they take turns with the memory
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

    def send(self, number: int, job: Job, from_anchor: bool) -> None:
        """Sends it a job; no more than two before their results have come."""
        turn = self._jobs % 2
        if not from_anchor:
            self._values[turn].copy_(job.start.values)
        self._jobs += 1
        self.sent.append((number, job))
        client = job.client
        # NumPy's arrays are pickled in a fraction of a tensor's time.
        message = turn, from_anchor, client.number, client.indices.numpy(), job.work, job.draws
        # Plain pickle: multiprocessing's own would put every tensor into a shared file.
        with suppress(*_ENDED):  # `receive` finds it out
            self.connection.send_bytes(pickle.dumps(message))

    def receive(self) -> tuple[int, Trained | Failure | Exception]:
        """The number of the job that was sent first, and what came of it.

        Raises:
            EOFError, OSError: the process has ended, which was at that job.
        """
        reply = pickle.loads(self.connection.recv_bytes())
        values = self._values[(self._jobs - len(self.sent)) % 2]
        number, _ = self.sent.popleft()
        if isinstance(reply, Failure | Exception):
            return number, reply
        return number, Trained(State(values.clone(), []), torch.tensor(reply, dtype=values.dtype))

    def forget(self) -> list[tuple[int, Job]]:
        """Takes the results that nobody asked for; those that will not come, it returns."""
        try:
            while self.sent:
                self.receive()
        except _ENDED:
            self._process.join()  # its connection is closed a little earlier
        lost = [*self.sent]
        self.sent.clear()
        return lost

    def has_ended(self) -> bool:
        """Whether the process is no more."""
        return not self._process.is_alive()

    def failure(self, job: Job) -> Failure:
        """That of the client at whose job the process ended."""
        code = self._process.exitcode
        if code == -signal.SIGKILL:
            return failed(job, OUT_OF_MEMORY, f"its process was killed, exit code {code}")
        return failed(job, ERROR, f"its process ended, exit code {code}")


def _work(
    trainer: Trainer,
    dataset: Dataset,
    anchor: Tensor,
    values: tuple[Tensor, Tensor],
    connection: Connection,
    other: Connection,
) -> None:
    """What a process does: jobs, until the other end of the connection is closed."""
    other.close()  # here; there it is what ends this process
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that asks
    # So is SIGTERM, but this is how Python ends it: between jobs, that no client seems to fail.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    while True:
        try:
            message = connection.recv_bytes()
        except (EOFError, ConnectionResetError):
            return
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        try:
            reply = pickle.dumps(_reply(trainer, dataset, anchor, values, pickle.loads(message)))
        except Exception as error:  # no client's
            reply = pickle.dumps(error)
        with suppress(BrokenPipeError):  # who asked has been interrupted, and is gone
            connection.send_bytes(reply)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


def _reply(
    trainer: Trainer,
    dataset: Dataset,
    anchor: Tensor,
    values: tuple[Tensor, Tensor],
    message: Any,
) -> float | Failure:
    """The training loss; the parameters are in the memory whose turn it is."""
    turn, from_anchor, number, indices, work, draws = message
    start = State(anchor if from_anchor else values[turn], [])
    samples = torch.from_numpy(indices)
    client = Client(number, dataset, samples, samples[:0])
    job = Job(client, work, start, draws)

    def train() -> float:
        state, train_loss = check_finite(trainer.train(job, anchor))
        values[turn].copy_(state.values)
        return train_loss.item()

    return attempt(train, job)


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
    cores = (cores or 1) // local_ranks()
    return max(1, min(config.clients_per_round, cores // torch.get_num_threads()))
