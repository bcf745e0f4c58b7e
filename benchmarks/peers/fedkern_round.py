"""Rounds of FedAvg with fedkern, timed from end to end as the other scripts here time them."""

from dataclasses import replace
from time import perf_counter

import task
import torch

import fedkern
from fedkern import fl


def main() -> None:
    options = task.arguments(__doc__).parse_args()
    torch.set_num_threads(options.threads)
    total = options.warm_up + options.rounds
    # One more round, never asked for: the last one is always evaluated.
    config = replace(task.CONFIG, rounds=total + 1, eval_every=total + 1, workers=1)
    model = task.new_model()
    run = fl.simulate(fl.FedAvg(), model, task.clients(), config)
    ends = []
    for _ in range(total):
        next(run)
        ends.append(perf_counter())
    task.report("fedkern", fedkern.__version__, ends, options.warm_up, model)


if __name__ == "__main__":
    main()
