"""Made-up rounds, for what is reported of them."""

import math
from dataclasses import replace

import torch

from fedkern import fl
from fedkern.fl.results import Result


def round_of(number, accuracy=None, train_loss=0.25):
    evaluation = None
    if accuracy is not None:
        evaluation = fl.Evaluation(10, accuracy, 0.5, 2.0, 1.5, 0.05, [accuracy, math.nan], 1)
    failures = [fl.Failure(2, "no data", "it has no training samples")]
    return fl.Round(number, 0.125, train_loss, evaluation, clients=4, failed=1, failures=failures)


def result_of(method, seed, *accuracies):
    return Result(method, seed, {}, [round_of(i + 1, a) for i, a in enumerate(accuracies)])


RESULTS = [
    result_of("fedavg", 0, 0.2, 0.4),
    result_of("fedga", 0, 0.3, 0.7),
    result_of("fedavg", 1, 0.4, 0.6),
    result_of("fedga", 1, 0.5, 0.7),
]


def local_figures(correct, model="global"):
    """Four clients of two samples, of which so many are right; a fifth has none."""
    logits = [torch.eye(3)[:2]] * 4 + [torch.zeros(0, 3)]
    targets = [torch.tensor([0 if n > 0 else 2, 1 if n > 1 else 2]) for n in correct]
    return fl.measure_local(logits, [*targets, targets[0][:0]], 3, model)


def local_round(number, global_correct, personal_correct=None):
    round = round_of(number, 0.5)
    personal = personal_correct and local_figures(personal_correct, "personal")
    return replace(round, global_on_local=local_figures(global_correct), personal_on_local=personal)


LOCAL_RESULTS = [
    Result("fedavg", 0, {}, [local_round(1, [0, 1, 1, 2]), local_round(2, [0, 0, 0, 1])]),
    Result(
        "floco",
        0,
        {"tau": 2},
        [local_round(1, [0, 1, 1, 2], [0, 1, 1, 2]), local_round(2, [1, 1, 1, 1], [2, 2, 2, 1])],
    ),
]
