"""Threads that work side by side on the CPU."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import torch

from .config import RunConfig
from .errors import ConfigError


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


def thread_pool(workers: int) -> ThreadPoolExecutor:
    """Threads in which torch's operators use as many threads as in this one."""
    # A new thread's number of them is that of the machine's cores.
    return ThreadPoolExecutor(workers, "worker", torch.set_num_threads, (torch.get_num_threads(),))
