"""Local training: what a client does with a model in one round."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import repeat
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
from .flat import FlatModel, Layout, State
from .linear import LARGEST
from .losses import CalibratedCE, CrossEntropy, Loss
from .reading import Reader, sent
from .seeding import Draws


@dataclass(frozen=True)
class LocalWork:
    """What a client trains in a round, as its method says it.

    Attributes:
        loss: what its SGD minimises.
        constants: what the loss needs to know beside what it asks of the client.
        purpose: keys its draws: work of another purpose has other ones.
        keeps: the name in `Client.models` of the model that is trained and kept there; the global
            model at first. None: a copy of the global model, for the server.
        pull: the gradient has pull (w - w_global) added, before it is clipped.
        center, radius: the subregion of the simplex whose points are trained, an L1 ball around
            `center` [M]; the whole simplex if it is None.
        sampler: `method` of `fedkern.simplex.sample_ball`.
        anchor_scale: a fault of published code: so many times w_global in `pull`.
        pulls_evenly: another: instead, each tensor of the gradient has pull / 2 times the unit
            vector of its w - w_global added.
        in_eval_mode: another: batch norm and dropout work as in evaluation.
    """

    loss: Loss
    constants: tuple[Tensor, ...] = ()
    purpose: str = ""
    keeps: str | None = None
    pull: float = 0.0
    center: Tensor | None = None
    radius: float = 0.0
    sampler: simplex.SampleMethod = "exact"
    anchor_scale: float = 1.0
    pulls_evenly: bool = False
    in_eval_mode: bool = False


@dataclass(frozen=True)
class Question:
    """What a server can ask all clients, beside their training.

    Attributes:
        work: what a client trains, a throw-away copy of the global model.
        answer: what it then sends, a tensor of one shape for all: of the client, the model's
            layout, the global parameters [P] and the state that its training ended in.
    """

    work: LocalWork
    answer: Callable[[Client, Layout, Tensor, State], Tensor]


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
    center, method = center.to(device, dtype), job.work.sampler
    return simplex.sample_ball(center, radius, steps, method=method, generator=draws)


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
        self._num_classes = dataset.num_classes
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
        model, config, work = self.model, self._config, job.work
        plan = Plan.of(job, model, config)
        labels = self._targets.index_select(0, plan.order.flatten())
        constants = (*work.loss.constants(job.client), *work.constants)
        of_teacher: Iterator[tuple[Tensor, ...]] = repeat(())
        if work.loss.needs_teacher:
            of_teacher = self._of_teacher(plan, State(anchor, job.start.buffers))
        model.load(job.start)
        if self._chain is None:  # which has no modes, and writes gradients over what was there
            model.gradients.zero_()
            start_training(model.module, config.buffers, in_eval_mode=work.in_eval_mode)
        if self._momentum is not None:
            self._momentum.zero_()
        near = anchor if work.anchor_scale == 1 else work.anchor_scale * anchor
        sgd_step = sgd_for(work, config, near, self._momentum, zero_gradients=self._chain is None)
        logits = []
        with model.interpolated():
            batches = zip(self._batches(plan, labels), of_teacher, strict=False)
            for step, ((inputs, targets), taught) in enumerate(batches):
                alpha = None if plan.points is None else plan.points[step]
                if alpha is not None:
                    model.stand_at(alpha)
                logits.append(self._backward(inputs, targets, work.loss, (*constants, *taught)))
                if work.pulls_evenly:
                    _pull_evenly(model, anchor, work.pull)
                sgd_step(model.values, model.gradients, alpha=alpha)
        # Once a job, for a second loss at every batch would cost as much as the first.
        plain = CrossEntropy()
        shown = torch.cat(logits)[:, : self._num_classes]  # FedRoD has another head's beside them
        train_loss = plain(shown, labels, *plain.constants(job.client))
        return Trained(model.state, train_loss)

    @torch.no_grad()
    def _of_teacher(self, plan: Plan, teacher: State) -> Iterator[tuple[Tensor]]:
        """A teacher's logits for all batches, in evaluation mode; the model holds it then.

        Samples that look the same in every epoch are looked at once.
        """
        model, epochs = self.model, len(plan.order)
        first = plan if plan.windows is not None else replace(plan, order=plan.order[:1])
        model.load(teacher)
        model.module.eval()
        forward = model.module if self._chain is None else self._chain.forward
        with model.interpolated():
            if plan.points is not None:
                model.stand_at(torch.full_like(plan.points[0], 1 / model.layout.num_endpoints))
            batches = self._batches(first, first.order.flatten())
            logits = torch.cat([forward(inputs).clone() for inputs, _ in batches])
        by_epoch = logits.view(len(first.order), -1, logits.shape[-1])
        if len(first.order) < epochs:
            positions, where = plan.order[0].sort()
            by_epoch = by_epoch[0, where[torch.searchsorted(positions, plan.order)]]
        return ((part,) for epoch in by_epoch for part in epoch.split(self._config.batch_size))

    def _warm_up(self) -> None:
        """Compiles, on a batch of samples that is then forgotten."""
        model, before = self.model, self.model.state.copy()
        samples = self._samples(self._config.batch_size)
        start_training(model.module, self._config.buffers)
        with model.interpolated():
            self._backward(self._reader(samples), self._targets[samples], CalibratedCE(), ())
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
        self, inputs: Tensor, targets: Tensor, loss: Loss, constants: tuple[Tensor, ...]
    ) -> Tensor:
        """Adds a batch's gradients to the model's, which are 0; returns the logits."""
        if self._chain is not None:
            logits = self._chain.forward(inputs)
            self._chain.backward(loss.gradient(logits, targets, *constants))
            return logits
        forward: Callable[[Tensor], Tensor] = self.model.module
        if self._compiled is not None and len(inputs) == self._config.batch_size:
            forward = self._compiled
        logits = forward(inputs)
        torch.autograd.backward(loss(logits, targets, *constants))
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
    pull = 0.0 if work.pulls_evenly else work.pull
    return partial(
        sgd_step_,
        lr=config.lr,
        momentum_buffer=momentum_buffer,
        anchor=anchor if pull else None,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        max_norm=config.clip,
        pull=pull,
        zero_grad=zero_gradients,
    )


def start_training(module: nn.Module, buffers: str, *, in_eval_mode: bool = False) -> None:
    """Training mode; with frozen buffers, modules that keep statistics use them as they are."""
    module.train(not in_eval_mode)
    if buffers == "frozen":
        for part in module.modules():
            part.training &= not any(True for _ in part.buffers(recurse=False))


def _pull_evenly(model: FlatModel, anchor: Tensor, pull: float) -> None:
    """Adds what the published code has for FedProx's term: of the norms, not of their squares."""
    before, gradients = model.layout.plain(anchor), model.layout.plain(model.gradients)
    for name, value in model.layout.plain(model.values).items():
        away = value - before[name]
        gradients[name].add_(away / away.norm().clamp(min=1e-30), alpha=pull / 2)
