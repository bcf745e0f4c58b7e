"""Why Floco's global model learns slowly at first: the step of the simplex centre.

    FEDKERN_DATA=DATA python benchmarks/floco_head_rate.py OUT.csv

A gradient g at theta(alpha) reaches endpoint m as alpha_m g, and alpha sums to one, so the centre
of the simplex moves by g / M where FedAvg's layer moves by g. If that is why, then Floco before tau
with the endpoints' gradients taken M times must learn about as FedAvg does. The data and the model
of examples/floco_cifar10.py, with 10 clients a round for 25 rounds.
"""

import csv
import math
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch

from fedkern import fl
from fedkern.nn import endpoint_parameters

M = 10
ROUNDS = 25
VARIANTS = {  # method, and the factor of the last layer's gradient
    "fedavg": (fl.FedAvg(weighting="samples"), 1),
    "fedavg, last layer / 10": (fl.FedAvg(weighting="samples"), 1 / M),
    "floco": (fl.Floco(endpoints=M, tau=ROUNDS + 1), 1),
    "floco, endpoints x 10": (fl.Floco(endpoints=M, tau=ROUNDS + 1), M),
}


def run(name: str) -> list[tuple[str, int, float, float]]:
    """Round, training loss and accuracy of a variant, every fifth round."""
    torch.set_num_threads(1)
    method, factor = VARIANTS[name]
    config = fl.RunConfig(
        dataset="cifar10",
        model="cnn",
        partition="fold",
        clients=100,
        clients_per_round=10,
        rounds=ROUNDS,
        local_epochs=5,
        batch_size=50,
        lr=0.02,
        momentum=0.5,
        weight_decay=5e-4,
        clip=math.inf,
        eval_every=5,
        device="cpu",
        workers=1,
        layers="plain",  # or the last layer's own forward pass would not be called
    )
    dataset = fl.load_dataset(config.dataset)
    clients = fl.make_clients(dataset, fl.make_partition(dataset, config))
    model = fl.build_model(config.model, dataset, fl.generator(config.seed, "model"))
    method.prepare(model, fl.generator(config.seed, "method"))
    last = model[-1]
    if endpoint_parameters(model):
        plain = last._plain  # what the layer does with its interpolated weight
        last._plain = lambda x, w, b: plain(x, factor * w + (1 - factor) * w.detach(), b)
    else:
        last.weight.register_hook(lambda gradient: gradient * factor)
    return [
        (name, round.number, round.train_loss, round.evaluation.accuracy)
        for round in fl.simulate(method, model, clients, config)
        if round.evaluation is not None
    ]


def main(out: Path) -> None:
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        rows = [row for rows in pool.map(run, VARIANTS) for row in rows]
    with out.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("variant", "round", "train_loss", "accuracy"))
        writer.writerows(rows)
    for name, number, loss, accuracy in rows:
        print(f"{name:24} round {number:3} loss {loss:.3f} accuracy {100 * accuracy:.2f}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
