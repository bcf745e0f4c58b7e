"""Local training: what a client does with the global model in one round."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import RunConfig

LossFunction = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Client:
    """A client and its data: an index into tensors that all clients share.

    Attributes:
        inputs, targets: the whole training set, float32 [n, ...] and int64 [n].
        indices: which of its samples are this client's, int64 [n_k], on the same device.
        num_classes: of the data set.
    """

    inputs: Tensor
    targets: Tensor
    indices: Tensor
    num_classes: int

    def __len__(self) -> int:
        return len(self.indices)

    def shuffled(self, draws: torch.Generator) -> tuple[Tensor, Tensor]:
        """The client's inputs and targets, copied in a new random order."""
        order = torch.randperm(len(self), generator=draws).to(self.indices.device)
        chosen = self.indices[order]
        return self.inputs.index_select(0, chosen), self.targets.index_select(0, chosen)


def local_sgd(
    model: nn.Module,
    client: Client,
    loss: LossFunction,
    config: RunConfig,
    draws: torch.Generator,
) -> Tensor:
    """Trains `model` in place on a client's data by mini-batch SGD with gradient-norm clipping.

    The optimiser is new, so momentum does not outlive the round. The last batch of an epoch may be
    smaller. Nothing is read back from the device.

    Args:
        model: holds the parameters to start from.
        client: whose data, at least one sample.
        loss: maps a batch's logits and targets to the scalar that is minimised.
        config: local_epochs, batch_size, lr, momentum, weight_decay and clip are used.
        draws: a CPU generator; shuffles the data anew before every epoch.

    Returns:
        The plain cross entropy of the training batches, mean over samples and epochs, as a scalar
        on the device. It is the same quantity for every method, whatever its `loss` means.
    """
    model.train()
    parameters = list(model.parameters())
    optimizer = torch.optim.SGD(
        parameters,
        lr=config.lr,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
    )
    train_loss = torch.zeros((), device=client.inputs.device)
    for _ in range(config.local_epochs):
        inputs, targets = client.shuffled(draws)
        input_batches = torch.split(inputs, config.batch_size)
        target_batches = torch.split(targets, config.batch_size)
        epoch_logits = []
        for batch, labels in zip(input_batches, target_batches, strict=True):
            logits = model(batch)
            optimizer.zero_grad()
            torch.autograd.backward(loss(logits, labels))
            if math.isfinite(config.clip):
                nn.utils.clip_grad_norm_(parameters, config.clip)
            optimizer.step()
            epoch_logits.append(logits.detach())
        # Once an epoch, for a second loss at every batch would cost as much as the first.
        train_loss = train_loss + F.cross_entropy(torch.cat(epoch_logits), targets)
    return train_loss / config.local_epochs
