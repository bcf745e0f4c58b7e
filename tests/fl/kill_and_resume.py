"""Runs that are killed at random moments, or whose disk is full, resumed and compared.

`make torture` and a test run it. It is a program of its own, for it forks: its runs need no imports
of their own, and are over in a second. Its exit status is 0 if every run has ended in the files of
one that nobody disturbed.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import ctypes
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# What runs import when they need it: once for all of them.
import matplotlib.backends.backend_agg
import matplotlib.figure  # noqa: F401
import scipy.stats  # noqa: F401
import torch
import torchmetrics.functional.classification  # noqa: F401

from fedkern import cli
from fedkern.fl.checkpoint import read_checkpoint
from fedkern.fl.model_store import ModelStore

# Personal models in processes, subregions from round 4 on, and moments on the server.
RUN = ["compare", "floco+ --tau 4 --endpoints 5", "fedavg --server-optimizer adam", "--seeds", "1"]
RUN += ["--rounds", "30", "--checkpoint-every", "3", "--workers", "2", "--clients", "12"]
CHECKPOINTS = "checkpoints"  # those that there are


def start(arguments: list[str], log: Path) -> int:
    """A process of the command line; its number."""
    sys.stdout.flush()
    process = os.fork()
    if process:
        return process
    status = 70
    try:
        os.setsid()  # so that all of it can be killed, in case it does not end by itself
        with log.open("ab") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        obey_permissions()
        sys.argv = ["fedkern", *arguments]
        cli.main()
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 0 if end.code is None else 70
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def obey_permissions() -> None:
    """Takes the right to ignore them from this process, which root has."""
    libc = ctypes.CDLL(None, use_errno=True)
    version, capabilities = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    libc.capget(version, capabilities)
    capabilities[0] &= ~0b110  # CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH in what is effective
    if libc.capset(version, capabilities):
        raise OSError(ctypes.get_errno(), "capset")


def finish(process: int) -> int:
    """The exit status of a process that ends by itself."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def kill_after(process: int, seconds: float) -> bool:
    """Whether a process was still there to be killed."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        if os.waitpid(process, os.WNOHANG)[0]:
            return False
        time.sleep(0.001)
    os.kill(process, signal.SIGKILL)
    finish(process)
    return True


def resume(folder: Path) -> list[str]:
    """The command that goes on with what a killed run has left."""
    if (folder / "config.toml").exists():
        return ["compare", "--resume", str(folder)]
    return [*RUN, "--overwrite", "--out", str(folder)]


# ---- what has come of it -------------------------------------------------------------------------


def outcome(folder: Path) -> dict[str, Any]:
    """All of a run's files, but for the seconds that something took."""
    files: dict[str, Any] = {}
    for name in ("config.json", "config.toml", "clients.csv", "clients.png", "curves.png"):
        files[name] = (folder / name).read_bytes()
    files["simplex.png"] = (folder / "simplex.png").read_bytes()
    with (folder / "history.csv").open(newline="") as file:
        files["history.csv"] = [{**row, "seconds": ""} for row in csv.DictReader(file)]
    lines = (folder / "tables.md").read_text().splitlines()
    files["tables.md"] = [line for line in lines if "time" not in line][:5]
    summary = json.loads((folder / "summary.json").read_text())
    for part in (summary, *summary["runs"]):
        del part["seconds"]
    for part in summary["methods"].values():
        del part["seconds_per_round"]
    files["summary.json"] = summary
    paths = sorted((folder / "checkpoints").glob("*/*.checkpoint"))
    files[CHECKPOINTS] = [f"{path.parent.name}/{path.name}" for path in paths]
    files |= {path.parent.name: checkpointed(path) for path in paths}  # of each run the last one
    return files


def checkpointed(path: Path) -> str:
    """A checkpoint's content, every bit of it but for seconds and places, as text."""
    checkpoint = read_checkpoint(path)
    store = ModelStore(path.parent / "clients.models", [checkpoint.models])
    snapshot = vars(checkpoint.snapshot)
    snapshot["rounds"] = [{**vars(round), "seconds": 0} for round in snapshot["rounds"]]
    models = {key: store.read(*key) for key in sorted(checkpoint.models.records)}
    with torch_bits():
        return repr([snapshot, models])


@contextlib.contextmanager
def torch_bits() -> Iterator[None]:
    """While in it, repr shows all bits of tensors."""
    show = torch.Tensor.__repr__
    torch.Tensor.__repr__ = lambda self: f"{self.dtype} {self.tolist()!r}"  # type: ignore[method-assign]
    try:
        yield
    finally:
        torch.Tensor.__repr__ = show  # type: ignore[method-assign]


def differences(folder: Path, expected: dict[str, Any]) -> set[str]:
    """The names of files that are not as expected."""
    found = outcome(folder)
    return {k for k in {*found, *expected} if found.get(k) != expected.get(k)}


# ---- the tortures --------------------------------------------------------------------------------


class Torture:
    """Runs in a folder of their own, compared with one that nobody disturbs."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.draws, self.failures = folder, random.Random(seed), 0
        self.log = folder / "log"
        for warm_up in (True, False):
            began = time.perf_counter()
            shutil.rmtree(folder / "alone", ignore_errors=True)
            status = finish(start([*RUN, "--out", str(folder / "alone")], self.log))
            self.seconds = time.perf_counter() - began
            if status:
                sys.exit(f"the run alone ended with status {status}:\n{self.log.read_text()}")
            if warm_up:
                continue
        self.expected = outcome(folder / "alone")
        print(f"alone: {self.seconds:.2f} s, {len(self.expected)} files", flush=True)

    def check(self, title: str, folder: Path, status: int, *, all_written: bool = True) -> None:
        """Says how a run has ended, and removes it."""
        wrong = differences(folder, self.expected) if status == 0 else {f"status {status}"}
        if not all_written:  # the one before the last is an older one
            wrong.discard(CHECKPOINTS)
        self.failures += bool(wrong)
        print(
            f"{title}: {'NOT THE SAME: ' + ', '.join(wrong) if wrong else 'the same'}", flush=True
        )
        if wrong:
            print(self.log.read_text(), flush=True)
        else:
            shutil.rmtree(folder)
        self.log.unlink()

    def kill(self, number: int) -> None:
        """Kills a run at a random moment, half of the time what goes on with it too, and so on."""
        folder, kills = self.folder / f"killed-{number}", 0
        arguments = [*RUN, "--out", str(folder)]
        while kills == 0 or self.draws.random() < 0.5:
            # Pictures and tables are drawn in the last third.
            moment = self.draws.uniform(0, 0.8 * self.seconds)
            if not kill_after(start(arguments, self.log), moment):
                break
            kills += 1
            arguments = resume(folder)
        last = rounds_of(folder)
        status = finish(start(resume(folder), self.log))
        self.check(f"{number}: killed {kills} times, went on after rounds {last}", folder, status)

    def fill(self, number: int) -> None:
        """Runs on a disk that becomes full; then it has room again."""
        disk = self.folder / f"disk-{number}"
        disk.mkdir()
        kib = self.draws.randrange(100, 1500)
        mount = ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "none", str(disk)]
        subprocess.run(mount, check=True)
        try:
            folder = disk / "run"
            status = finish(start([*RUN, "--out", str(folder)], self.log))
            before = self.readable(folder)
            enlarge = ["mount", "-o", "remount,size=64m", str(disk)]
            subprocess.run(enlarge, check=True)
            again = finish(start(resume(folder), self.log))
            title = f"{number}: disk of {kib} KiB, status {status}, had rounds {before}"
            self.check(title, folder, again, all_written=False)
        finally:
            subprocess.run(["umount", str(disk)], check=True)

    def forbid(self, number: int) -> None:
        """Takes the right to write checkpoints away for a while."""
        folder = self.folder / f"forbidden-{number}"
        process = start([*RUN, "--out", str(folder)], self.log)
        time.sleep(self.draws.uniform(0.2, 0.8) * self.seconds)
        places = [path for path in (folder / "checkpoints").glob("*") if path.is_dir()]
        for path in places:
            path.chmod(0o555)
        time.sleep(0.2 * self.seconds)
        lost = [path.name for path in places if not self.readable(folder, path.name)]
        for path in places:
            path.chmod(0o755)
        status = finish(process)
        title = f"{number}: no right to write for a while, {len(places)} runs, lost {lost}"
        if status == 0:  # the last checkpoints may be among those that could not be written
            status = finish(start(resume(folder), self.log))
        self.check(title, folder, status, all_written=False)

    def readable(self, folder: Path, run: str = "*") -> list[int]:
        """The rounds of the checkpoints in a folder; one that cannot be read ends the torture."""
        found = sorted((folder / "checkpoints").glob(f"{run}/*.checkpoint"))
        return [len(read_checkpoint(path).snapshot.rounds) for path in found]


def rounds_of(folder: Path) -> list[int]:
    """After which rounds there are checkpoints."""
    paths = sorted((folder / "checkpoints").glob("*/*.checkpoint"))
    return [int(path.stem.removeprefix("round-")) for path in paths]


def main() -> None:
    """See above."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--forbids", type=int, default=2)
    parser.add_argument("--disks", type=int, default=0, help="full ones; to mount them takes root")
    parser.add_argument("--seed", type=int, default=None)
    options = parser.parse_args()
    seed = random.randrange(10**6) if options.seed is None else options.seed
    print(f"seed {seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="fedkern-torture-") as folder:
        torture = Torture(Path(folder), seed)
        for number in range(options.kills):
            torture.kill(number)
        for number in range(options.forbids):
            torture.forbid(number)
        for number in range(options.disks):
            torture.fill(number)
    sys.exit(f"{torture.failures} runs did not end as they should" if torture.failures else 0)


if __name__ == "__main__":
    main()
