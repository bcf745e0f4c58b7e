"""What a FedGA round costs beside the same training written by hand.

On MNIST (in the folder FEDKERN_DATA) with the published settings: 100 clients, Dirichlet 0.1, 10
clients a round, 2 local epochs, batch 64, MLP. Four ways of one and the same round, interleaved,
each round on other clients:

- fedga, fedavg: rounds of `fedkern.fl.simulate`, without evaluation;
- bare: a plain PyTorch loop on the same batches: indexing of inputs that all lie there as float32,
  F.cross_entropy, backward, clip_grad_norm_, torch.optim.SGD as it comes; no averaging, no copies
  of models;
- forward+backward: that without clipping and without the step.

`make bench` runs it. Medians and ratios to the bare loop are printed and kept.
"""

from __future__ import annotations

import os
from statistics import median
from time import perf_counter

import pytest
import record
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedkern import fl

THREADS = sorted({1, torch.get_num_threads()})
WARM_UP = 2  # rounds of each variant that are not timed
ROUNDS = 15


def bare_round(
    model: nn.Module,
    x: Tensor,
    clients: list[fl.Client],
    config: fl.RunConfig,
    number: int,
    *,
    step: bool,
) -> float:
    """Seconds of the hand-written training on x of the clients that round `number` samples."""
    y = clients[0].dataset.y_train
    start = perf_counter()
    for k in fl.sample_clients(len(clients), config, number):
        indices = clients[k].indices
        draws = fl.generator(config.seed, "batches", number, k)
        optimizer = torch.optim.SGD(model.parameters(), lr=config.lr)
        for _ in range(config.local_epochs):
            order = indices[torch.randperm(len(indices), generator=draws)]
            for batch in order.split(config.batch_size):
                optimizer.zero_grad()
                F.cross_entropy(model(x[batch]), y[batch]).backward()
                if step:
                    nn.utils.clip_grad_norm_(model.parameters(), config.clip)
                    optimizer.step()
    return perf_counter() - start


@pytest.mark.parametrize("threads", THREADS)
def test_fl_round(threads: int) -> None:
    if not os.environ.get("FEDKERN_DATA"):
        pytest.skip("needs MNIST in the folder that FEDKERN_DATA names")
    # One more round, never asked for: the last one is always evaluated.
    total = WARM_UP + ROUNDS
    config = fl.RunConfig.for_dataset("mnist", rounds=total + 1, eval_every=total + 1)
    dataset = fl.load_dataset("mnist")
    partition = fl.make_partition(dataset, config)
    clients = fl.make_clients(dataset, partition)
    x = fl.scaled(dataset.x_train)

    def new_model() -> nn.Module:
        return fl.build_model(config.model, dataset, fl.generator(config.seed, "model"))

    runs = {
        name: fl.simulate(method, new_model(), fl.make_clients(dataset, partition), config)
        for name, method in (("fedga", fl.FedGA()), ("fedavg", fl.FedAvg()))
    }
    model = new_model().train()
    seconds: dict[str, list[float]] = {}
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for number in range(1, total + 1):
            timed = {name: next(run).seconds for name, run in runs.items()}
            timed["bare"] = bare_round(model, x, clients, config, number, step=True)
            timed["forward+backward"] = bare_round(model, x, clients, config, number, step=False)
            if number > WARM_UP:
                for name, value in timed.items():
                    seconds.setdefault(name, []).append(value)
    finally:
        torch.set_num_threads(before)

    medians = {name: median(values) for name, values in seconds.items()}
    print(f"\na round of MNIST, {threads} threads")
    rows = []
    for name, value in medians.items():
        ratio = value / medians["bare"]
        print(f"{name:18} {1e3 * value:9.2f} ms  {ratio:6.3f} x bare")
        rows.append(
            {"variant": name, "threads": threads, "median_seconds": value, "ratio_to_bare": ratio}
        )
    record.append("fl_round", rows)
