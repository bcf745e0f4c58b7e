"""What the rounds of several runs say about their methods: figures over seeds, tables."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from statistics import fmean, median, stdev
from typing import TYPE_CHECKING, NamedTuple

from .config import RunConfig
from .landscape import Landscape
from .rounds import Round

if TYPE_CHECKING:
    from rich.box import Box
    from rich.table import Table

_GLOBAL = (  # of Evaluation
    "accuracy",
    "macro_f1",
    "error_asymmetry",
    "cross_entropy",
    "calibration_error",
)
_LOCAL = (  # of LocalEvaluation
    "mean_accuracy",
    "pooled_accuracy",
    "worst_accuracy",
    "lowest_tenth_accuracy",
    "std_accuracy",
    "cross_entropy",
    "calibration_error",
)
# The measures of history.csv: which evaluation of a round, and which of its fields.
MEASURES: dict[str, tuple[str, str]] = {
    **{name: ("evaluation", name) for name in _GLOBAL},
    **{f"global_on_local_{name}": ("global_on_local", name) for name in _LOCAL},
    **{f"personal_on_local_{name}": ("personal_on_local", name) for name in _LOCAL},
}
_LAST = 10  # accuracy jumps from round to round under label skew: a mean says more
TARGET_ACCURACY = RunConfig.target_accuracy


@dataclass
class Result:
    """The rounds of one method under one seed, so far.

    Attributes:
        method: what the method is called.
        seed: of the run.
        marks: rounds in which something changes, by name.
        rounds: as they were reported.
        landscape: of its simplex, if there is one to show.
    """

    method: str
    seed: int
    marks: dict[str, int] = field(default_factory=dict)
    rounds: list[Round] = field(default_factory=list)
    landscape: Landscape | None = None

    @property
    def evaluated(self) -> list[Round]:
        """The rounds that were evaluated."""
        return [r for r in self.rounds if r.evaluation or r.personal_on_local]

    @property
    def failures(self) -> dict[str, int]:
        """How many clients failed in a round, over all rounds, by cause."""
        return Counter(f.cause for round in self.rounds for f in round.failures)

    def curve(self, column: str) -> dict[int, float]:
        """A measure of history.csv by round, where it exists."""
        values = {round.number: measure(round, column) for round in self.evaluated}
        return {number: value for number, value in values.items() if value is not None}

    def last(self, column: str) -> float | None:
        """A measure at the last evaluation that has it."""
        return next(reversed(self.curve(column).values()), None)

    def late(self, column: str) -> float | None:
        """Its mean over the evaluations of the last 10 rounds; None if there are none."""
        curve = self.curve(column).items()
        values = [value for number, value in curve if number > len(self.rounds) - _LAST]
        return fmean(values) if values else None

    def rounds_to(self, accuracy: float) -> int | None:
        """The first evaluated round in which the global model has at least this accuracy."""
        curve = self.curve("accuracy").items()
        return next((number for number, value in curve if value >= accuracy), None)


def measure(round: Round, column: str) -> float | None:
    """A measure of history.csv; None if it does not exist."""
    evaluation, name = MEASURES[column]
    value: float | None = getattr(getattr(round, evaluation), name, None)
    return value


@dataclass(frozen=True)
class Figure:
    """A number of each seed.

    Attributes:
        values: of the seeds that have it.
        seeds: how many there are.
        paired: whether they are differences, so that an interval says what is certain.
    """

    values: list[float]
    seeds: int
    paired: bool = False

    @property
    def mean(self) -> float:
        """Mean over the seeds; nan of none."""
        return fmean(self.values) if self.values else math.nan

    @property
    def std(self) -> float:
        """Standard deviation over the seeds; nan of fewer than two."""
        spread = len(self.values) > 1 and math.isfinite(self.mean)
        return stdev(self.values) if spread else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """Where the mean is with 95 % confidence, by Student's t; nan of fewer than two seeds."""
        from scipy.stats import t  # here, for it takes a second to import

        n = len(self.values)
        half = t.ppf(0.975, n - 1) * self.std / math.sqrt(n) if n > 1 else math.nan
        return self.mean - half, self.mean + half

    def summary(self) -> dict[str, object]:
        """For summary.json."""
        known: dict[str, object] = {"mean": self.mean, "std": self.std}
        if self.paired:
            known["interval_95"] = list(self.interval)
        if 0 < len(self.values) < self.seeds:
            known["seeds"] = len(self.values)
        return known

    def cell(self, scale: float, digits: int) -> str:
        """For a table."""
        if not self.values:
            return EMPTY

        def shown(number: float) -> str:
            return f"{round(scale * number, digits) + 0.0:.{digits}f}"  # no -0.00

        text = shown(self.mean)
        if self.paired and len(self.values) > 1:
            text += " [{}, {}]".format(*map(shown, self.interval))
        elif len(self.values) > 1:
            text += f" ± {shown(self.std)}"
        return text if len(self.values) == self.seeds else f"{text} ({len(self.values)} seeds)"


EMPTY = "-"


def methods_of(results: list[Result]) -> list[str]:
    """The methods' names, in the order of the results."""
    return list(dict.fromkeys(result.method for result in results))


def figures(
    results: list[Result], target_accuracy: float = TARGET_ACCURACY
) -> dict[str, dict[str, Figure]]:
    """By method, its figures over the seeds that have an evaluation; by name.

    Beside the measures after the last round: ``accuracy_last_10``; ``accuracy_minus_first``, its
    difference to that of the first method under the same seed; ``rounds_to_target``, the first
    evaluated round of at least the target accuracy, of the seeds that reach it;
    ``seconds_per_round``.
    """
    done = [result for result in results if result.evaluated]
    first = {run.seed: run.late("accuracy") for run in done if run.method == done[0].method}

    def minus_first(run: Result) -> float | None:
        own, others = run.late("accuracy"), first.get(run.seed)
        return None if own is None or others is None else own - others

    measured: dict[str, Callable[[Result], float | None]] = {
        **{name: partial(Result.last, column=name) for name in MEASURES},
        "accuracy_last_10": partial(Result.late, column="accuracy"),
        "accuracy_minus_first": minus_first,
        "rounds_to_target": partial(Result.rounds_to, accuracy=target_accuracy),
        # The median: the first round of a process warms up for all later ones.
        "seconds_per_round": lambda run: median(round.seconds for round in run.rounds),
    }
    found: dict[str, dict[str, Figure]] = {}
    for method in methods_of(done):
        runs = [result for result in done if result.method == method]
        found[method] = {}
        for name, value in measured.items():
            known = [v for v in map(value, runs) if v is not None]
            found[method][name] = Figure(known, len(runs), paired=name == "accuracy_minus_first")
    return found


class _Column(NamedTuple):
    figure: str
    heading: str
    scale: float
    digits: int


def _of_local_data(kind: str) -> tuple[_Column, ...]:
    return (
        _Column(f"{kind}_on_local_mean_accuracy", "mean accuracy %", 100, 2),
        _Column(f"{kind}_on_local_pooled_accuracy", "pooled %", 100, 2),
        _Column(f"{kind}_on_local_worst_accuracy", "worst client %", 100, 2),
        _Column(f"{kind}_on_local_lowest_tenth_accuracy", "lowest tenth %", 100, 2),
        _Column(f"{kind}_on_local_std_accuracy", "deviation over clients %", 100, 2),
        _Column(f"{kind}_on_local_calibration_error", "calibration error", 1, 3),
    )


_TABLES = {
    "global model, test data": (
        _Column("accuracy", "accuracy %", 100, 2),
        _Column("accuracy_last_10", f"mean of last {_LAST} rounds %", 100, 2),
        _Column("accuracy_minus_first", "that minus {first}, paired", 100, 2),
        _Column("rounds_to_target", "rounds to {target:g} %", 1, 1),
        _Column("error_asymmetry", "error asymmetry", 1, 3),
    ),
    "global model, test data; time": (
        _Column("macro_f1", "macro-F1", 1, 3),
        _Column("cross_entropy", "cross entropy", 1, 3),
        _Column("calibration_error", "calibration error", 1, 3),
        _Column("seconds_per_round", "seconds a round", 1, 3),
    ),
    "global model, the clients' local data": _of_local_data("global"),
    "each client's own model, its local data": _of_local_data("personal"),
}


def tables(
    results: list[Result], target_accuracy: float = TARGET_ACCURACY, *, box: Box | None = None
) -> Iterator[Table]:
    """After the last round, a line a method: mean and standard deviation over seeds.

    The paired difference is followed by its 95 % interval. What no method has is left out, and a
    method that has none of a table's figures.

    Args:
        results: of all methods and seeds.
        target_accuracy: whose first round is reported.
        box: how lines are drawn.
    """
    from rich.box import HEAVY_HEAD
    from rich.table import Table

    found = figures(results, target_accuracy)
    first = next(iter(found), "")
    seeds = len({result.seed for result in results})
    for title, columns in _TABLES.items():
        shown = [
            column
            for column in columns
            if any(own[column.figure].values for own in found.values())
            and not (column.figure == "accuracy_minus_first" and len(found) == 1)
        ]
        if not shown:
            continue
        over = f"; mean ± std, {seeds} seeds" if seeds > 1 else ""
        table = Table(title=title + over, title_justify="left", box=box or HEAVY_HEAD)
        table.add_column("")
        for column in shown:
            heading = column.heading.format(first=first, target=100 * target_accuracy)
            table.add_column(heading, justify="right")
        for method, own in found.items():
            cells = [own[column.figure].cell(column.scale, column.digits) for column in shown]
            if any(cell != EMPTY for cell in cells):
                table.add_row(method, *cells)
        yield table
