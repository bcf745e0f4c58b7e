"""Checkpoints of a run: files from which it goes on to the same bits.

A checkpoint is one file: a line that says what it is, the SHA-256 of what follows, a line of JSON
(what the run's settings are, and what wrote it), and what torch.save makes of tensors, numbers,
strings, lists and dicts. It is put into its place as a whole. Reading runs no code of the file's:
torch.load(weights_only=True). The clients' models lie in a file of their own beside it
(`ModelStore`), where nothing that one of the checkpoints names is written over.
"""

from __future__ import annotations

import hashlib
import io
import json
import platform
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, TypeVar

import torch
from torch import Tensor

import fedkern

from .config import ENGINES
from .errors import ConfigError, RunError
from .evaluation import Evaluation, LocalEvaluation
from .failures import Failure
from .files import write_whole
from .linear import Products, Shape
from .model_store import Kind, ModelStore, Record, Table
from .rounds import Round
from .snapshot import Snapshot

T = TypeVar("T")

FORMAT = 1
MODELS = "clients.models"  # the file beside the checkpoints
KEPT = 2  # the last ones; the older one is for the case that the newer one is damaged
_NAME = re.compile(r"round-(\d{6,9})\.checkpoint")
_MAGIC = re.compile(rb"fedkern checkpoint (\d{1,9})\n")
_DIGEST = 65  # hexadecimal digits of SHA-256, and a line's end
_EVALUATIONS = {
    "evaluation": Evaluation,
    "global_on_local": LocalEvaluation,
    "personal_on_local": LocalEvaluation,
}


class CheckpointError(ConfigError):
    """A file that cannot be gone on from; the message names it and says why."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(
            f"resume: wanted a checkpoint of this version of fedkern, got {path}: {reason}"
        )


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds.

    Attributes:
        about: what was told of the run, and the versions that it ran with.
        snapshot: the run.
        models: where its clients' models lie.
    """

    about: dict[str, Any]
    snapshot: Snapshot
    models: Table


# ---- one file ------------------------------------------------------------------------------------


def write_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Writes one, as a whole or not at all.

    Raises:
        OSError: the disk is full, or refuses; what was there is there.
        RunError: the method keeps what could not be read again.
    """
    snapshot = checkpoint.snapshot
    _check_plain("Server.state", snapshot.server)
    _check_plain("Client.state", snapshot.clients)
    tensors = io.BytesIO()
    torch.save(_plain(snapshot, checkpoint.models), tensors)
    content = b"%s\n%s" % (json.dumps(checkpoint.about).encode(), tensors.getbuffer())
    digest = hashlib.sha256(content).hexdigest().encode()
    write_whole(path, b"fedkern checkpoint %d\n%s\n%s" % (FORMAT, digest, content))


def read_checkpoint(path: Path) -> Checkpoint:
    """Reads one.

    Raises:
        CheckpointError: it is damaged, none of ours, newer than this version, or not what it says.
    """
    about, payload = _read(path)
    try:
        # What `torch.save` wrote on a GPU goes there again.
        content = torch.load(io.BytesIO(payload), weights_only=True)
        return Checkpoint(about, *_from_plain(content))
    except UnpicklingError as error:
        raise CheckpointError(path, "it holds more than tensors, numbers and text") from error
    except Exception as error:  # whatever comes of content that we did not write
        reason = str(error).partition("\n")[0]
        raise CheckpointError(path, f"its content is not that of a run ({reason})") from error


def _read(path: Path) -> tuple[dict[str, Any], bytes]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(path, str(error.strerror or error)) from error
    magic = _MAGIC.match(data)
    if magic is None:
        raise CheckpointError(path, "it does not begin as one")
    if int(magic[1]) != FORMAT:
        raise CheckpointError(
            path, f"its format is {int(magic[1])}, a newer version's, not {FORMAT}"
        )
    start = magic.end() + _DIGEST
    if hashlib.sha256(data[start:]).hexdigest().encode() + b"\n" != data[magic.end() : start]:
        raise CheckpointError(path, "it is damaged or cut off")
    line, _, payload = data[start:].partition(b"\n")
    try:
        about = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(path, "what it tells of the run is no JSON") from error
    if not isinstance(about, dict) or not all(isinstance(part, dict) for part in about.values()):
        raise CheckpointError(path, "it does not tell of a run")
    return about, payload


def versions() -> dict[str, str]:
    """What bits depend on beside the settings."""
    info = fedkern.build_info()
    return {
        "fedkern": str(info["version"]),
        "torch": torch.__version__,
        "cpu_capability": str(info["cpu_capability"]),
        "machine": platform.machine(),
    }


# ---- what the file holds, in what torch.load accepts ---------------------------------------------


def _plain(snapshot: Snapshot, models: Table) -> dict[str, Any]:
    last = len(snapshot.rounds)
    return {
        **vars(snapshot),
        "rounds": [_plain_round(round, round.number == last) for round in snapshot.rounds],
        "products": [[*shape, name] for shape, name in snapshot.products.items()],
        "models": [
            [client, name, record.offset, record.checksum, [[*kind] for kind in record.kinds]]
            for (client, name), record in models.records.items()
        ],
    }


def _check_plain(name: str, value: Any) -> None:
    """Refuses what `torch.load` would refuse, while it is there."""
    if isinstance(value, dict):
        for key, part in value.items():
            _check_plain(f"{name}[{key!r}]", part)
    elif type(value) in (list, tuple):
        for part in value:
            _check_plain(name, part)
    elif not (value is None or type(value) in (Tensor, int, float, bool, str)):
        raise RunError(
            f"{name}: wanted tensors, numbers, text, lists and dicts, for checkpoints, "
            f"got {type(value).__name__}"
        )


def _from_plain(content: Any) -> tuple[Snapshot, Table]:
    """The reverse; what does not have the form of it raises."""
    models = {}
    for client, name, offset, checksum, kinds in content.pop("models"):
        own = tuple(_kind(*kind) for kind in kinds)
        record = {"offset": offset, "kinds": own, "checksum": checksum}
        models[client, name] = _checked(Record, record)
    content["rounds"] = tuple(map(_round, content["rounds"]))
    content["products"] = {Shape(*shape): name for *shape, name in content["products"]}
    snapshot = _checked(Snapshot, content)
    if not Products.__members__.keys() >= {*snapshot.products.values()}:
        raise ValueError("products: wanted names of implementations")
    if snapshot.engine["engine"] not in (*ENGINES, "flower"):
        raise ValueError("engine: wanted the name of one")
    if [round.number for round in snapshot.rounds] != [*range(1, len(snapshot.rounds) + 1)]:
        raise ValueError("rounds: wanted all from the first on")
    return snapshot, Table(models)


def _kind(dtype: torch.dtype, shape: Sequence[int], device: str) -> Kind:
    like = torch.empty((*shape,), dtype=dtype, device="meta")
    return Kind(like.dtype, (*like.shape,), str(torch.device(device)))


def _plain_round(round: Round, whole: bool) -> dict[str, Any]:
    """A round, without figures of single clients unless the `whole` of it is wanted."""
    plain = {**vars(round), "failures": [[*failure] for failure in round.failures]}
    for name in _EVALUATIONS:
        if plain[name] is not None:
            values = vars(plain[name])
            plain[name] = {
                key: value if whole or not isinstance(value, Tensor) else value.new_empty(0)
                for key, value in values.items()
            }
    return plain


def _round(plain: Mapping[str, Any]) -> Round:
    own = {**plain, "failures": [Failure(*failure) for failure in plain["failures"]]}
    for name, kind in _EVALUATIONS.items():
        if own[name] is not None:
            own[name] = _checked(kind, own[name])
    return _checked(Round, own)


def _checked(kind: type[T], values: Mapping[str, Any]) -> T:
    """A dataclass of these values, where they are of the types that are easily told."""
    for field in fields(kind):  # type: ignore[arg-type]
        wanted = _TYPES.get(str(field.type), object)
        if not isinstance(value := values[field.name], wanted):
            raise TypeError(f"{field.name}: wanted {field.type}, got {type(value).__name__}")
    return kind(**values)


_TYPES: dict[str, Any] = {
    "int": int,
    "int | None": int,
    "float": (int, float),
    "str": str,
    "Tensor": Tensor,
    "list[float]": list,
    "dict[str, Any]": dict,
    "dict[str, Tensor]": dict,
    "dict[int, dict[str, Any]]": dict,
}


# ---- those of a run ------------------------------------------------------------------------------


class Checkpoints:
    """The checkpoints of one run, in a folder of their own; the last two are kept.

    A run that goes on whenever it is started again::

        checkpoints = fl.Checkpoints(folder, {"config": vars(config)}, 10, config.rounds, print)
        checkpoints.resume()
        clients = fl.make_clients(dataset, partition, checkpoints.store)
        start, keep = checkpoints.start, checkpoints.keep
        for round in fl.simulate(method, model, clients, config, start=start, keep=keep):
            ...

    Args:
        folder: need not exist.
        about: of the run, for `Checkpoint.about`: what must be the same when it is gone on with.
        every: rounds from one to the next; 0 for none at all, and no file.
        rounds: of the whole run; after the last one there is one, too.
        say: is told what could not be read or written, a line.

    Attributes:
        store: where the clients' models lie.
        start: what the run goes on from; None for its beginning.
    """

    def __init__(
        self,
        folder: Path,
        about: Mapping[str, Any],
        every: int,
        rounds: int,
        say: Callable[[str], object],
    ) -> None:
        self.start: Snapshot | None = None
        self.store = ModelStore(folder / MODELS if every else None)
        self._folder, self._every, self._rounds, self._say = folder, every, rounds, say
        self._about = {**about, "versions": versions()}
        self._latest: tuple[Snapshot, Table] | None = None
        self._written: dict[int, Table] = {}  # what is in the folder, by number of the round

    def resume(self) -> None:
        """Goes on from the newest checkpoint that is whole, if there is any.

        Raises:
            ConfigError: the run is another one, or has gone further than it is now to go.
            CheckpointError: there are checkpoints, but none is whole.
        """
        found: list[Checkpoint] = []
        refused: list[CheckpointError] = []
        for path in reversed(_paths(self._folder).values()):
            try:
                checkpoint = read_checkpoint(path)
                _check_same(checkpoint.about, self._about, path)
                store = ModelStore(self._folder / MODELS)
                _check_models(store, checkpoint.models, path)
                found.append(checkpoint)
            except CheckpointError as error:
                refused.append(error)
        if refused and not found:
            raise refused[0]
        for problem in refused:
            self._say(str(problem))
        if not found:
            return
        self.start = found[0].snapshot
        done = len(self.start.rounds)
        if done > self._rounds:
            raise ConfigError(
                f"rounds: wanted at least the {done} that are done, got {self._rounds}"
            )
        for name, here in self._about["versions"].items():
            there = found[0].about.get("versions", {}).get(name)
            if there != here:
                self._say(f"resume: {name} was {there} and is {here}: bits may differ from now on")
        self._written = {len(one.snapshot.rounds): one.models for one in found}
        self.store = ModelStore(self.store.path, [*self._written.values()])
        self._latest = self.start, found[0].models

    def keep(self, snapshot: Snapshot) -> None:
        """Takes note of a round's end, and writes it down if it is due."""
        if not self._every:
            return
        self._latest = snapshot, self.store.table()
        done = len(snapshot.rounds)
        if done % self._every == 0 or done == self._rounds:
            self.save()

    def save(self) -> None:
        """Writes the latest round down; what fails is said, and what was there stays."""
        if self._latest is None:
            return
        snapshot, models = self._latest
        done = len(snapshot.rounds)
        try:
            if done not in self._written:
                self._write(snapshot, models)
            for number in sorted(self._written)[:-KEPT]:
                del self._written[number]  # and its models' places are free
            for number, path in _paths(self._folder).items():  # more after a kill at this place
                if number not in self._written:
                    path.unlink()
        except OSError as error:
            self._say(
                f"checkpoint of round {done} in {self._folder}: {error.strerror or error}; "
                f"there are those of rounds {sorted(self._written) or 'none'}"
            )

    def _write(self, snapshot: Snapshot, models: Table) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        self.store.sync()
        for record in models.records.values():
            if record.checksum is None:
                record.checksum = self.store.checksum(record)
        done = len(snapshot.rounds)
        path = self._folder / f"round-{done:06d}.checkpoint"
        write_checkpoint(path, Checkpoint(self._about, snapshot, models))
        self._written[done] = models


def remove_checkpoints(folder: Path) -> None:
    """Removes a run's checkpoints and its clients' models, and the folder if it is empty."""
    for path in [*_paths(folder).values(), *folder.glob(MODELS)]:
        path.unlink()
    with suppress(OSError):
        folder.rmdir()


def _paths(folder: Path) -> dict[int, Path]:
    """A run's checkpoints by the number of the round after which they were written, in order."""
    found = [(_NAME.fullmatch(path.name), path) for path in folder.glob("round-*.checkpoint")]
    return dict(sorted((int(match[1]), path) for match, path in found if match))


def _check_same(there: Mapping[str, Any], here: Mapping[str, Any], path: Path) -> None:
    """Refuses a checkpoint of a run with other settings, by the first one's name."""
    for part, values in json.loads(json.dumps(here)).items():  # as it was written
        for name, value in values.items() if part != "versions" else ():
            before = there.get(part, {}).get(name)
            if repr(before) != repr(value):
                raise ConfigError(f"{name}: wanted {before!r} as in {path}, got {value!r}")


def _check_models(store: ModelStore, models: Table, path: Path) -> None:
    """Refuses a checkpoint whose clients' models are not what they were."""
    for (client, name), record in models.records.items():
        try:
            whole = store.checksum(record) == record.checksum
        except OSError as error:
            raise CheckpointError(path, f"its clients' models cannot be read ({error})") from error
        if not whole:
            raise CheckpointError(path, f"client {client}'s {name} model in {MODELS} is damaged")
