"""The clients' own models, in one memory-mapped file: however many, they take no memory."""

from __future__ import annotations

import mmap
import os
import zlib
from collections.abc import Iterator, MutableMapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, NamedTuple
from weakref import WeakSet

import torch
from torch import Tensor

from .errors import RunError
from .files import bytes_of
from .flat import State

_ALIGNMENT = 64  # bytes
_LEAST_ROOM = 16  # states: the file grows by so many, or by a quarter


class Kind(NamedTuple):
    """What a tensor in the file is."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    device: str

    @property
    def num_bytes(self) -> int:
        """Of its numbers."""
        return self.dtype.itemsize * torch.Size(self.shape).numel()


@dataclass(eq=False)
class Record:
    """Where a state lies in the file: its tensors, values and then buffers, one after the other.

    Attributes:
        offset: of the first one.
        kinds: of the tensors.
        checksum: CRC-32 of all of it; None until it has been asked for.
    """

    offset: int
    kinds: tuple[Kind, ...]
    checksum: int | None = None

    @cached_property
    def offsets(self) -> list[int]:
        """Of the tensors, and of what follows."""
        sizes = [kind.num_bytes + -kind.num_bytes % _ALIGNMENT for kind in self.kinds]
        return list(accumulate(sizes, initial=self.offset))

    @property
    def end(self) -> int:
        """The offset of what follows."""
        return self.offsets[-1]


@dataclass(eq=False)
class Table:
    """Where every client's models lie, by client and name.

    While the object exists, nothing is written over what it names.
    """

    records: dict[tuple[int, str], Record]


class ModelStore:
    """States by client and name.

    A state is never written over the one before, nor over what a `Table` names: what a checkpoint
    names is whole, whenever the process is killed.

    Args:
        path: of the file, which need not exist; None for a temporary one.
        tables: of the checkpoints that name records in the file, that of what there is first.
    """

    def __init__(self, path: Path | None = None, tables: Sequence[Table] = ()) -> None:
        self.path = path
        self._records = dict(tables[0].records) if tables else {}
        self._tables = WeakSet(tables)
        self._gaps: list[tuple[int, int]] = []  # from, to
        self._file: IO[bytes] | None = None
        self._map: mmap.mmap | None = None

    def table(self) -> Table:
        """What there is now."""
        table = Table(dict(self._records))
        self._tables.add(table)
        return table

    def __contains__(self, key: tuple[int, object]) -> bool:
        return key in self._records

    def names(self, client: int) -> list[str]:
        """Of a client's states."""
        return [name for owner, name in self._records if owner == client]

    def read(self, client: int, name: str) -> State:
        """A copy of a state.

        Raises:
            KeyError: there is none.
        """
        record = self._records[client, name]
        values, *buffers = map(self._tensor, record.kinds, record.offsets)
        return State(values, buffers)

    def write(self, client: int, name: str, state: State) -> None:
        """Keeps a copy of a state.

        Raises:
            RunError: the disk is full, or refuses.
        """
        tensors = [state.values, *state.buffers]
        kinds = tuple(Kind(t.dtype, (*t.shape,), str(t.device)) for t in tensors)
        try:
            size = Record(0, kinds).end
            record = Record(self._place(size), kinds)
            for tensor, offset in zip(tensors, record.offsets, strict=False):
                self._write(bytes_of(tensor), offset)
        except OSError as error:
            raise RunError(
                f"models of clients: wanted room for them in {self.path or 'a temporary file'}, "
                f"got: {error.strerror or error}"
            ) from error
        self._records[client, name] = record

    def delete(self, client: int, name: str) -> None:
        """Forgets a state."""
        del self._records[client, name]

    def sync(self) -> None:
        """Waits until all that was written is on the disk."""
        if self._file is not None:
            os.fsync(self._file.fileno())

    def checksum(self, record: Record) -> int:
        """CRC-32 of what the file has there.

        Raises:
            OSError: it does not have so much, or cannot be read.
        """
        if record.end == record.offset:
            return 0
        with memoryview(self._mapped(record.end)) as content:
            return zlib.crc32(content[record.offset : record.end])

    def _tensor(self, kind: Kind, offset: int) -> Tensor:
        if kind.num_bytes == 0:
            return torch.empty(kind.shape, dtype=kind.dtype, device=kind.device)
        content = self._mapped(offset + kind.num_bytes)
        count = torch.Size(kind.shape).numel()
        values = torch.frombuffer(content, dtype=kind.dtype, count=count, offset=offset)
        return values.view(kind.shape).to(kind.device, copy=True)

    def _write(self, content: memoryview, offset: int) -> None:
        # Not through the map: a full disk would kill the process.
        while content:
            written = os.pwrite(self._opened().fileno(), content, offset)
            content, offset = content[written:], offset + written

    def _opened(self) -> IO[bytes]:
        if self._file is None:
            if self.path is None:
                self._file = TemporaryFile(prefix="fedkern-")  # noqa: SIM115
            else:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                number = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)  # never cut off
                self._file = os.fdopen(number, "r+b", 0)
        return self._file

    def _mapped(self, end: int) -> mmap.mmap:
        """The file's first bytes, at least up to `end`."""
        if self._map is None or len(self._map) < end:
            number = self._opened().fileno()
            size = os.fstat(number).st_size
            if size < end:
                raise OSError(f"wanted {end} bytes in {self.path}, got {size}")
            self._map = mmap.mmap(number, size)
        return self._map

    def _place(self, size: int) -> int:
        """Takes the first gap of so many bytes."""
        for look_again in (True, False):
            for number, (start, end) in enumerate(self._gaps):
                if end - start >= size:
                    self._gaps[number] = (start + size, end)
                    return start
            if look_again:
                self._find_gaps(size)
        raise AssertionError("some gap is large enough")

    def _find_gaps(self, size: int) -> None:
        """Finds what no table names; if that is not much, there is more behind it all."""
        named = {
            id(r): r for t in (Table(self._records), *self._tables) for r in t.records.values()
        }
        self._gaps, last, free = [], 0, 0
        for record in sorted(named.values(), key=lambda record: record.offset):
            if record.offset > last:
                self._gaps.append((last, record.offset))
                free += record.offset - last
            last = max(last, record.end)
        enough = max(_LEAST_ROOM * size, (last - free) // 4)
        if free < enough or not any(end - start >= size for start, end in self._gaps):
            self._gaps.append((last, last + enough))
            number = self._opened().fileno()
            if os.fstat(number).st_size < last + enough:
                os.truncate(number, last + enough)  # what is not written takes no room on the disk


class ClientModels(MutableMapping[str, State]):
    """A client's states in a store, by name: what is read is a copy, what is written is copied."""

    def __init__(self, store: ModelStore, client: int) -> None:
        self._store, self._client = store, client

    def __getitem__(self, name: str) -> State:
        return self._store.read(self._client, name)

    def __setitem__(self, name: str, state: State) -> None:
        self._store.write(self._client, name, state)

    def __delitem__(self, name: str) -> None:
        self._store.delete(self._client, name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._store.names(self._client))

    def __len__(self) -> int:
        return len(self._store.names(self._client))

    def __contains__(self, name: object) -> bool:
        return (self._client, name) in self._store
