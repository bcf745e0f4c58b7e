"""The vmap engine: the clients of a round as one batch.

Their models lie in the rows of one matrix. A step is one forward and backward pass of all of them
(`torch.vmap`), one call of the loss, one of the optimiser. Clients with fewer samples than others
have batches that are filled up with samples that count for nothing, and at last empty ones, in
which their models stay as they are. On CUDA the step is a graph, replayed from batch to batch.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import groupby
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from fedkern.nn import interpolated

from .augment import draw_windows, through_windows
from .config import RunConfig
from .data import Dataset
from .errors import ConfigError
from .failures import Failure, attempt, check_finite
from .flat import FlatModel, State
from .losses import Loss
from .reading import Reader, sent
from .training import Job, Plan, Trained, sgd_for, start_training

IGNORED = -100  # the target of a sample that counts for nothing


class VmapEngine:
    """All clients of a round at once; results as the serial engine's but for rounding.

    Raises:
        ConfigError: the model has batch norm in training mode, which would see the samples that
            batches are filled up with; or, in training, it has changed buffers.
    """

    def __init__(self, model: FlatModel, dataset: Dataset, config: RunConfig) -> None:
        self.model = model
        self.facts: dict[str, Any] = {"engine": "vmap"}
        self._dataset = dataset
        self._config = config
        self._stacks: list[_Stack] = []
        start_training(model.module, config.buffers)
        for module in model.module.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training:
                raise ConfigError(
                    "engine: wanted serial (or buffers=frozen) for a model with batch norm, got "
                    "vmap, whose batches are filled up to equal sizes"
                )

    def train(self, jobs: Sequence[Job], anchor: Tensor) -> Iterator[Trained | Failure]:
        """See `Engine`. Each kind of work is trained in parts of a round's clients."""
        size = self._config.clients_per_round
        for _, alike in groupby(jobs, key=_kind):
            part = list(alike)
            for first in range(0, len(part), size):
                yield from self._train(part[first : first + size], anchor)

    def _train(self, jobs: Sequence[Job], anchor: Tensor) -> Iterator[Trained | Failure]:
        """One batch; if it fails, its halves, down to the clients that do."""
        results = attempt(partial(self._train_batch, jobs, anchor), jobs[0])
        if not isinstance(results, Failure):
            yield from results
            return
        self._stacks.clear()  # there may be no memory for others
        if len(jobs) == 1:
            yield results
            return
        half = len(jobs) // 2
        yield from self._train(jobs[:half], anchor)
        yield from self._train(jobs[half:], anchor)

    def _train_batch(self, jobs: Sequence[Job], anchor: Tensor) -> list[Trained | Failure]:
        plan = _Plans(jobs, self.model, self._dataset, self._config)
        versions = [buffer._version for buffer in self.model.buffers]
        values, train_losses = self._stack_for(jobs, plan).train(jobs, plan, anchor)
        if versions != [buffer._version for buffer in self.model.buffers]:
            raise ConfigError(
                "engine: wanted serial (or buffers=frozen) for a model that changes its buffers, "
                "got vmap, which has one model's buffers for all clients"
            )
        trained = [
            Trained(State(row, job.start.buffers), train_loss)
            for job, row, train_loss in zip(jobs, values, train_losses, strict=True)
        ]
        if (values.sum(1) + train_losses).isfinite().all():  # waits for the device once
            return [*trained]
        return [
            attempt(partial(check_finite, one), job) for one, job in zip(trained, jobs, strict=True)
        ]

    def _stack_for(self, jobs: Sequence[Job], plan: _Plans) -> _Stack:
        """A stack for each kind of work: the shared models of a round, and the clients' own."""
        stack = next((s for s in self._stacks if s.serves(jobs[0])), None)
        if stack is None or not stack.fits(jobs, plan):
            if stack is not None:
                self._stacks.remove(stack)
                del stack  # its memory is free before the next one's is taken
            stack = _Stack(self.model, self._dataset, self._config, jobs, plan)
            self._stacks.append(stack)
        return stack


class _Plans:
    """The plans of all jobs, step by step, filled up to equal sizes.

    Attributes:
        order: positions in the data set, int64 [steps, K, batch].
        targets: labels, `IGNORED` where filled up, int64 [steps, K, batch].
        active: who has samples in a step, bool [steps, K].
        windows: int64 [steps, K, batch, 3], or None.
        points: [steps, K, M], or None.
        samples: of each job over all epochs, [K].
    """

    def __init__(
        self, jobs: Sequence[Job], model: FlatModel, dataset: Dataset, config: RunConfig
    ) -> None:
        plans = [Plan.of(job, model, config) for job in jobs]
        orders = [_by_step(plan.order, config.batch_size, 0) for plan in plans]
        self.order = _stacked(orders)
        counted = [_by_step(torch.ones_like(p.order), config.batch_size, 0).bool() for p in plans]
        counts = _stacked(counted)
        labels = dataset.y_train.index_select(0, self.order.flatten()).view(self.order.shape)
        self.targets = labels.masked_fill(~counts, IGNORED)
        self.active = counts.any(2)
        self.samples = counts.sum((0, 2))
        self.windows = None
        if plans[0].windows is not None:
            unchanged = sent(draw_windows(1, (), torch.Generator())[0], self.order.device)
            self.windows = _stacked(
                [_by_step(p.windows, config.batch_size, unchanged) for p in plans]  # type: ignore[arg-type]
            )
        self.points = None
        if plans[0].points is not None:
            self.points = _stacked([plan.points for plan in plans])  # type: ignore[misc]


def _by_step(values: Tensor, batch_size: int, filler: int | Tensor) -> Tensor:
    """[epochs, n, ...] as [steps, batch, ...], each epoch's last batch filled up."""
    epochs, n = values.shape[:2]
    missing = -n % batch_size
    filled = values.new_empty(epochs, n + missing, *values.shape[2:])
    filled[:, :n] = values
    filled[:, n:] = filler
    return filled.view(-1, batch_size, *values.shape[2:])


def _stacked(by_job: Sequence[Tensor]) -> Tensor:
    """Tensors [steps_k, ...] as one [steps, K, ...], filled up with zeros."""
    return nn.utils.rnn.pad_sequence(list(by_job))


class _Stack:
    """K models in training, a row each, and the memory that their steps use."""

    def __init__(
        self,
        model: FlatModel,
        dataset: Dataset,
        config: RunConfig,
        jobs: Sequence[Job],
        plan: _Plans,
    ) -> None:
        self._model, self._config, self._work = model, config, jobs[0].work
        self._kind = _kind(jobs[0])
        layout, k = model.layout, len(jobs)
        self._values = model.values.new_empty(k, layout.num_values)
        self._gradients = model.values.new_zeros(k, layout.num_gradients)
        self._momentum = torch.zeros_like(self._values) if config.momentum else None
        self._anchor = torch.empty_like(model.values)
        self._sgd_step = sgd_for(
            self._work, config, self._anchor, self._momentum, zero_gradients=False
        )
        self._interpolated = self._gradients[:, layout.num_plain :].clone()
        self._parameters = layout.plain(self._values)
        self._weights = layout.weights(self._interpolated)
        self._leaves = [*self._parameters.values(), *self._weights]
        self._leaf_gradients = [
            *layout.plain(self._gradients).values(),
            *layout.weights(self._gradients[:, layout.num_plain :]),
        ]
        for leaf in self._leaves:
            leaf.requires_grad_()
        self._constants = _constants(jobs)
        self._num_classes = dataset.num_classes
        self._read = Reader(dataset.x_train)
        # The teacher's logits of every step, [steps, K, batch, C], if the loss needs them.
        self._taught: Tensor | None = None
        self._train_losses = torch.zeros(k, dtype=torch.float32, device=model.values.device)
        # What a step reads is at the place of `step`, on the device: so a graph can move on.
        self._step = torch.zeros(1, dtype=torch.int64, device=model.values.device)
        self._plan = plan
        self._graph: torch.cuda.CUDAGraph | None = None
        if model.values.is_cuda:
            self._capture(jobs, plan, self._anchor)

    def serves(self, job: Job) -> bool:
        """Whether it is this kind of work; clients and their subregions may be others."""
        return _kind(job) == self._kind

    def fits(self, jobs: Sequence[Job], plan: _Plans) -> bool:
        """Whether these jobs have its size: as many, in no more steps."""
        return len(jobs) == len(self._values) and len(plan.order) <= len(self._plan.order)

    def train(self, jobs: Sequence[Job], plan: _Plans, anchor: Tensor) -> tuple[Tensor, Tensor]:
        """Trains all jobs; the values they end with, [K, P], and their training losses, [K]."""
        self._load(jobs, plan, anchor)
        start_training(self._model.module, self._config.buffers)
        for _ in range(len(plan.order)):
            if self._graph is None:
                self._do_step()
            else:
                self._graph.replay()
        return self._values, self._train_losses / plan.samples

    def _load(self, jobs: Sequence[Job], plan: _Plans, anchor: Tensor) -> None:
        for row, job in zip(self._values, jobs, strict=True):
            row.copy_(job.start.values)
        if self._momentum is not None:
            self._momentum.zero_()
        torch.mul(anchor, jobs[0].work.anchor_scale, out=self._anchor)
        self._train_losses.zero_()
        self._step.zero_()
        for kept, constants in zip(self._constants, _constants(jobs), strict=True):
            kept.copy_(constants)
        taught = None
        if self._work.loss.needs_teacher:
            taught = self._of_teacher(plan, anchor)
        if self._graph is None:
            self._plan, self._taught = plan, taught
            return
        # The graph reads where the first plan lies.
        for name, values in vars(plan).items():
            if values is not None and name != "samples":
                getattr(self._plan, name)[: len(values)].copy_(values)
        if self._taught is not None and taught is not None:
            self._taught[: len(taught)].copy_(taught)

    @torch.no_grad()
    def _of_teacher(self, plan: _Plans, teacher: Tensor) -> Tensor:
        """The logits of a teacher with these values for all steps; the model has them then."""
        self._model.values.copy_(teacher)
        self._model.module.eval()
        logits = []
        for step in range(len(plan.order)):
            inputs = self._read(plan.order[step].flatten())
            if plan.windows is not None:
                inputs = through_windows(inputs, plan.windows[step].flatten(0, 1))
            logits.append(self._model.module(inputs).view(*plan.order[step].shape, -1))
        return torch.stack(logits)

    def _do_step(self) -> None:
        plan = self._plan

        def now(values: Tensor) -> Tensor:
            return values.index_select(0, self._step).squeeze(0)

        inputs = self._read(now(plan.order).flatten())
        if plan.windows is not None:
            inputs = through_windows(inputs, now(plan.windows).flatten(0, 1))
        targets, alpha = now(plan.targets), None if plan.points is None else now(plan.points)
        if alpha is not None:
            endpoints = self._model.layout.endpoints(self._values)
            self._interpolated.copy_(
                torch.ops.fedkern.simplex_interpolate([endpoints], alpha, True)[0]
            )
        batches = inputs.view(*targets.shape, *inputs.shape[1:])
        logits = torch.vmap(self._forward, randomness="different")(
            self._parameters, self._weights, batches
        )
        constants = [*self._constants]
        if self._taught is not None:
            constants.append(now(self._taught))
        losses = torch.vmap(self._work.loss)(logits, targets, *constants)
        gradients = torch.autograd.grad(losses.sum(), self._leaves, materialize_grads=True)
        torch._foreach_copy_(self._leaf_gradients, gradients)
        self._sgd_step(self._values, self._gradients, alpha=alpha, active=now(plan.active))
        plain = F.cross_entropy(
            logits.detach().flatten(0, 1)[:, : self._num_classes].float(),
            targets.flatten(),
            ignore_index=IGNORED,
            reduction="none",
        )
        self._train_losses += plain.view(targets.shape).sum(1)
        self._step += 1

    def _forward(
        self, parameters: dict[str, Tensor], weights: list[Tensor], inputs: Tensor
    ) -> Tensor:
        """One model's logits of its batch."""
        module = self._model.module
        with interpolated(module, weights):
            logits: Tensor = functional_call(module, parameters, (inputs,))
        return logits

    def _capture(self, jobs: Sequence[Job], plan: _Plans, anchor: Tensor) -> None:
        """Makes the step a graph; what its trial runs change is loaded anew before training."""
        self._load(jobs, plan, anchor)
        start_training(self._model.module, self._config.buffers)
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):  # lazy initialisations must not be captured
                self._step.zero_()
                self._do_step()
        torch.cuda.current_stream().wait_stream(stream)
        self._step.zero_()
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                self._do_step()
        except RuntimeError as error:
            reason = str(error).partition("\n")[0]
            warnings.warn(f"engine: vmap runs without a CUDA graph: {reason}", stacklevel=2)
        else:
            self._graph = graph


def _kind(job: Job) -> tuple[Loss, float, str | None]:
    """What jobs have in common that are trained as one batch."""
    return job.work.loss, job.work.pull, job.work.keeps


def _constants(jobs: Sequence[Job]) -> list[Tensor]:
    """What the loss needs to know of the clients: its constants, [K, ...] each."""
    by_job = [(*job.work.loss.constants(job.client), *job.work.constants) for job in jobs]
    return [torch.stack(values) for values in zip(*by_job, strict=True)]
