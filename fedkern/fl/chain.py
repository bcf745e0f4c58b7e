"""Forward and backward passes of a chain of layers, by the functions that autograd would call.

A small network's step is half bookkeeping: graph, nodes, gradients that are allocated and then
added to what is there. A chain of the layers below needs none of it, and gradients go straight to
where they belong. Linear layers use MKL's products or oneDNN's, whichever are faster for their
shape on this machine. Results equal those of autograd but for rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import pairwise
from threading import Lock
from time import perf_counter
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from fedkern.nn import SimplexConv2d, SimplexLinear, is_pass

from .flat import FlatModel

aten = torch.ops.aten


class Layer(Protocol):
    """A layer of a chain; it remembers what it needs from `forward` to `backward`."""

    def forward(self, x: Tensor) -> Tensor:
        """The output."""

    def backward(self, gradient: Tensor, wanted: bool) -> Tensor | None:
        """Writes the parameters' gradients; returns the input's if it is wanted."""


class Chain:
    """A model that is a chain of layers, each with its place for gradients in flat memory."""

    def __init__(self, layers: list[Layer]) -> None:
        self._layers = layers
        # The gradient of the input is wanted by no one, nor what lies below the first parameters.
        has_parameters = [isinstance(layer, _Linear | _Conv2d) for layer in layers]
        self._first = has_parameters.index(True)

    @classmethod
    def of(cls, model: FlatModel) -> Chain | None:
        """The model as a chain; None if it is none, or if someone listens to its layers."""
        modules = _flattened(model.module)
        if modules is None or torch.is_autocast_enabled(model.values.device.type):
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
            return cls([_LAYERS[type(module)](module, weights) for module in modules])
        except (KeyError, _UnsupportedError, ValueError):  # ValueError: no layer has parameters
            return None

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """The logits."""
        for layer in self._layers:
            x = layer.forward(x)
        return x

    @torch.no_grad()
    def backward(self, gradient: Tensor) -> None:
        """Writes the gradients of all parameters, over what was there, from that of the logits."""
        for i in range(len(self._layers) - 1, self._first - 1, -1):
            gradient = self._layers[i].backward(gradient, i > self._first)  # type: ignore[assignment]


class _UnsupportedError(Exception):
    """A layer with options that no implementation here has."""


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


class _Flatten:
    def __init__(self, module: nn.Flatten, _: object) -> None:
        self.dims = module.start_dim, module.end_dim

    def forward(self, x: Tensor) -> Tensor:
        self.shape = x.shape
        return x.flatten(*self.dims)

    def backward(self, gradient: Tensor, wanted: bool) -> Tensor | None:
        return gradient.reshape(self.shape)


class _ReLU:
    def __init__(self, module: nn.ReLU, _: object) -> None:
        pass

    def forward(self, x: Tensor) -> Tensor:
        self.output = torch.relu(x)
        return self.output

    def backward(self, gradient: Tensor, wanted: bool) -> Tensor | None:
        result: Tensor = aten.threshold_backward(gradient, self.output, 0)
        return result


class _LeakyReLU:
    def __init__(self, module: nn.LeakyReLU, _: object) -> None:
        self.slope = module.negative_slope

    def forward(self, x: Tensor) -> Tensor:
        self.input = x
        return nn.functional.leaky_relu(x, self.slope)

    def backward(self, gradient: Tensor, wanted: bool) -> Tensor | None:
        result: Tensor = aten.leaky_relu_backward(gradient, self.input, self.slope, False)
        return result


class _Parameters:
    """Weight and bias, and the places of their gradients."""

    def __init__(self, module: Any, weights: Any) -> None:
        on_simplex = isinstance(module, SimplexLinear | SimplexConv2d)
        weight: Tensor = next(weights) if on_simplex else module.weight
        bias: Tensor | None = module.bias
        if weight.grad is None or (bias is not None and bias.grad is None):
            raise _UnsupportedError  # some are frozen
        self.weight, self.weight_gradient = weight.detach(), weight.grad
        self.bias = None if bias is None else bias.detach()
        self.bias_gradient = None if bias is None else bias.grad


class _Linear(_Parameters):
    shape = torch.Size()

    def forward(self, x: Tensor) -> Tensor:
        self.input = x if x.dim() == 2 else x.reshape(-1, x.shape[-1])
        if x.shape != self.shape:
            self.shape = x.shape
            self.linear = _faster_linear(self.input, self.weight)
        output = self.linear(self.input, self.weight, self.bias)
        return output if x.dim() == 2 else output.view(*x.shape[:-1], -1)

    def backward(self, gradient: Tensor, wanted: bool) -> Tensor | None:
        if len(self.shape) != 2:
            gradient = gradient.reshape(-1, gradient.shape[-1])
        if self.linear is _onednn_linear:
            self.weight_gradient.copy_(self.linear(gradient.t(), self.input.t(), None))
        else:
            torch.mm(gradient.t(), self.input, out=self.weight_gradient)
        if self.bias_gradient is not None:
            torch.sum(gradient, 0, out=self.bias_gradient)
        return self.linear(gradient, self.weight.t(), None).view(self.shape) if wanted else None


class _Conv2d(_Parameters):
    def __init__(self, module: Any, weights: Any) -> None:
        super().__init__(module, weights)
        if module.padding_mode != "zeros" or isinstance(module.padding, str):
            raise _UnsupportedError
        self.options = module.stride, module.padding, module.dilation, False, (0, 0), module.groups

    def forward(self, x: Tensor) -> Tensor:
        self.input = x
        output: Tensor = aten.convolution(x, self.weight, self.bias, *self.options)
        return output

    def backward(self, gradient: Tensor, wanted: bool) -> Tensor | None:
        has_bias = self.bias_gradient is not None
        of_input, of_weight, of_bias = aten.convolution_backward(
            gradient,
            self.input,
            self.weight,
            [len(self.weight)] if has_bias else None,
            *self.options,
            [wanted, True, has_bias],
        )
        self.weight_gradient.copy_(of_weight)
        if self.bias_gradient is not None:
            self.bias_gradient.copy_(of_bias)
        return of_input if wanted else None


class _MaxPool2d:
    def __init__(self, module: nn.MaxPool2d, _: object) -> None:
        if module.return_indices:
            raise _UnsupportedError
        self.options = (
            module.kernel_size,
            module.stride,
            module.padding,
            module.dilation,
            module.ceil_mode,
        )

    def forward(self, x: Tensor) -> Tensor:
        self.input = x
        output: Tensor
        output, self.indices = aten.max_pool2d_with_indices(x, *self.options)
        return output

    def backward(self, gradient: Tensor, wanted: bool) -> Tensor | None:
        result: Tensor = aten.max_pool2d_with_indices_backward(
            gradient, self.input, *self.options, self.indices
        )
        return result


_LAYERS: dict[type[nn.Module], Callable[[Any, Any], Layer]] = {
    nn.Flatten: _Flatten,
    nn.ReLU: _ReLU,
    nn.LeakyReLU: _LeakyReLU,
    nn.Linear: _Linear,
    nn.Conv2d: _Conv2d,
    nn.MaxPool2d: _MaxPool2d,
    SimplexLinear: _Linear,
    SimplexConv2d: _Conv2d,
}


# ---- linear --------------------------------------------------------------------------------------

MARGIN = 1.25  # by which oneDNN must be faster: what is close must not depend on the day's noise

# Workers that come at once must not measure beside each other, nor choose otherwise.
_MEASURING = Lock()

LinearFunction = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def _onednn_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    output: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return output


def _faster_linear(x: Tensor, weight: Tensor) -> LinearFunction:
    """The faster of torch's linear and oneDNN's for inputs [n, features]."""
    if not x.is_cpu or x.dtype != torch.float32:
        return nn.functional.linear
    batch = 1 << (x.shape[0] - 1).bit_length()  # an epoch's last batch may have any size
    with _MEASURING:
        return _measured_linear(batch, *weight.shape)


@cache
def _measured_linear(batch: int, out_features: int, in_features: int) -> LinearFunction:
    """The faster of torch's linear and oneDNN's."""
    if not torch._C._has_mkldnn:
        return nn.functional.linear
    x, weight = torch.zeros(batch, in_features), torch.zeros(out_features, in_features)
    bias = torch.zeros(out_features)
    seconds: dict[LinearFunction, float] = {nn.functional.linear: 0.0, _onednn_linear: 0.0}
    for function in seconds:
        function(x, weight, bias)
        times = [perf_counter()]
        for _ in range(10):
            function(x, weight, bias)
            times.append(perf_counter())
        seconds[function] = min(after - before for before, after in pairwise(times))
    faster = seconds[nn.functional.linear] > MARGIN * seconds[_onednn_linear]
    return _onednn_linear if faster else nn.functional.linear
