"""Progress on the terminal: a bar, or plain lines where output goes elsewhere."""

from __future__ import annotations

import math
from datetime import timedelta
from time import perf_counter
from types import TracebackType

from rich import progress
from rich.console import Console

from .rounds import Round


class Progress:
    """Shows round, training loss, accuracies and the time left of `total` rounds, as a context.

    "local" is the clients' mean accuracy on their own test data, of their own models if they have
    such.

    Args:
        console: where to; its `is_terminal` decides between bar and lines.
        total: rounds of all methods and seeds together.
    """

    def __init__(self, console: Console, total: int) -> None:
        self._console = console
        self._total = total
        self._done = 0
        self._accuracy = ""
        self._bar = progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(),
            progress.TextColumn("left"),
            progress.TimeRemainingColumn(compact=True),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("", total=total)

    def __enter__(self) -> Progress:
        self._bar.start()
        self._started = perf_counter()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def skip(self, rounds: int) -> None:
        """So many rounds need not be done."""
        self._total -= rounds
        self._bar.update(self._task, total=self._total)

    def show(self, title: str, round: Round, rounds: int) -> None:
        """One more round is done."""
        self._done += 1
        line = f"{title} round {round.number}/{rounds} loss {round.train_loss:.4f}"
        accuracy = "" if round.evaluation is None else f" accuracy {round.evaluation.accuracy:.4f}"
        local = round.personal_on_local or round.global_on_local
        if local is not None:
            accuracy += f" local {local.mean_accuracy:.4f}"
        self._accuracy = accuracy or self._accuracy
        if self._console.is_terminal:  # the bar keeps the last accuracy, the lines do not
            self._bar.update(self._task, completed=self._done, description=line + self._accuracy)
            return
        line += accuracy
        elapsed = perf_counter() - self._started
        left = timedelta(seconds=math.ceil(elapsed / self._done * (self._total - self._done)))
        print(f"{line} left {left}", file=self._console.file, flush=True)
