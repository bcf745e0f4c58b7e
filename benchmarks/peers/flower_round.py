"""Rounds of FedAvg with Flower's simulation on Ray.

A worker is a process of Ray's, with `--threads` CPUs.
"""

from collections.abc import Iterable
from time import perf_counter

import flower_client
import flwr
import task
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation


class TimedFedAvg(FedAvg):
    """FedAvg of the task's clients, in a plain mean; notes when each round ends."""

    def __init__(self) -> None:
        config = task.CONFIG
        super().__init__(
            fraction_train=config.clients_per_round / config.clients,
            min_train_nodes=config.clients_per_round,
            fraction_evaluate=0.0,
            weighted_by_key="clients",
        )
        self.ends: list[float] = []

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Flower's, but each node it samples is told which client of the task it is."""
        messages = list(super().configure_train(server_round, arrays, config, grid))
        for message, number in zip(messages, task.sampled(server_round), strict=True):
            client = ConfigRecord({"number": number})
            message.content = RecordDict({**message.content, "client": client})
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        aggregate = super().aggregate_train(server_round, replies)
        self.ends.append(perf_counter())
        return aggregate


def main() -> None:
    parser = task.arguments(__doc__)
    parser.add_argument("--workers", type=int, default=1, help="that train clients side by side")
    options = parser.parse_args()
    model, strategy = task.new_model(), TimedFedAvg()
    server = ServerApp()

    @server.main()
    def serve(grid: Grid, context: Context) -> None:
        result = strategy.start(
            grid=grid,
            initial_arrays=ArrayRecord(model.state_dict()),
            num_rounds=options.warm_up + options.rounds,
            train_config=ConfigRecord({"threads": options.threads}),
        )
        model.load_state_dict(result.arrays.to_torch_state_dict())

    run_simulation(
        server,
        flower_client.app,
        num_supernodes=task.CONFIG.clients,
        backend_config={
            "init_args": {"num_cpus": options.workers * options.threads},
            "client_resources": {"num_cpus": options.threads, "num_gpus": 0.0},
        },
    )
    task.report("flower", flwr.__version__, strategy.ends, options.warm_up, model)


if __name__ == "__main__":
    main()
