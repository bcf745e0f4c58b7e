"""Calibrated cross entropy in a plain classifier on imbalanced data; nothing here is federated.

    python examples/imbalanced_classifier.py [FIGURE.png]

The handwritten digits are made long-tailed: 130 zeros, fewer of each next digit, 3 nines. For each
loss the same network is trained from the same initial values on the same batches, for so many
epochs that more of them change little. The table and the figure have each class's recall on the
test set, which is balanced: means over five seeds, each with training samples of its own.

Rare classes gain, some frequent ones lose a little. The counts of the whole training set do a
little more than those of each batch, about as much as balanced softmax.
"""

import sys
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import fedkern
from fedkern import fl

SEEDS, EPOCHS = 5, 60
CLASS_COUNTS = [round(130 * (3 / 130) ** (c / 9)) for c in range(10)]


def long_tailed(targets: Tensor) -> Tensor:
    """Positions of samples drawn at random, CLASS_COUNTS of each class."""
    kept = []
    for c, count in enumerate(CLASS_COUNTS):
        own = (targets == c).nonzero().flatten()
        kept.append(own[torch.randperm(len(own))[:count]])
    return torch.cat(kept)


def train(loss: Callable[[Tensor, Tensor], Tensor], inputs: Tensor, targets: Tensor) -> nn.Module:
    """An ordinary training loop."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(targets)).split(32):
            optimizer.zero_grad()
            loss(model(inputs[batch]), targets[batch]).backward()
            optimizer.step()
    return model


@torch.no_grad()
def recalls(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """The part of each class's samples that the model finds, [10]."""
    correct = model(inputs).argmax(1) == targets
    return fedkern.class_counts(targets[correct], 10) / fedkern.class_counts(targets, 10)


def main(figure_path: str = "recalls.png") -> None:
    torch.set_num_threads(1)  # for so small a network
    digits = fl.load_dataset("digits")
    x_train, x_test = fl.scaled(digits.x_train), fl.scaled(digits.x_test)
    counts = torch.tensor(CLASS_COUNTS)
    losses = {
        "cross entropy": F.cross_entropy,
        "calibrated, batch counts": fedkern.calibrated_ce,
        "calibrated, data counts": partial(fedkern.calibrated_ce, class_counts=counts),
        "balanced softmax": partial(fedkern.logit_adjusted_ce, logit_adjustment=counts.log()),
    }
    found = torch.empty(len(losses), SEEDS, 10)
    for i, loss in enumerate(losses.values()):
        for seed in range(SEEDS):
            torch.manual_seed(seed)  # no loss draws random numbers: all see the same
            kept = long_tailed(digits.y_train)
            model = train(loss, x_train[kept], digits.y_train[kept])
            found[i, seed] = recalls(model, x_test, digits.y_test)

    table = Table("class", "samples", *losses, title=f"recall in %, mean of {SEEDS} seeds")
    for c, recall in enumerate(100 * found.mean(1).T):
        table.add_row(str(c), str(CLASS_COUNTS[c]), *(f"{r:.1f}" for r in recall))
    table.add_section()
    table.add_row("macro", "", *(f"{100 * r:.1f}" for r in found.mean((1, 2))))
    Console().print(table)

    figure = Figure(layout="constrained", figsize=(9, 4))
    axes = figure.subplots()
    for i, name in enumerate(losses):
        axes.bar(torch.arange(10) + 0.2 * (i - 1.5), found[i].mean(0), width=0.2, label=name)
    axes.set_xticks(range(10), [f"{c}\n({count})" for c, count in enumerate(CLASS_COUNTS)])
    axes.set_xlabel("class (training samples)")
    axes.set_ylabel("recall on test data")
    figure.legend(loc="outside upper center", ncols=len(losses))
    figure.savefig(figure_path, dpi=120)
    print(f"{figure_path}: the same as a figure")


if __name__ == "__main__":
    main(*sys.argv[1:])
