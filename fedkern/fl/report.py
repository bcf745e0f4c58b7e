"""What a run leaves behind: history.csv as it goes, then a summary, a table and two plots."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean, median, stdev
from types import TracebackType
from typing import TYPE_CHECKING, Any

from torch import Tensor

from .errors import ConfigError
from .evaluation import Evaluation
from .partition import Partition
from .simulation import Round

if TYPE_CHECKING:
    from rich.table import Table

HISTORY_COLUMNS = (
    "method",
    "seed",
    "round",
    "seconds",
    "train_loss",
    "accuracy",
    "macro_f1",
    "error_asymmetry",
    "cross_entropy",
)
_MEASURES = HISTORY_COLUMNS[5:]
_LAST = 10  # accuracy jumps from round to round under label skew: a mean says more


@dataclass
class Result:
    """The rounds of one method under one seed, so far."""

    method: str
    seed: int
    rounds: list[Round] = field(default_factory=list)

    @property
    def evaluations(self) -> list[tuple[int, Evaluation]]:
        """The evaluated rounds' numbers and evaluations."""
        return [(r.number, r.evaluation) for r in self.rounds if r.evaluation is not None]

    @property
    def last(self) -> Evaluation | None:
        """The last evaluation, if there is one."""
        return self.evaluations[-1][1] if self.evaluations else None

    @property
    def late_accuracy(self) -> float:
        """Mean accuracy of the last 10 evaluations (of all where there are fewer); nan of none."""
        late = [evaluation.accuracy for _, evaluation in self.evaluations[-_LAST:]]
        return fmean(late) if late else math.nan


class RunFolder:
    """The folder of a run: a context manager that creates it and holds history.csv open.

    Args:
        path: the folder; created on entering, not before.
        overwrite: replace a run that lies there.

    Raises:
        ConfigError: a run lies there already (on construction), or the folder cannot be written
            (on entering).
    """

    FILES = ("config.json", "history.csv", "summary.json", "curves.png", "clients.png")

    def __init__(self, path: Path, *, overwrite: bool = False) -> None:
        self.path = path
        if (path / "history.csv").exists() and not overwrite:
            raise ConfigError(
                f"out: wanted a folder without a run, got {path}, which holds a history.csv "
                "(--overwrite replaces it)"
            )

    def __enter__(self) -> RunFolder:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            for name in self.FILES:
                (self.path / name).unlink(missing_ok=True)
            self._file = (self.path / "history.csv").open("w", newline="", encoding="utf-8")
        except OSError as error:
            reason = error.strerror or error
            raise ConfigError(
                f"out: wanted a folder to write in, got {self.path}: {reason}"
            ) from error
        self._history = csv.writer(self._file, lineterminator="\n")
        self._history.writerow(HISTORY_COLUMNS)
        self._file.flush()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.close()

    def add(self, method: str, seed: int, round: Round) -> None:
        """Writes one round to history.csv; what was not evaluated stays empty."""
        measures = [getattr(round.evaluation, name, "") for name in _MEASURES]
        self._history.writerow(
            [method, seed, round.number, f"{round.seconds:.6f}", round.train_loss, *measures]
        )
        self._file.flush()

    def write_json(self, name: str, values: dict[str, Any]) -> None:
        """Writes a JSON file; what is not finite becomes null."""
        text = json.dumps(_finite(values), indent=2, allow_nan=False)
        (self.path / name).write_text(text + "\n", encoding="utf-8")


def summarise(
    results: list[Result], partitions: dict[int, Partition], status: str
) -> dict[str, Any]:
    """The content of summary.json.

    Args:
        results: of all methods and seeds, those of a method adjacent or not; may be cut short.
        partitions: by seed.
        status: how the run ended, e.g. ``"complete"``.
    """
    return {
        "status": status,
        "methods": {
            method: {name: _mean_and_deviation(values) for name, values in columns.items()}
            for method, columns in _columns(results).items()
        },
        "runs": [
            {
                "method": result.method,
                "seed": result.seed,
                "rounds": len(result.rounds),
                "seconds": sum(round.seconds for round in result.rounds),
                "accuracy_last_10": result.late_accuracy,
                "best_accuracy": max((e.accuracy for _, e in result.evaluations), default=math.nan),
                "last_evaluation": asdict(result.last) if result.last else None,
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


def summary_table(results: list[Result]) -> Table:
    """One column a method: mean +- standard deviation over seeds, and the paired difference."""
    from rich.table import Table

    columns = _columns(results)
    seeds = len({result.seed for result in results})
    over = f", mean ± std, {seeds} seeds" if seeds > 1 else ""
    table = Table(title=f"Test data after the last round{over}")
    table.add_column("")
    for method in columns:
        table.add_column(method, justify="right")
    for name, title, scale, digits in (
        ("accuracy", "accuracy %", 100, 2),
        ("accuracy_last_10", f"accuracy %, mean of last {_LAST}", 100, 2),
        ("accuracy_minus_first", f"  minus {next(iter(columns), '')}, paired", 100, 2),
        ("macro_f1", "macro-F1", 1, 3),
        ("error_asymmetry", "error asymmetry", 1, 3),
        ("cross_entropy", "cross entropy", 1, 3),
        ("seconds_per_round", "seconds a round", 1, 3),
    ):
        if name == "accuracy_minus_first" and len(columns) == 1:
            continue
        table.add_row(title, *(_cell(values[name], scale, digits) for values in columns.values()))
    return table


def plot_curves(results: list[Result], path: Path) -> None:
    """Accuracy and training loss by round: a line a method, the band spans its seeds.

    Args:
        results: each of at least one round.
        path: of the PNG file.
    """
    figure, (above, below) = _subplots(2, 7, 7)
    for method in _methods(results):
        runs = [result for result in results if result.method == method]
        accuracy = [{n: e.accuracy for n, e in run.evaluations} for run in runs]
        train_loss = [{round.number: round.train_loss for round in run.rounds} for run in runs]
        for axes, curves in ((above, accuracy), (below, train_loss)):
            # Rounds that every seed has: a run that was stopped must not bend the mean.
            rounds = sorted(set.intersection(*(set(curve) for curve in curves)))
            values = [[curve[number] for curve in curves] for number in rounds]
            axes.plot(rounds, [fmean(v) for v in values], label=method)
            axes.fill_between(rounds, [min(v) for v in values], [max(v) for v in values], alpha=0.2)
    above.set_ylabel("test accuracy")
    below.set_ylabel("training cross entropy")
    below.set_xlabel("round")
    above.legend()
    figure.savefig(path, dpi=120)


def plot_clients(label_counts: Tensor, path: Path) -> None:
    """The label distribution of the clients, int64 [clients, classes], stacked."""
    clients, num_classes = label_counts.shape
    figure, axes = _subplots(1, min(6 + clients / 15, 16), 4)
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


def _subplots(rows: int, width: float, height: float) -> Any:
    """A figure (drawn by Agg, whatever the user's backend) and its axes, one below the other."""
    from matplotlib.figure import Figure

    figure = Figure(layout="constrained", figsize=(width, height))
    return figure, figure.subplots(rows, sharex=True)


def _methods(results: list[Result]) -> list[str]:
    return list(dict.fromkeys(result.method for result in results))


def _columns(results: list[Result]) -> dict[str, dict[str, list[float]]]:
    """By method and measure, the values of the seeds that have an evaluation."""
    done = [result for result in results if result.last is not None]
    first = {run.seed: run.late_accuracy for run in done if run.method == done[0].method}
    columns = {}
    for method in _methods(done):
        runs = [result for result in done if result.method == method]
        columns[method] = {
            **{name: [getattr(run.last, name) for run in runs] for name in _MEASURES},
            "accuracy_last_10": [run.late_accuracy for run in runs],
            "accuracy_minus_first": [
                run.late_accuracy - first[run.seed] for run in runs if run.seed in first
            ],
            # The median: the first round of a process warms up for all later ones.
            "seconds_per_round": [median(r.seconds for r in run.rounds) for run in runs],
        }
    return columns


def _mean_and_deviation(values: list[float]) -> dict[str, float]:
    mean = fmean(values) if values else math.nan
    spread = len(values) > 1 and math.isfinite(mean)
    return {"mean": mean, "std": stdev(values) if spread else math.nan}


def _cell(values: list[float], scale: float, digits: int) -> str:
    if not values:
        return "-"
    summary = _mean_and_deviation([scale * value for value in values])
    text = f"{summary['mean']:.{digits}f}"
    return text + (f" ± {summary['std']:.{digits}f}" if len(values) > 1 else "")


def _finite(value: Any) -> Any:
    """`value` with None for every number that JSON cannot hold."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
