"""Freed memory stays with the process."""

from __future__ import annotations

import ctypes
from contextlib import suppress
from functools import cache

# Of mallopt in glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_MOST = 2**25  # what glibc itself would grow its threshold to, at most


@cache
def keep_freed_memory() -> None:
    """Lets malloc keep what is freed for the next batch, where it is glibc's; once a process.

    By default it returns a large part of a convolutional network's activations to the system after
    each batch. The next one pays for them in page faults.
    """
    with suppress(AttributeError, OSError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_TRIM_THRESHOLD, 2**30)
        mallopt(_MMAP_THRESHOLD, _MOST)
