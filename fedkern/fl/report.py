"""What a run leaves behind: history.csv as it goes, then clients, a summary, a table, plots."""

from __future__ import annotations

import csv
import fcntl
import json
import math
from collections.abc import Iterable, Sequence
from functools import partial
from hashlib import blake2b
from pathlib import Path
from statistics import fmean
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from .checkpoint import remove_checkpoints
from .client import Client
from .errors import ConfigError
from .methods.floco import CENTER
from .partition import Partition
from .results import MEASURES, TARGET_ACCURACY, Result, figures, measure, methods_of, tables
from .rounds import Round

HISTORY_COLUMNS = (
    "method",
    "seed",
    "round",
    "seconds",
    "train_loss",
    "clients",
    "failed",
    *MEASURES,
)
CLIENT_COLUMNS = (
    "method",
    "seed",
    "client",
    "train_samples",
    "test_samples",
    "dominant_class",
    "global_on_local_accuracy",
    "global_on_local_cross_entropy",
    "personal_on_local_accuracy",
    "personal_on_local_cross_entropy",
    "subregion_center",
)


CHECKPOINTS = "checkpoints"  # the folder of the runs' checkpoints, one folder for each


def file_name(*titles: str) -> str:
    """What methods and their options are called in a path, of at most 120 characters."""
    name = "-".join(title.replace(" --", "-").replace(" ", "-") for title in titles)
    if len(name) > 120:
        name = f"{name[:103]}-{blake2b(name.encode(), digest_size=8).hexdigest()}"
    return name


class RunFolder:
    """The folder of a run: a context manager that creates it and holds history.csv open.

    Args:
        path: the folder; created on entering, not before.
        overwrite: replace a run that lies there.
        resumed: go on with it: its files are written anew, and its checkpoints stay.

    Raises:
        ConfigError: a run lies there already (on construction), or the folder cannot be written
            (on entering).
    """

    FILES = (  # beside history.csv
        "config.toml",
        "config.json",
        "clients.csv",
        "summary.json",
        "curves.png",
        "clients.png",
        "simplex.png",
        "tables.md",
    )

    def __init__(self, path: Path, *, overwrite: bool = False, resumed: bool = False) -> None:
        self.path, self.resumed = path, resumed
        for name in ("history.csv", CHECKPOINTS):
            if (path / name).exists() and not (overwrite or resumed):
                raise ConfigError(
                    f"out: wanted a folder without a run, got {path}, which holds a {name} "
                    "(--resume goes on with it, --overwrite replaces it)"
                )

    def __enter__(self) -> RunFolder:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._history = _CsvFile(self.path / "history.csv")
            if not self.resumed:
                for name in self.FILES:
                    (self.path / name).unlink(missing_ok=True)
                for folder in (self.path / CHECKPOINTS).glob("*/"):
                    remove_checkpoints(folder)
            self._clients = _CsvFile(self.path / "clients.csv")
            self._history.begin(HISTORY_COLUMNS)
            self._clients.begin(CLIENT_COLUMNS)
        except BlockingIOError as error:
            raise ConfigError(
                f"out: wanted a folder that no other process writes to, got {self.path}"
            ) from error
        except OSError as error:
            reason = error.strerror or error
            raise ConfigError(
                f"out: wanted a folder to write in, got {self.path}: {reason}"
            ) from error
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._history.close()
        self._clients.close()

    def add(self, method: str, seed: int, *rounds: Round) -> None:
        """Writes rounds to history.csv; what does not exist stays empty."""
        self._history.add([method, seed, *_history_row(round)] for round in rounds)

    def add_clients(self, method: str, seed: int, clients: Sequence[Client], round: Round) -> None:
        """Writes a line a client to clients.csv, as they are after the round, an evaluated one."""
        self._clients.add([method, seed, *_client_row(client, round)] for client in clients)

    def write_tables(self, results: list[Result], target_accuracy: float) -> None:
        """Writes tables.md: `tables` as Markdown."""
        from rich.box import MARKDOWN
        from rich.console import Console

        console = Console(width=1000)
        parts = []
        for table in tables(results, target_accuracy, box=MARKDOWN):
            title, table.title = table.title, None
            with console.capture() as written:
                console.print(table)
            lines = [line.rstrip() for line in written.get().splitlines() if line.strip()]
            parts.append("\n".join([f"{title}\n", *lines]))
        (self.path / "tables.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")

    def write_json(self, name: str, values: dict[str, Any]) -> None:
        """Writes a JSON file; what is not finite becomes null."""
        text = json.dumps(_finite(values), indent=2, allow_nan=False)
        (self.path / name).write_text(text + "\n", encoding="utf-8")


class _CsvFile:
    """A CSV file; what has been added is on its way to the disk at once.

    Raises:
        BlockingIOError: another process has it open.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", newline="", encoding="utf-8")
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # forked workers do not inherit
        except BlockingIOError:
            raise
        except OSError:  # a file system without locks
            pass
        self._writer = csv.writer(self._file, lineterminator="\n")

    def begin(self, columns: Sequence[str]) -> None:
        """Forgets what was there."""
        self._file.truncate(0)
        self.add([columns])

    def add(self, rows: Iterable[Sequence[object]]) -> None:
        self._writer.writerows(rows)
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def _history_row(round: Round) -> list[object]:
    """What history.csv holds of a round, from its column "round" on."""
    figures = (measure(round, column) for column in MEASURES)
    taken = round.clients, round.failed
    return [round.number, f"{round.seconds:.6f}", round.train_loss, *taken, *figures]


def _client_row(client: Client, round: Round) -> list[object]:
    """What clients.csv holds of a client, from its column "client" on."""
    counts = client.class_counts()
    row: list[object] = [client.number, len(client), len(client.test_indices)]
    row.append(int(counts.argmax()) if len(client) else None)
    for evaluation in (round.global_on_local, round.personal_on_local):
        if evaluation is None or len(client.test_indices) == 0:
            row += [None, None]
        else:
            row.append(evaluation.accuracies[client.number].item())
            row.append(evaluation.cross_entropies[client.number].item())
    center = client.state.get(CENTER)
    row.append(None if center is None else " ".join(f"{value:.6g}" for value in center.tolist()))
    return row


def summarise(
    results: list[Result],
    partitions: dict[int, Partition],
    status: str,
    target_accuracy: float = TARGET_ACCURACY,
) -> dict[str, Any]:
    """The content of summary.json.

    Args:
        results: of all methods and seeds, those of a method adjacent or not; may be cut short.
        partitions: by seed.
        status: how the run ended, e.g. ``"complete"``.
        target_accuracy: whose first round is reported.
    """
    return {
        "status": status,
        "methods": {
            method: {name: figure.summary() for name, figure in own.items()}
            for method, own in figures(results, target_accuracy).items()
        },
        "runs": [
            {
                "method": result.method,
                "seed": result.seed,
                "rounds": len(result.rounds),
                "seconds": sum(round.seconds for round in result.rounds),
                "engine": result.rounds[0].engine,
                "failures": result.failures,
                "accuracy_last_10": result.late("accuracy"),
                "rounds_to_target": result.rounds_to(target_accuracy),
                "global_on_test": _last_and_best(result, "evaluation", "accuracy"),
                "global_on_local": _last_and_best(result, "global_on_local", "mean_accuracy"),
                "personal_on_local": _last_and_best(result, "personal_on_local", "mean_accuracy"),
            }
            for result in results
        ],
        "partitions": [
            {
                "seed": seed,
                "discarded_samples": partition.discarded,
                "clients_without_data": partition.clients_without_data,
                "smallest_client": min(partition.sizes),
                "largest_client": max(partition.sizes),
            }
            for seed, partition in partitions.items()
        ],
    }


def _last_and_best(result: Result, evaluation: str, accuracy: str) -> dict[str, Any] | None:
    """The last evaluation of a kind and the first one of the best accuracy, and their rounds."""
    done = [round for round in result.evaluated if getattr(round, evaluation) is not None]
    if not done:
        return None
    best = max(done, key=lambda round: getattr(getattr(round, evaluation), accuracy))
    return {
        name: {"round": round.number, **_numbers(getattr(round, evaluation))}
        for name, round in (("last", done[-1]), ("best", best))
    }


def _numbers(evaluation: Any) -> dict[str, Any]:
    """An evaluation's fields, but for its tensors (clients.csv has those)."""
    return {key: value for key, value in vars(evaluation).items() if not torch.is_tensor(value)}


def plot_curves(results: list[Result], path: Path) -> None:
    """Accuracies and training loss by round: a line a method.

    Up to ten methods have bands that span their seeds.

    On the clients' local data it is their own models' accuracy, and dashed the global model's, or
    the global model's alone. Rounds in which a method changes (Floco's tau) are marked.

    Args:
        results: each of at least one round.
        path: of the PNG file.
    """
    from matplotlib import colormaps

    own, shared = "personal_on_local_mean_accuracy", "global_on_local_mean_accuracy"
    local = any(run.curve(shared) for run in results)
    methods = methods_of(results)
    many = len(methods) > 10  # matplotlib's cycle of colours
    figure, all_axes = _subplots(3 if local else 2, 11 if many else 7, 10 if local else 7)
    above, *between, below = all_axes
    plot = partial(_plot_mean, band=not many)
    for number, method in enumerate(methods):
        runs = [result for result in results if result.method == method]
        color = colormaps["tab20" if many else "tab10"](number % 20)
        plot(above, [run.curve("accuracy") for run in runs], color, label=method)
        for axes in between:
            personal = [run.curve(own) for run in runs]
            plot(axes, personal, color)
            linestyle = "--" if any(personal) else "-"
            plot(axes, [run.curve(shared) for run in runs], color, linestyle=linestyle)
        train_loss = [{round.number: round.train_loss for round in run.rounds} for run in runs]
        plot(below, train_loss, color)
    above.set_ylabel("test accuracy")
    for axes in between:
        axes.set_ylabel("accuracy on local data, mean of clients\n(dashed: global model)")
    below.set_ylabel("training cross entropy")
    below.set_xlabel("round")
    reached = max(len(result.rounds) for result in results)
    marks = {mark for result in results for mark in result.marks.items() if mark[1] <= reached}
    for axes in all_axes:
        for name, number in sorted(marks):
            axes.axvline(number, color="grey", linestyle=":")
            place = {"xycoords": ("data", "axes fraction"), "ha": "right", "va": "top"}
            axes.annotate(f"{name} ", (number, 1), **place)
    if many:
        figure.legend(loc="outside right center")
    else:
        above.legend()
    figure.savefig(path, dpi=120)


def _plot_mean(
    axes: Any, curves: list[dict[int, float]], color: Any, *, band: bool, **style: str
) -> None:
    """The mean of curves by round, and perhaps the band between the lowest and the highest."""
    # Rounds that every seed has: a run that was stopped must not bend the mean.
    rounds = sorted(set.intersection(*(set(curve) for curve in curves)))
    values = [[curve[number] for curve in curves] for number in rounds]
    axes.plot(rounds, [fmean(v) for v in values], color=color, **style)
    if band:
        bounds = [min(v) for v in values], [max(v) for v in values]
        axes.fill_between(rounds, *bounds, color=color, alpha=0.2)


def plot_simplex(results: list[Result], path: Path) -> None:
    """The clients' subregions on the simplex, coloured by dominant class, and the loss along it.

    Args:
        results: each with a landscape.
        path: of the PNG file.
    """
    figure, rows = _subplots(len(results), 7, 5.5 * len(results), sharex=False)
    for result, axes in zip(results, rows, strict=True):
        shown = result.landscape
        assert shown is not None
        filled = axes.contourf(shown.x, shown.y, shown.loss, levels=20, cmap="Greys")
        figure.colorbar(filled, ax=axes, label="cross entropy on test data")
        labels = sorted(set(shown.classes.tolist()))
        for label in labels:
            own = shown.centers[shown.classes == label]
            axes.scatter(own[:, 0], own[:, 1], s=18, label=str(label), color=f"C{label % 10}")
        axes.plot(*shown.middle.tolist(), "k*", markersize=12, label="simplex centre")
        axes.set_title(f"{result.method}, seed {result.seed}: centres of the clients' subregions")
        axes.set_xlabel("first principal component")
        axes.set_ylabel("second")
        if len(labels) <= 20:
            axes.legend(title="dominant class", fontsize="small")
    figure.savefig(path, dpi=120)


def plot_clients(label_counts: Tensor, path: Path) -> None:
    """The label distribution of the clients, int64 [clients, classes], stacked."""
    clients, num_classes = label_counts.shape
    figure, (axes,) = _subplots(1, min(6 + clients / 15, 16), 4)
    edges = [client - 0.5 for client in range(clients + 1)]
    bottom = label_counts.new_zeros(clients)
    for label in range(num_classes):
        top = bottom + label_counts[:, label]
        # One outline a class: separate bars take seconds to draw for some thousand clients.
        axes.stairs(top.numpy(), edges, baseline=bottom.numpy(), fill=True, label=str(label))
        bottom = top
    axes.set_xlabel("client")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_ylim(0, max(1, 1.05 * int(bottom.max())))
    axes.set_ylabel("samples")
    if num_classes <= 20:
        axes.legend(title="class", loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, dpi=120)


def _subplots(rows: int, width: float, height: float, *, sharex: bool = True) -> Any:
    """A figure (drawn by Agg, whatever the user's backend) and its axes, one below the other."""
    from matplotlib.figure import Figure

    figure = Figure(layout="constrained", figsize=(width, height))
    return figure, figure.subplots(rows, sharex=sharex, squeeze=False)[:, 0]


def _finite(value: Any) -> Any:
    """`value` with None for every number that JSON cannot hold."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
