"""Forward and backward passes of a chain of layers, by the functions that autograd would call.

A small network's step is half bookkeeping: graph, nodes, gradients that are allocated and then
added to what is there. A chain of the layers below needs none of it, and gradients go straight to
where they belong. Linear layers use our products, torch's or oneDNN's, whichever are faster for
their shape on this machine. Results equal those of autograd but for rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules.utils import _pair

from fedkern import _library
from fedkern.nn import SimplexConv2d, SimplexLinear, is_pass

from .flat import FlatModel
from .heads import TwoHeads
from .linear import choose_products


class Chain(Protocol):
    """A model that is run without autograd (csrc/fl/)."""

    def forward(self, x: Tensor) -> Tensor:
        """The logits."""

    def backward(self, gradient: Tensor) -> None:
        """Writes the gradients of all parameters, over what was there, from that of the logits."""


def chain_of(model: FlatModel) -> Chain | None:
    """The model as a chain; None if it is none, or if someone listens to its layers."""
    modules = _flattened(model.module)
    if modules is None or model.buffers:  # no layer here has any
        return None
    if torch.is_autocast_enabled(model.values.device.type):
        return None
    if any(map(_is_watched, model.module.modules())):
        return None
    if nn.modules.module._has_any_global_hook():  # type: ignore[no-untyped-call]
        return None
    parameters = [id(p) for module in modules for p in module.parameters()]
    if len(set(parameters)) < len(parameters):  # gradients are written, not added up
        return None
    weights = iter(model.weights)
    try:
        chain: Chain = _library.Chain([_LAYERS[type(m)](m, weights) for m in modules])
    except (KeyError, _UnsupportedError, ValueError):  # ValueError: no layer has parameters
        return None
    return chain


class _UnsupportedError(Exception):
    """A layer with options that chains do not have."""


def _flattened(module: nn.Module) -> list[nn.Module] | None:
    """The modules of nested `torch.nn.Sequential`s, in the order they are called."""
    if "forward" in vars(module):  # an object's own
        return None
    if type(module).forward is not nn.Sequential.forward:
        return [module] if type(module) in _LAYERS else None
    # Not children(): it leaves out what comes a second time.
    parts = [_flattened(part) for part in module._modules.values() if part is not None]
    return None if None in parts else [layer for part in parts if part for layer in part]


def _is_watched(module: nn.Module) -> bool:
    """Whether there are hooks, which a chain would not call."""
    hooks = [
        *module._forward_pre_hooks.values(),
        *module._forward_hooks.values(),
        *module._backward_pre_hooks.values(),
        *module._backward_hooks.values(),
    ]
    of_parameters = [
        p._backward_hooks or p._post_accumulate_grad_hooks for p in module.parameters(False)
    ]
    return any(of_parameters) or not all(map(is_pass, hooks))


# ---- layers --------------------------------------------------------------------------------------

Weights = Iterator[Tensor]  # the simplex layers' interpolated ones, in their order


def _flatten(module: nn.Flatten, _: Weights) -> Any:
    return _library.Flatten(module.start_dim, module.end_dim)


def _relu(module: nn.ReLU, _: Weights) -> Any:
    return _library.ReLU()


def _leaky_relu(module: nn.LeakyReLU, _: Weights) -> Any:
    return _library.LeakyReLU(module.negative_slope)


def _max_pool2d(module: nn.MaxPool2d, _: Weights) -> Any:
    if module.return_indices:
        raise _UnsupportedError
    sizes = (module.kernel_size, module.stride, module.padding, module.dilation)
    return _library.MaxPool2d(*map(_pair, sizes), module.ceil_mode)


def _linear(module: nn.Linear | SimplexLinear, weights: Weights) -> Any:
    return _library.Linear(_parameters(module, weights), choose_products)


def _two_heads(module: TwoHeads, weights: Weights) -> Any:
    parameters = _parameters(module, weights)
    return _library.Linear(parameters, choose_products, module.out_features // 2)


def _conv2d(module: nn.Conv2d | SimplexConv2d, weights: Weights) -> Any:
    if module.padding_mode != "zeros" or isinstance(module.padding, str):
        raise _UnsupportedError
    sizes = (module.stride, module.padding, module.dilation)
    return _library.Conv2d(_parameters(module, weights), *sizes, module.groups)


def _parameters(module: Any, weights: Weights) -> Any:
    """Weight and bias, and the places of their gradients."""
    on_simplex = isinstance(module, SimplexLinear | SimplexConv2d)
    weight: Tensor = next(weights) if on_simplex else module.weight
    bias: Tensor | None = module.bias
    if weight.grad is None or (bias is not None and bias.grad is None):
        raise _UnsupportedError  # some are frozen
    if bias is None:
        return _library.Parameters(weight.detach(), weight.grad, None, None)
    return _library.Parameters(weight.detach(), weight.grad, bias.detach(), bias.grad)


_LAYERS: dict[type[nn.Module], Callable[[Any, Weights], Any]] = {
    nn.Flatten: _flatten,
    nn.ReLU: _relu,
    nn.LeakyReLU: _leaky_relu,
    nn.MaxPool2d: _max_pool2d,
    nn.Linear: _linear,
    TwoHeads: _two_heads,
    nn.Conv2d: _conv2d,
    SimplexLinear: _linear,
    SimplexConv2d: _conv2d,
}
