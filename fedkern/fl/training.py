"""Local training: what a client does with a model in one round."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fedkern import simplex
from fedkern.optim import sgd_step_

from .augment import draw_windows, through_windows
from .chain import chain_of
from .client import Client
from .config import RunConfig
from .data import Dataset
from .flat import FlatModel, State
from .linear import LARGEST
from .losses import CrossEntropy, Loss
from .reading import Reader, sent
from .seeding import Draws


@dataclass(frozen=True)
class LocalWork:
    """What a client trains in a round, as its method says it.

    Attributes:
        loss: what its SGD minimises.
        purpose: keys its draws: work of another purpose has other ones.
        keeps: the name in `Client.state` of the model that is trained and kept there, a `State`;
            the global model at first. None: a copy of the global model, for the server.
        pull: the gradient has pull (w - w_global) added, before it is clipped.
        center, radius: the subregion of the simplex whose points are trained, an L1 ball around
            `center` [M]; the whole simplex if it is None.
    """

    loss: Loss
    purpose: str = ""
    keeps: str | None = None
    pull: float = 0.0
    center: Tensor | None = None
    radius: float = 0.0


class Job(NamedTuple):
    """Local work of one client: what an engine is asked to train."""

    client: Client
    work: LocalWork
    start: State
    draws: Draws


class Trained(NamedTuple):
    """What came of a job.

    Attributes:
        state: valid until the engine's next result is asked for.
        train_loss: plain cross entropy of the training batches, mean over samples and epochs, a
            scalar on the device. It is the same quantity for every method, whatever its loss means.
    """

    state: State
    train_loss: Tensor


@dataclass(frozen=True)
class Plan:
    """All random choices of a job, made before it starts.

    Attributes:
        order: the samples' positions in the data set, int64 [epochs, n].
        windows: through which images are seen, int64 [epochs, n, 3]; None if as they are.
        points: of the simplex, a step each, [steps, M]; None for a model without one.
    """

    order: Tensor
    windows: Tensor | None
    points: Tensor | None

    @classmethod
    def of(cls, job: Job, model: FlatModel, config: RunConfig) -> Plan:
        """Draws a plan: ``"batches"`` shuffle the data anew before every epoch, ``"augment"`` vary
        them, ``"alpha"`` are the points."""
        client, epochs = job.client, range(config.local_epochs)
        shuffling = job.draws("batches")
        order = torch.stack([client.order(shuffling) for _ in epochs])
        windows = None
        if kinds := config.augmentations:
            varying = job.draws("augment")
            drawn = torch.stack([draw_windows(len(client), kinds, varying) for _ in epochs])
            windows = sent(drawn, order.device)
        steps = len(epochs) * math.ceil(len(client) / config.batch_size)
        return cls(order, windows, _points(job, model, steps))


def _points(job: Job, model: FlatModel, steps: int) -> Tensor | None:
    size, center, radius = model.layout.num_endpoints, job.work.center, job.work.radius
    if not size:
        return None
    dtype = torch.float64 if model.values.dtype == torch.float64 else torch.float32
    device = model.values.device
    if size == 1:  # the plain model to the bit, which a drawn point, 1 but for rounding, is not
        return torch.ones(steps, 1, dtype=dtype, device=device)
    draws = job.draws("alpha")
    if center is None:
        return simplex.sample(size, [steps], generator=draws, device=device, dtype=dtype)
    return simplex.sample_ball(center.to(device, dtype), radius, steps, generator=draws)


class Trainer:
    """A model in which clients train, one after the other, by mini-batch SGD with clipping.

    The optimiser is new for each job, so momentum does not outlive the round. The last batch of an
    epoch may be smaller. A parameter that the loss does not depend on has the gradient 0. Nothing
    is read back from the device.
    """

    def __init__(self, model: FlatModel, dataset: Dataset, config: RunConfig) -> None:
        self.model = model
        self._reader = Reader(dataset.x_train)
        self._targets = dataset.y_train
        self._config = config
        self._momentum = torch.zeros_like(model.values) if config.momentum else None
        self._chain = chain_of(model) if config.layers == "fast" and not config.compile else None
        # Batches of other sizes, an epoch's last, would be compiled anew.
        self._compiled = torch.compile(model.module) if config.compile else None
        if config.compile:
            self._warm_up()

    @property
    def is_chain(self) -> bool:
        """Whether the model is a chain of layers that is run without autograd."""
        return self._chain is not None

    def settle(self) -> None:
        """Lets a chain choose its layers' implementations now, for batches of any size.

        Processes that are forked later then have the same choices, and the same bits.
        """
        if self._chain is not None:
            size, largest = 1, min(self._config.batch_size, LARGEST)
            while size < 2 * largest:  # a choice holds up to a power of two
                self._chain.forward(self._reader(self._samples(size)))
                size *= 2

    def train(self, job: Job, anchor: Tensor) -> Trained:
        """Does a job, in place.

        Args:
            job: of a client with at least a sample.
            anchor: the global parameters, [P].
        """
        model, config = self.model, self._config
        plan = Plan.of(job, model, config)
        labels = self._targets.index_select(0, plan.order.flatten())
        loss, class_counts = job.work.loss, job.work.loss.class_counts(job.client)
        model.load(job.start)
        if self._chain is None:  # which has no modes, and writes gradients over what was there
            model.gradients.zero_()
            start_training(model.module, config.buffers)
        if self._momentum is not None:
            self._momentum.zero_()
        sgd_step = sgd_for(
            job.work, config, anchor, self._momentum, zero_gradients=self._chain is None
        )
        logits = []
        with model.interpolated():
            for step, (inputs, targets) in enumerate(self._batches(plan, labels)):
                alpha = None if plan.points is None else plan.points[step]
                if alpha is not None:
                    model.stand_at(alpha)
                logits.append(self._backward(inputs, targets, loss, class_counts))
                sgd_step(model.values, model.gradients, alpha=alpha)
        # Once a job, for a second loss at every batch would cost as much as the first.
        plain = CrossEntropy()
        train_loss = plain(torch.cat(logits), labels, plain.class_counts(job.client))
        return Trained(model.state, train_loss)

    def _warm_up(self) -> None:
        """Compiles, on a batch of samples that is then forgotten."""
        model, before = self.model, self.model.state.copy()
        samples = self._samples(self._config.batch_size)
        start_training(model.module, self._config.buffers)
        with model.interpolated():
            self._backward(self._reader(samples), self._targets[samples], CrossEntropy(), None)
        model.gradients.zero_()
        model.load(before)

    def _samples(self, count: int) -> Tensor:
        """The positions of so many samples, to try the model with."""
        return torch.arange(count, device=self._targets.device) % len(self._targets)

    def _batches(self, plan: Plan, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Inputs, valid until the next batch, and targets."""
        size = self._config.batch_size
        for epoch, targets in enumerate(labels.view(plan.order.shape)):
            windows = None if plan.windows is None else torch.split(plan.windows[epoch], size)
            order = torch.split(plan.order[epoch], size)
            batches = zip(order, torch.split(targets, size), strict=True)
            for i, (indices, batch) in enumerate(batches):
                inputs = self._reader(indices)
                yield inputs if windows is None else through_windows(inputs, windows[i]), batch

    def _backward(
        self, inputs: Tensor, targets: Tensor, loss: Loss, class_counts: Tensor | None
    ) -> Tensor:
        """Adds a batch's gradients to the model's, which are 0; returns the logits."""
        if self._chain is not None:
            logits = self._chain.forward(inputs)
            self._chain.backward(loss.gradient(logits, targets, class_counts))
            return logits
        forward: Callable[[Tensor], Tensor] = self.model.module
        if self._compiled is not None and len(inputs) == self._config.batch_size:
            forward = self._compiled
        logits = forward(inputs)
        torch.autograd.backward(loss(logits, targets, class_counts))
        return logits.detach()


def sgd_for(
    work: LocalWork,
    config: RunConfig,
    anchor: Tensor,
    momentum_buffer: Tensor | None,
    *,
    zero_gradients: bool,
) -> Callable[..., None]:
    """`fedkern.optim.sgd_step_` with a run's settings, for one model or for several."""
    return partial(
        sgd_step_,
        lr=config.lr,
        momentum_buffer=momentum_buffer,
        anchor=anchor if work.pull else None,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        max_norm=config.clip,
        pull=work.pull,
        zero_grad=zero_gradients,
    )


def start_training(module: nn.Module, buffers: str) -> None:
    """Training mode; with frozen buffers, modules that keep statistics use them as they are."""
    module.train()
    if buffers == "frozen":
        for part in module.modules():
            part.training = not any(True for _ in part.buffers(recurse=False))
