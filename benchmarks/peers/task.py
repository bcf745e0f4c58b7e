"""What each framework here trains, and how its script is called and answers.

MNIST (in the folder FEDKERN_DATA) with the published settings of FedGA's experiments: 100 clients
with Dirichlet 0.1, 10 of them a round, 2 local epochs, batch 64, SGD with clipping, an MLP, the
plain mean of the clients' models. Every framework gets the same tensors, partition, initial model
and clients of each round.
"""

import argparse
import json
from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from statistics import median

import torch
from torch import Tensor, nn

from fedkern import fl

CONFIG = fl.RunConfig.for_dataset("mnist")


def arguments(description: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=15, help="that are timed")
    parser.add_argument("--warm-up", type=int, default=3, help="rounds before these, at least 1")
    parser.add_argument("--threads", type=int, default=1, help="PyTorch's, in each worker")
    return parser


@cache
def dataset() -> fl.Dataset:
    return fl.load_dataset(CONFIG.dataset)


@cache
def clients() -> list[fl.Client]:
    return fl.make_clients(dataset(), fl.make_partition(dataset(), CONFIG))


@cache
def inputs() -> Tensor:
    """The training data as float32, contiguous: what a peer would be given."""
    return fl.scaled(dataset().x_train).contiguous()


def shuffled(client: fl.Client, draws: torch.Generator) -> tuple[Tensor, Tensor]:
    """A client's inputs and targets, copied in a new random order: that of fedkern's batches."""
    order = client.order(draws)
    return inputs().index_select(0, order), dataset().y_train.index_select(0, order)


def sampled(number: int) -> list[int]:
    """The clients of a round, counted from 1."""
    return fl.sample_clients(CONFIG.clients, CONFIG, number)


def new_model() -> nn.Module:
    return fl.build_model(CONFIG.model, dataset(), fl.generator(CONFIG.seed, "model"))


def report(
    framework: str,
    version: str,
    ends: Sequence[float],
    warm_up: int,
    model: nn.Module,
    **more: float,
) -> None:
    """Print what was measured as JSON.

    `ends` are times at which rounds ended. A round lasts from one to the next: nothing that the
    framework does for it is left out. Starting up ends with the first round.
    """
    seconds = [end - start for start, end in pairwise(ends)][warm_up - 1 :]
    data = dataset()
    evaluation = fl.evaluate(model, data.x_test, data.y_test, data.num_classes)
    answer = {
        "framework": framework,
        "version": version,
        "rounds": len(seconds),
        "median_seconds": median(seconds),
        "seconds": seconds,
        "final_accuracy": evaluation.accuracy,
        **more,
    }
    print(json.dumps(answer))
