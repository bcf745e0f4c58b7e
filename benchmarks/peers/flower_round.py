"""Rounds of FedAvg with Flower's simulation on Ray.

A worker is a process of Ray's, with `--threads` CPUs. The strategy is Flower's own FedAvg, whose
clients train with plain PyTorch or as fedkern does, or fedkern's strategy. With one worker it is
told apart what a round takes beyond its clients' training.
"""

from collections.abc import Iterable
from dataclasses import replace
from random import uniform
from statistics import fmean
from time import perf_counter, sleep

import flower_client
import flwr
import task
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg, Strategy
from flwr.simulation import run_simulation

from fedkern import fl
from fedkern.integrations.flower import MethodStrategy


class Timed(Strategy):
    """Notes when each round ends, and how long it took beyond its clients' training.

    Flower's engine looks for messages every 0.1 s. Before these are sent there is a pause of up to
    that long, which does not count: else it would be chance how long all rounds of a run wait.
    """

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        self.started = perf_counter()
        messages = super().configure_train(server_round, arrays, config, grid)
        if self.pauses:
            pause = uniform(0, 0.1)
            sleep(pause)
            self.started += pause
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        replies = list(replies)
        trained = [reply.content["metrics"].pop(flower_client.SECONDS) for reply in replies]
        aggregate = super().aggregate_train(server_round, replies)
        self.ends.append(perf_counter())
        self.beyond.append(self.ends[-1] - self.started - sum(trained))
        return aggregate


class TaskFedAvg(FedAvg):
    """FedAvg of the task's clients, in a plain mean."""

    def __init__(self) -> None:
        config = task.CONFIG
        super().__init__(
            fraction_train=config.clients_per_round / config.clients,
            min_train_nodes=config.clients_per_round,
            fraction_evaluate=0.0,
            weighted_by_key="clients",
        )

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Flower's, but each node it samples is told which client of the task it is."""
        messages = list(super().configure_train(server_round, arrays, config, grid))
        for message, number in zip(messages, task.sampled(server_round), strict=True):
            client = ConfigRecord({"number": number})
            message.content = RecordDict({**message.content, "client": client})
        return messages


class FlowersFedAvg(Timed, TaskFedAvg):
    """Flower's."""


class FedkernsFedAvg(Timed, MethodStrategy):
    """fedkern's."""


def main() -> None:
    parser = task.arguments(__doc__)
    parser.add_argument("--workers", type=int, default=1, help="that train clients side by side")
    parser.add_argument("--strategy", choices=["flower", "fedkern"], default="flower")
    parser.add_argument("--training", choices=["plain", "fedkern"], default="plain")
    parser.add_argument("--pauses", action="store_true", help="before messages are sent")
    options = parser.parse_args()
    model, server = task.new_model(), ServerApp()
    total = options.warm_up + options.rounds
    ours = options.strategy == "fedkern"
    config = replace(task.CONFIG, rounds=total)
    strategy = (
        FedkernsFedAvg(fl.FedAvg(), model, config, fraction_evaluate=0.0)
        if ours
        else FlowersFedAvg()
    )
    strategy.ends, strategy.beyond, strategy.pauses = [], [], options.pauses

    @server.main()
    def serve(grid: Grid, context: Context) -> None:
        arrays = ArrayRecord({name: p.detach() for name, p in model.named_parameters()})
        config = ConfigRecord({"threads": options.threads, "training": options.training})
        result = strategy.start(grid, arrays, num_rounds=total, train_config=config)
        model.load_state_dict(result.arrays.to_torch_state_dict())

    run_simulation(
        server,
        flower_client.fedkern_app if ours else flower_client.app,
        num_supernodes=task.CONFIG.clients,
        backend_config={
            "init_args": {"num_cpus": options.workers * options.threads},
            "client_resources": {"num_cpus": options.threads, "num_gpus": 0.0},
        },
    )
    more = {"beyond_training_seconds": fmean(strategy.beyond[options.warm_up :])}
    task.report("flower", flwr.__version__, strategy.ends, options.warm_up, model, **more)


if __name__ == "__main__":
    main()
