"""A round's time beyond its clients' training: Flower's own FedAvg, and fedkern's strategy.

Both have the same clients (peers/task.py), model, batches and local training, in Flower's
simulation on Ray, with one worker of one thread. Blocks of both take turns, each in a process of
its own.

Flower's engine looks for messages every 0.1 s, and most of a round is waiting for that: kept are
means over rounds that begin at random times between two looks. What strategy and client themselves
do is a small part: `test_without_waiting` times it alone, in one process, for three sizes of a
model.
"""

import os
import sys
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from time import perf_counter

import pytest
import record
import torch
from bench_peers import block
from torch import nn

if find_spec("flwr") is None:
    pytest.skip("needs Flower: pip install '.[flower]'", allow_module_level=True)

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg, Strategy

from fedkern import fl
from fedkern.fl.flat import FlatModel
from fedkern.fl.training import Job, LocalWork, Trainer
from fedkern.integrations.flower import MethodStrategy, register

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "integrations"))
from local_grid import LocalGrid

REPEATS = 4


@pytest.mark.skipif(find_spec("ray") is None, reason="needs Ray: pip install '.[flower]'")
def test_on_ray() -> None:
    if not os.environ.get("FEDKERN_DATA"):
        pytest.skip("needs MNIST in the folder that FEDKERN_DATA names")
    names = ("flower", "fedkern")
    blocks: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for _ in range(REPEATS):
        for name in names:
            options = ["--strategy", name, "--training", "fedkern", "--rounds", "40", "--pauses"]
            blocks[name].append(block("flower", 1, *options))
    keep(
        {name: [one["beyond_training_seconds"] for one in found] for name, found in blocks.items()},
        {"measure": "on ray"},
    )


# ---- without Flower's processes ------------------------------------------------------------------

CONFIG = fl.RunConfig(clients=10, clients_per_round=10, rounds=12, local_epochs=1)


def new_model(width: int) -> nn.Module:
    torch.manual_seed(0)
    hidden = (nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(width, 10))


class TimedTrainer(Trainer):
    """Adds up how long it trains."""

    seconds = 0.0

    def train(self, job: Job, anchor: torch.Tensor) -> object:
        started = perf_counter()
        trained = super().train(job, anchor)
        TimedTrainer.seconds += perf_counter() - started
        return trained


class Timed(Strategy):
    """Notes a round's seconds beyond training."""

    def configure_train(self, *arguments: object) -> object:
        self.started, TimedTrainer.seconds = perf_counter(), 0.0
        return super().configure_train(*arguments)

    def aggregate_train(self, *arguments: object) -> object:
        aggregate = super().aggregate_train(*arguments)
        self.beyond.append(perf_counter() - self.started - TimedTrainer.seconds)
        return aggregate


class FlowersFedAvg(Timed, FedAvg):
    """Flower's."""


class FedkernsFedAvg(Timed, MethodStrategy):
    """fedkern's."""


class Grid(LocalGrid):
    """Messages are what they are: to write and read them is no strategy's work."""

    def _reply(self, message: Message) -> Message:
        node = self.nodes[message.metadata.dst_node_id]
        reply: Message = node.app(message, node.context)
        return reply


def flowers_round(width: int, clients: list[fl.Client]) -> float:
    """The median of a run."""
    model = FlatModel(new_model(width))
    trainer = TimedTrainer(model, clients[0].dataset, CONFIG)
    app, grid = ClientApp(), Grid()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        model.module.load_state_dict(message.content["arrays"].to_torch_state_dict())
        client = clients[context.node_config["partition-id"]]
        draws = fl.Draws(CONFIG.seed, message.content["config"]["server-round"], client.number)
        start = model.state.copy()
        job = Job(client, LocalWork(fl.CrossEntropy()), start, draws)
        trained = trainer.train(job, start.values)
        metrics = {"num-examples": len(client), "train-loss": trained.train_loss.item()}
        arrays = ArrayRecord(model.module.state_dict())
        content = RecordDict({"arrays": arrays, "metrics": MetricRecord(metrics)})
        return Message(content, reply_to=message)

    for client in clients:
        grid.add(client.number + 1, app, client.number)
    strategy = FlowersFedAvg(fraction_evaluate=0.0, min_train_nodes=len(clients))
    strategy.beyond = []
    arrays = ArrayRecord(new_model(width).state_dict())
    strategy.start(grid, arrays, num_rounds=CONFIG.rounds)
    return median(strategy.beyond[2:])


def fedkerns_round(width: int, clients: list[fl.Client]) -> float:
    """The median of a run."""
    app, grid = ClientApp(), Grid()

    def own_client(context: Context) -> fl.Client:
        return clients[context.node_config["partition-id"]]

    register(app, lambda _: new_model(width), own_client)
    for client in clients:
        grid.add(client.number + 1, app, client.number)
    method = fl.FedAvg(weighting="samples")
    strategy = FedkernsFedAvg(method, new_model(width), CONFIG, fraction_evaluate=0.0)
    strategy.beyond = []
    strategy.start(grid)
    return median(strategy.beyond[2:])


@pytest.mark.parametrize("width", [128, 1000, 3000])
def test_without_waiting(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedkern.integrations.flower.client.Trainer", TimedTrainer)
    torch.set_num_threads(1)
    dataset = fl.load_dataset("digits")
    clients = fl.make_clients(dataset, fl.make_partition(dataset, CONFIG))
    seconds: dict[str, list[float]] = {"flower": [], "fedkern": []}
    for _ in range(REPEATS):
        seconds["flower"].append(flowers_round(width, clients))
        seconds["fedkern"].append(fedkerns_round(width, clients))
    parameters = sum(p.numel() for p in new_model(width).parameters())
    keep(seconds, {"measure": "without waiting", "parameters": parameters})


def keep(seconds: dict[str, list[float]], facts: dict[str, object]) -> None:
    """Prints and keeps medians, and of the ratios of what was measured one after the other."""
    ratios = [b / a for a, b in zip(seconds["flower"], seconds["fedkern"], strict=True)]
    print(f"\na round beyond training, {facts}")
    for name, found in seconds.items():
        print(f"{name:10} {1e3 * median(found):9.2f} ms")
    print(f"{'ratio':10} {median(ratios):9.3f}, from {min(ratios):.3f} to {max(ratios):.3f}")
    rows = [
        {**facts, "variant": name, "median_seconds": median(found), "times_flower": ratio}
        for (name, found), ratio in zip(seconds.items(), (1.0, median(ratios)), strict=True)
    ]
    record.append("flower", rows)
