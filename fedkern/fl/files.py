"""Files that are there as a whole or not at all, and what of a tensor goes into a file."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor


def write_whole(path: Path, content: bytes) -> None:
    """Puts a file in its place once all of it is on the disk; until then what was there stays.

    Raises:
        OSError: it could not be written; nothing has changed.
    """
    new = path.with_name(f".{path.name}.new")
    try:
        with new.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    except BaseException:
        with suppress(OSError):
            new.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def bytes_of(tensor: Tensor) -> memoryview:
    """A tensor's numbers in the order of its indices, whatever its type, layout and device."""
    content: memoryview = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data
    return content


def sync_folder(path: Path) -> None:
    """What was renamed or removed in a folder stays so, whatever happens to the machine."""
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
