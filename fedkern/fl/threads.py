"""Threads that call torch side by side."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import torch


def thread_pool(workers: int) -> ThreadPoolExecutor:
    """Threads in which torch's operators use as many threads as in this one."""
    # A new thread's number of them is that of the machine's cores.
    return ThreadPoolExecutor(workers, "worker", torch.set_num_threads, (torch.get_num_threads(),))
