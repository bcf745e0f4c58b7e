"""FedAvg, FedGA and Floco compared over several seeds: what `fedkern compare` does, from Python.

    python examples/compare_methods.py OUT [SEEDS]

Under one seed all methods have the same clients (of skewed classes), initial model and batches, so
differences to the first one are paired. OUT receives the files of a run: tables.md, curves.png,
history.csv and so on. From the results a figure of our own is computed: how well each global model
knows the class that it knows least. In so few rounds Floco's global model learns little; its
clients' own models, in the last table, are what it is for.
"""

import sys
from pathlib import Path
from statistics import fmean

from rich.console import Console

from fedkern.fl.experiment import Experiment
from fedkern.fl.report import RunFolder

METHODS = ("fedavg", "fedga", "floco")
SETTINGS = {"dataset": "digits", "alpha": 0.1, "rounds": 50, "tau": 25}


def main(out: str, seeds: str = "3") -> None:
    experiment = Experiment.prepare(METHODS, int(seeds), SETTINGS)
    with RunFolder(Path(out)) as folder:
        results = experiment.run(folder, Console()).results  # prints the tables, draws the curves
    for method in METHODS:
        runs = [result for result in results if result.method == method]
        worst = [min(run.rounds[-1].evaluation.per_class_accuracy) for run in runs]
        print(f"{method}: accuracy on the worst class {fmean(worst):.3f}, mean of {seeds} seeds")


if __name__ == "__main__":
    main(*sys.argv[1:])
