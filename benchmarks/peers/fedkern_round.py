"""Rounds of FedAvg with fedkern, timed from end to end as the other scripts here time them."""

from dataclasses import replace
from time import perf_counter

import task
import torch

import fedkern
from fedkern import fl


def main() -> None:
    parser = task.arguments(__doc__)
    parser.add_argument("--workers", type=int, default=1, help="processes that train clients")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    total = options.warm_up + options.rounds
    # One more round, never asked for: the last one is always evaluated.
    never = total + 1
    config = replace(task.CONFIG, rounds=never, eval_every=never, workers=options.workers)
    model = task.new_model()
    run = fl.simulate(fl.FedAvg(), model, task.clients(), config)
    ends = []
    for _ in range(total):
        next(run)
        ends.append(perf_counter())
    task.report("fedkern", fedkern.__version__, ends, options.warm_up, model)


if __name__ == "__main__":
    main()
