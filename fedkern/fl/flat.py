"""A model in flat memory: one buffer of parameters, one of gradients.

What a federated round does with a whole model (load it, step, add it up) is then one pass over one
buffer, whatever the number of layers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fedkern.flat import view_in
from fedkern.nn import endpoint_parameters, interpolated

from .errors import ConfigError


class State(NamedTuple):
    """What training changes in a model.

    Attributes:
        values: the trainable parameters, [P], as `FlatModel.values` has them.
        buffers: the buffers, in the order of ``model.buffers()``.
    """

    values: Tensor
    buffers: list[Tensor]

    def copy(self) -> State:
        """One that later training leaves alone."""
        return State(self.values.clone(), [buffer.clone() for buffer in self.buffers])


def all_finite(first: Tensor, *others: Tensor) -> bool:
    """Whether there is no nan or infinity: in one pass, with one wait for the device.

    Args:
        first: floating-point.
        others: those that are not floating-point are finite.
    """
    tensors = [first, *(tensor for tensor in others if tensor.is_floating_point())]
    total = first.sum()
    for tensor in tensors[1:]:
        total = total + tensor.sum()  # what is not finite stays so in a sum
    # But a sum may overflow.
    return math.isfinite(total.item()) or all(bool(tensor.isfinite().all()) for tensor in tensors)


class Layout:
    """Where a model's trainable parameters lie in a row of numbers, and their gradients in another.

    A row of values holds the plain parameters one after the other, in their own memory formats,
    then the M endpoints of the model's simplex (`fedkern.nn.simplexify`), [M, D]: an endpoint of
    all simplex layers after the other. A row of gradients holds those of the plain parameters, then
    the gradient of the interpolated weights, [D]: endpoint m's is alpha_m times it.

    Attributes:
        num_values, num_gradients: lengths of the rows.
        num_plain: how many values are of plain parameters.
        num_endpoints: M; 0 for a model without a simplex.

    Raises:
        ConfigError: no trainable parameters, some of another dtype or device than the others,
            endpoints that are frozen, have hooks, or are not as many in all simplex layers.
    """

    def __init__(self, module: nn.Module) -> None:
        trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
        kinds = {(p.dtype, str(p.device)) for p in trained.values()}
        if len(kinds) != 1:
            got = ", ".join(f"{dtype} on {device}" for dtype, device in sorted(kinds, key=str))
            raise ConfigError(
                "model: wanted trainable parameters of one dtype on one device, got "
                + (got or "no trainable parameters")
            )
        endpoints = endpoint_parameters(module)
        if not all(theta.requires_grad for theta in endpoints):
            raise ConfigError("model: wanted endpoints that are trained, got frozen ones")
        if any(theta._backward_hooks for theta in endpoints):
            # Autograd stops at the interpolated weights: they would never be called.
            raise ConfigError("model: wanted endpoints without hooks on their gradients, got some")
        if len(sizes := sorted({len(theta) for theta in endpoints})) > 1:
            got = ", ".join(map(str, sizes))
            raise ConfigError(f"model: wanted as many endpoints in all simplex layers, got {got}")
        self.num_endpoints = len(endpoints[0]) if endpoints else 0
        # A parameter's strides in its own memory, without gaps.
        self._plain: dict[str, tuple[int, torch.Size, tuple[int, ...]]] = {}
        self._weights: dict[str, tuple[int, torch.Size, tuple[int, ...]]] = {}
        names = {id(p): name for name, p in trained.items()}
        shared = 0
        for theta in endpoints:
            strides = torch.empty(theta.shape[1:], device="meta").stride()
            self._weights[names[id(theta)]] = (shared, theta.shape[1:], strides)
            shared += theta[0].numel()
        size = 0
        for name, p in trained.items():
            if name not in self._weights:
                self._plain[name] = (size, p.shape, torch.empty_like(p, device="meta").stride())
                size += p.numel()
        self.num_plain = size
        self._size_of_endpoint = shared
        self.num_values = size + self.num_endpoints * shared
        self.num_gradients = size + shared

    def parameters(self, values: Tensor) -> dict[str, Tensor]:
        """The parameters by name, views of rows of values [..., num_values]: [..., *shape]."""
        views = self.plain(values)
        for name, (offset, shape, strides) in self._weights.items():
            shape = torch.Size((self.num_endpoints, *shape))
            strides = (self._size_of_endpoint, *strides)
            views[name] = view_in(values, self.num_plain + offset, shape, strides)
        return views

    def plain(self, rows: Tensor) -> dict[str, Tensor]:
        """What belongs to the plain parameters in rows of values or of gradients."""
        return {name: view_in(rows, *where) for name, where in self._plain.items()}

    def weights(self, rows: Tensor) -> list[Tensor]:
        """The simplex layers' interpolated weights, or their gradients, in rows [..., D]."""
        return [view_in(rows, *where) for where in self._weights.values()]

    def endpoints(self, values: Tensor) -> Tensor:
        """The endpoints of rows of values: [..., M, D]."""
        shape = (self.num_endpoints, self._size_of_endpoint)
        return torch.unflatten(values[..., self.num_plain :], -1, shape)


class FlatModel:
    """A model whose trainable parameters, and their gradients, are views of one buffer each.

    The model stays the object that it is, and its parameters too; their memory becomes flat.

    Attributes:
        module: the model.
        layout: where its parameters lie.
        values: the parameters, [P].
        gradients: their gradients, [P - M D + D]. A backward pass adds to them.
        buffers: the model's buffers.
        weights: the simplex layers' interpolated weights, leaves whose gradients lie in
            `gradients`; empty without a simplex.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.layout = Layout(module)
        self.buffers = list(module.buffers())
        named = dict(module.named_parameters())
        like = next(p for p in named.values() if p.requires_grad).detach()
        self.values = like.new_empty(self.layout.num_values)
        self.gradients = like.new_zeros(self.layout.num_gradients)
        gradients = self.layout.plain(self.gradients)
        for name, view in self.layout.parameters(self.values).items():
            view.copy_(named[name].detach())
            named[name].data = view
            named[name].grad = gradients.get(name)
        self.weights: list[Tensor] = []
        if self.layout.num_endpoints:
            shared = self.gradients[self.layout.num_plain :]
            self._interpolated = torch.zeros_like(shared)
            self.weights = self.layout.weights(self._interpolated)
            for weight, gradient in zip(self.weights, self.layout.weights(shared), strict=True):
                weight.requires_grad_().grad = gradient

    @property
    def endpoints(self) -> Tensor:
        """The endpoints of all simplex layers, [M, D]."""
        return self.layout.endpoints(self.values)

    def places(self) -> dict[nn.Parameter, Tensor]:
        """Where in `values` each trained parameter's entries are, int64 of its shape."""
        named = dict(self.module.named_parameters())
        positions = torch.arange(self.layout.num_values, device=self.values.device)
        return {named[name]: view for name, view in self.layout.parameters(positions).items()}

    def interpolated(self) -> AbstractContextManager[None]:
        """While in it, the simplex layers have the weights that `stand_at` computes."""
        return interpolated(self.module, self.weights)

    def stand_at(self, alpha: Tensor) -> None:
        """Computes the interpolated weights at a point of the simplex, [M]."""
        (weights,) = torch.ops.fedkern.simplex_interpolate([self.endpoints], alpha)
        self._interpolated.copy_(weights)

    @property
    def state(self) -> State:
        """The state itself, not a copy."""
        return State(self.values, self.buffers)

    def named(self, state: State) -> dict[str, Tensor]:
        """The parts of a state by the names of the module's parameters and buffers."""
        buffers = [name for name, _ in self.module.named_buffers()]
        parameters = self.layout.parameters(state.values)
        return {**parameters, **dict(zip(buffers, state.buffers, strict=True))}

    def from_named(self, tensors: Mapping[str, Tensor]) -> State:
        """The state of these parts.

        Raises:
            ConfigError: they are another model's.
        """
        state = self.state.copy()
        for name, own in (parts := self.named(state)).items():
            given = tensors.get(name, torch.empty(0))
            if given.shape != own.shape or given.dtype != own.dtype:
                raise ConfigError(
                    f"model: wanted {name} of {own.dtype}, shape {(*own.shape,)}, "
                    f"got {given.dtype}, shape {(*given.shape,)}"
                )
            own.copy_(given)
        if surplus := tensors.keys() - parts.keys():
            raise ConfigError(f"model: wanted {', '.join(parts)}, got {min(surplus)} too")
        return state

    @torch.no_grad()
    def load(self, state: State) -> None:
        """Takes on a state."""
        self.values.copy_(state.values)
        for buffer, value in zip(self.buffers, state.buffers, strict=True):
            buffer.copy_(value)

    @contextmanager
    def holding(self, state: State) -> Iterator[None]:
        """While in it, the model has another state."""
        before = self.state.copy()
        self.load(state)
        try:
            yield
        finally:
            self.load(before)
