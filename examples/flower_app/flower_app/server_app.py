"""What the server does."""

import logging
from pathlib import Path

import torch
from flwr.app import ArrayRecord, Context, MetricRecord, UserConfig
from flwr.serverapp import Grid, ServerApp

from fedkern import fl
from fedkern.integrations.flower import MethodStrategy

from . import task

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    options = context.run_config
    config = task.settings(options)
    (method,) = fl.build_methods([str(options["method"])]).values()
    model, data = task.new_model(config), task.dataset(config.dataset)
    out = Path(str(options["out"])) if options["out"] else None

    def evaluate(round: int, arrays: ArrayRecord) -> MetricRecord | None:
        """The global model, which `model` holds after every round, on the global test data."""
        if not config.evaluates_after(round):
            return None
        found = fl.evaluate(model, data.x_test, data.y_test, data.num_classes)
        return MetricRecord({"accuracy": found.accuracy, "loss": found.cross_entropy})

    strategy = MethodStrategy(
        method,
        model,
        config,
        min_available_nodes=int(options["min-available-nodes"]),
        checkpoints=checkpoints(out, config.rounds, options) if out else None,
    )
    strategy.start(grid=grid, timeout=float(options["timeout"]), evaluate_fn=evaluate)
    if out:
        torch.save(model.state_dict(), out / "model.pt")


def checkpoints(folder: Path, rounds: int, options: UserConfig) -> fl.Checkpoints:
    """A run with the same `out` goes on with what lies there; it may be one of more rounds."""
    fixed = ("method", "dataset", "clients", "clients-per-round", "alpha", "seed")
    about = {"settings": {name: options[name] for name in fixed}}
    found = fl.Checkpoints(folder, about, 1, rounds, logging.getLogger("flwr").warning)
    found.resume()
    return found
