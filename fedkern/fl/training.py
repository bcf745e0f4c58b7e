"""Local training: what a client does with a model in one round."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .augment import draw_windows, through_windows
from .client import Client
from .config import RunConfig
from .losses import LossFunction
from .reading import Reader, sent
from .seeding import Draws


class Pull(NamedTuple):
    """A term of the gradient that holds a model's parameters near others: strength (p - anchor)."""

    strength: float
    anchors: Sequence[Tensor]


def local_sgd(
    model: nn.Module,
    client: Client,
    loss: LossFunction,
    config: RunConfig,
    draws: Draws,
    *,
    pull: Pull | None = None,
) -> Tensor:
    """Trains `model` in place on a client's data by mini-batch SGD with gradient-norm clipping.

    The optimiser is new, so momentum does not outlive the round. The last batch of an epoch may be
    smaller. Nothing is read back from the device.

    Args:
        model: holds the parameters to start from.
        client: whose data, at least one sample.
        loss: maps a batch's logits and targets to the scalar that is minimised.
        config: local_epochs, batch_size, lr, momentum, weight_decay, clip, augment and buffers are
            used.
        draws: ``"batches"`` shuffles the data anew before every epoch, ``"augment"`` varies them.
        pull: added to the gradient, before it is clipped; anchors in the order of the parameters.

    Returns:
        The plain cross entropy of the training batches, mean over samples and epochs, as a scalar
        on the device. It is the same quantity for every method, whatever its `loss` means.
    """
    model.train()
    if config.buffers == "frozen":
        for module in model.modules():  # one that keeps statistics uses them as they are
            module.training = not any(True for _ in module.buffers(recurse=False))
    parameters = list(model.parameters())
    optimizer = torch.optim.SGD(
        parameters,
        lr=config.lr,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
    )
    shuffling, varying = draws("batches"), draws("augment")
    read, kinds = Reader(client.dataset.x_train), config.augmentations
    train_loss = torch.zeros((), device=client.indices.device)
    for _ in range(config.local_epochs):
        order = client.order(shuffling)
        targets = client.dataset.y_train.index_select(0, order)
        windows = sent(draw_windows(len(client), kinds, varying), order.device)
        epoch_logits = []
        batches = (torch.split(part, config.batch_size) for part in (order, targets, windows))
        for chosen, labels, batch_windows in zip(*batches, strict=True):
            inputs = read(chosen)
            if kinds:
                inputs = through_windows(inputs, batch_windows)
            logits = model(inputs)
            optimizer.zero_grad()
            torch.autograd.backward(loss(logits, labels))
            if pull is not None:
                _add_pull(parameters, pull)
            if math.isfinite(config.clip):
                nn.utils.clip_grad_norm_(parameters, config.clip)
            optimizer.step()
            epoch_logits.append(logits.detach())
        # Once an epoch, for a second loss at every batch would cost as much as the first.
        train_loss = train_loss + F.cross_entropy(torch.cat(epoch_logits), targets)
    return train_loss / config.local_epochs


@torch.no_grad()
def _add_pull(parameters: Sequence[Tensor], pull: Pull) -> None:
    for parameter, anchor in zip(parameters, pull.anchors, strict=True):
        if parameter.grad is not None:
            parameter.grad.add_(parameter - anchor, alpha=pull.strength)
