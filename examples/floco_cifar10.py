"""Floco beside FedAvg on CIFAR-10, and FedGA's loss inside Floco: three runs side by side.

    FEDKERN_DATA=DATA python examples/floco_cifar10.py OUT [OPTION=VALUE ...]

The settings of Floco's five-fold experiments (arXiv 2403.03333), but for 100 rounds instead of 500
with the subregions assigned in round 50. On two busy cores it took 100 minutes. Options such as
rounds=4 tau=2 try something else.
"""

import sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from rich.console import Console

from fedkern.fl.experiment import Experiment
from fedkern.fl.report import RunFolder, file_name, plot_curves, plot_simplex
from fedkern.fl.results import Result, tables

METHODS = ("fedavg", "floco", "floco --loss calibrated_ce")
SETTINGS = {
    "dataset": "cifar10",
    "model": "cnn",
    "partition": "fold",
    "clients": 100,
    "clients_per_round": 30,
    "rounds": 100,
    "tau": 50,
    "rho": 0.1,
    "endpoints": 10,
    "local_epochs": 5,
    "batch_size": 50,
    "lr": 0.02,
    "momentum": 0.5,
    "weight_decay": 5e-4,
    "clip": float("inf"),
    "weighting": "samples",
    "threads": 1,
    "device": "cpu",
}
OF_FLOCO = ("tau", "rho", "endpoints")


def run(method: str, out: Path, settings: dict[str, object]) -> list[Result]:
    """One method in a folder of its own."""
    own = {k: v for k, v in settings.items() if k not in OF_FLOCO or method.startswith("floco")}
    experiment = Experiment.prepare([method], seeds=1, settings=own)
    with RunFolder(out / file_name(method)) as folder:
        return experiment.run(folder, Console()).results


def main(out: Path, *options: str) -> None:
    given = dict(option.split("=", 1) for option in options)
    settings = {**SETTINGS, **{key: type(SETTINGS[key])(value) for key, value in given.items()}}
    with ProcessPoolExecutor(len(METHODS), mp_context=get_context("spawn")) as pool:
        runs = pool.map(partial(run, out=out, settings=settings), METHODS)
        results = [result for one in runs for result in one]
    Console().print(*tables(results))
    plot_curves(results, out / "curves.png")
    plot_simplex([result for result in results if result.landscape], out / "simplex.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
