"""Floco's simplex of models as modules (arXiv 2403.03333).

`simplexify` makes layers of any model a simplex: instead of a weight they hold M endpoints, and
work with the weight theta(alpha) = sum_m alpha_m theta_m at a point alpha of the simplex. In
training alpha is drawn anew for each forward pass of the model, as dropout draws its mask; in eval
mode it is the simplex centre. `subregion` says where else to look. A client of Floco with the
subregion of radius rho around beta trains and is tested so:

    from fedkern import nn, simplex

    model = nn.simplexify(torchvision.models.resnet18(num_classes=10), num_endpoints=10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.5)
    with nn.subregion(model, beta, rho):
        model.train()
        for inputs, targets in batches:
            loss = F.cross_entropy(model(inputs), targets)  # at a point of the subregion
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        model.eval()
        logits = model(test_inputs)  # at beta

Before that, beta comes from what all clients learned on the whole simplex (no `subregion`):

    beta = simplex.assign_subregions(differences, 10)  # a row a client, of endpoint_parameters
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedkern import simplex

Model = TypeVar("Model", bound=nn.Module)


# ---- points --------------------------------------------------------------------------------------


class _Point:
    """Where on the simplex the layers that share this object stand.

    In training it is drawn once a forward pass of the model, before its layers run: so a draw is
    not inside a checkpointed part of the model, and what is recomputed in the backward pass finds
    the same point. A layer that is called outside a pass of its model draws for itself.

    Copies and pickles of a model are in no context: they look at the whole simplex.
    """

    def __init__(
        self,
        center: Tensor | None = None,
        radius: float = 2.0,
        per_sample: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        self.center = center  # None: the simplex centre; then the radius is 2, the whole simplex
        self.radius = radius
        self.per_sample = per_sample
        self.generator = generator
        self.running: _Pass | None = None  # the outermost, if several models are in their passes
        self.drawn = False  # in this pass
        self.alpha = torch.empty(0)  # the latest draw
        self.alone = False  # it was a layer's for itself

    def __reduce__(self) -> tuple[type[_Point], tuple[()]]:
        return _Point, ()

    def begin(self, which: _Pass) -> bool:
        """Whether a forward pass starts, rather than being part of a larger model's."""
        # The pass that is running may be this one's predecessor, interrupted from the keyboard:
        # torch calls no hook then.
        if self.running is not None and self.running is not which:
            return False
        self.running = which
        self.drawn = False
        return True

    def end(self, which: _Pass) -> None:
        if self.running is which:
            self.running = None
            self.drawn = False

    def of(self, layer: _SimplexLayer, input: Tensor) -> Tensor:
        """The point at which a layer works on an input, [M], or its samples' points, [N, M]."""
        theta = layer.endpoints
        if layer.training:
            # What runs in the backward pass is recomputed: a layer there is at the point that was
            # drawn before it, unless the draw was its own.
            if not self.drawn and (self.alone or not _in_backward()):
                self.draw(layer, [input])
            alpha = self.alpha
        elif self.center is None:
            return _simplex_center(theta)
        else:
            alpha = self.center
        if alpha.dim() == 2 and (input.dim() < layer.batched_dim or len(alpha) != len(input)):
            raise ValueError(
                f"{type(layer).__name__}: input must have {len(alpha)} samples, one for each point "
                f"of the simplex, got the shape {[*input.shape]}"
            )
        return alpha.to(theta.device)

    def draw(self, layer: _SimplexLayer, inputs: Iterable[object]) -> None:
        """Draws for this pass, or for a layer by itself, with as many samples as `inputs`."""
        self.drawn = self.running is not None
        self.alone = not self.drawn
        # To recompute a draw, checkpointing restores torch's generators, but no other one: then
        # the latest point is the one.
        if self.generator is not None and _in_backward():
            return
        theta = layer.endpoints
        if self.center is not None and self.radius == 0:
            self.alpha = self.center
            return
        own_centers = self.center is not None and self.center.dim() == 2
        size = [_num_samples(inputs)] if self.per_sample and not own_centers else []
        if self.center is not None and self.radius < 2:
            points = simplex.sample_ball(
                self.center.to(theta.device), self.radius, *size, generator=self.generator
            )
            self.alpha = points if size else points.select(-2, 0)
        else:  # the whole simplex, around any centre
            self.alpha = simplex.sample(
                len(theta),
                [len(self.center)] if self.center is not None and own_centers else size,
                generator=self.generator,
                device=theta.device,
                dtype=_point_dtype(theta),
            )


def _in_backward() -> bool:
    """Whether autograd runs: a forward pass is then the recomputation of a checkpointed one."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


def _num_samples(inputs: Iterable[object]) -> int:
    for tensor in inputs:
        if isinstance(tensor, Tensor) and tensor.dim() > 0:
            return len(tensor)
    raise ValueError("subregion: per_sample needs a model that is called with a batch, a tensor")


def _point_dtype(theta: Tensor) -> torch.dtype:
    """The dtype of points for endpoints: those of a half type would not sum to one."""
    return torch.float64 if theta.dtype == torch.float64 else torch.float32


def _simplex_center(theta: Tensor) -> Tensor:
    size = len(theta)
    return torch.full((size,), 1 / size, dtype=_point_dtype(theta), device=theta.device)


class _Pass:
    """The hooks that tell a model's `_Point` when a forward pass begins and ends."""

    def __init__(self, model: nn.Module) -> None:
        self.point = _Point()
        # Kept also for pickles: loading one keeps later hooks from taking these hooks' ids.
        self.handles = (
            model.register_forward_pre_hook(self.begin, with_kwargs=True),
            model.register_forward_hook(self.end, always_call=True),
        )

    def begin(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        layer = next(_simplex_layers(model), None)
        if layer is not None and layer._interpolated is None:
            self.point = layer._point
            if self.point.begin(self) and model.training:
                self.point.draw(layer, (*args, *kwargs.values()))

    def end(self, *_: object) -> None:
        self.point.end(self)

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()


# ---- layers --------------------------------------------------------------------------------------


class _SimplexLayer(nn.Module):
    """What a layer with a weight becomes when the weight becomes a simplex of weights."""

    endpoints: nn.Parameter
    bias: Any  # a parameter or None, as in the plain layer
    weight: Any  # the plain layer's, until `_span` drops it
    batched_dim: int  # of an input with a batch dimension, at least
    _point: _Point
    _interpolated: Tensor | None = None  # see `interpolated`

    @property
    def num_endpoints(self) -> int:
        """M."""
        return len(self.endpoints)

    def _span(self, num_endpoints: int, device: torch.device | str | None) -> None:
        """Puts endpoints, not yet drawn, in the place of the weight."""
        if num_endpoints < 1:
            raise ValueError(
                f"{type(self).__name__}: num_endpoints must be at least 1, got {num_endpoints}"
            )
        weight = self.weight
        del self.weight
        self.endpoints = nn.Parameter(
            torch.empty(num_endpoints, *weight.shape, dtype=weight.dtype, device=device),
            requires_grad=weight.requires_grad,
        )
        self._parameters["bias"] = self._parameters.pop("bias")  # last, as in the plain layer
        self._point = _Point()

    def _construct(
        self,
        num_endpoints: int,
        generator: torch.Generator | None,
        device: torch.device | str | None,
    ) -> None:
        """What is left to do when the plain layer has been constructed on the meta device."""
        self._span(num_endpoints, device)
        if self.bias is not None:
            self.bias = nn.Parameter(torch.empty_like(self.bias, device=self.endpoints.device))
        self.reset_parameters(generator)

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draws the parameters anew, from torch's default generator if None."""
        if "endpoints" not in self._parameters:
            return  # the plain layer's constructor calls this too
        if self.bias is not None:
            bound = max(1, math.prod(self.endpoints.shape[2:])) ** -0.5
            start = torch.empty_like(self.bias, device="cpu")
            nn.init.uniform_(start, -bound, bound, generator=_fork(generator))
            with torch.no_grad():
                self.bias.copy_(start)
        self._draw_endpoints(generator)

    @torch.no_grad()
    def _draw_endpoints(self, generator: torch.Generator | None) -> None:
        for theta in self.endpoints:
            start = torch.empty_like(theta, device="cpu")
            theta.copy_(nn.init.xavier_normal_(start, generator=_fork(generator)))

    def forward(self, input: Tensor) -> Tensor:
        if self._interpolated is not None:
            return self._plain(input, self._interpolated, self.bias)
        if self.num_endpoints == 1:
            # The plain layer to the bit, which a drawn alpha, 1 but for rounding, is not.
            return self._plain(input, self.endpoints[0], self.bias)
        alpha = self._point.of(self, input)
        if alpha.dim() == 1:
            return self._plain(input, simplex.interpolate(self.endpoints, alpha), self.bias)
        return self._mixed(input, alpha)

    def _plain(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The plain layer."""
        raise NotImplementedError

    def _mixed(self, input: Tensor, alpha: Tensor) -> Tensor:
        """Each sample at its own point: the endpoints' results, combined by alpha [N, M]."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, num_endpoints={self.num_endpoints}"


def _fork(generator: torch.Generator | None) -> torch.Generator:
    """A new CPU generator, seeded with 63 bits of another one."""
    device = "cpu" if generator is None else generator.device
    key = torch.randint(2**63 - 1, (), generator=generator, device=device)
    return torch.Generator().manual_seed(int(key))


class SimplexLinear(_SimplexLayer, nn.Linear):
    """`torch.nn.Linear` with a simplex of weights and one bias.

    Each endpoint starts Xavier-normal, drawn on the CPU from a generator of its own: the same on
    any device, whatever M. The bias starts as that of `torch.nn.Linear`.

    Args:
        in_features: size of an input.
        out_features: size of an output.
        num_endpoints: M, at least 1.
        bias: whether there is one.
        generator: where the seeds of all initial values come from; torch's default one if None.
        device: the parameters'; torch's default if None.
        dtype: the parameters', floating; torch's default if None.

    Attributes:
        endpoints: theta_1, ..., theta_M, a parameter [M, out_features, in_features].
        bias: a parameter [out_features], or None.

    Shape:
        Input [..., in_features], output [..., out_features]. With a point for each sample the
        first dimension is the batch's.
    """

    batched_dim = 2

    def __init__(
        self,
        in_features: int,
        out_features: int,
        num_endpoints: int,
        bias: bool = True,
        *,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias, device="meta", dtype=dtype)
        self._construct(num_endpoints, generator, device)

    def _plain(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(input, weight, bias)

    def _mixed(self, input: Tensor, alpha: Tensor) -> Tensor:
        outputs = F.linear(input, self.endpoints.flatten(0, 1))
        outputs = torch.unflatten(outputs, -1, self.endpoints.shape[:2])
        output = torch.einsum("nm,n...mo->n...o", alpha.to(outputs.dtype), outputs)
        if self.bias is not None:
            output = output + self.bias.to(output.dtype)
        return output


class _SimplexConv(_SimplexLayer):
    """What the convolutions have in common; `torch.nn.Conv1d` and so on come after it in bases."""

    groups: int
    _conv_forward: Callable[[Tensor, Tensor, Tensor | None], Tensor]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, ...],
        num_endpoints: int,
        stride: int | tuple[int, ...] = 1,
        padding: int | tuple[int, ...] | str = 0,
        dilation: int | tuple[int, ...] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        *,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            bias,
            padding_mode,
            device="meta",
            dtype=dtype,
        )
        self._construct(num_endpoints, generator, device)

    def _plain(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return self._conv_forward(input, weight, bias)

    def _mixed(self, input: Tensor, alpha: Tensor) -> Tensor:
        # A convolution's output channels are those of its first group, then of its second, ...
        # and here each group has M times as many.
        groups = torch.unflatten(self.endpoints, 1, (self.groups, -1)).transpose(0, 1)
        outputs = self._conv_forward(input, groups.flatten(0, 2), None)
        outputs = torch.unflatten(outputs, 1, groups.shape[:3])
        output = torch.einsum("nm,ngmo...->ngo...", alpha.to(outputs.dtype), outputs)
        output = output.flatten(1, 2)
        if self.bias is not None:
            output = output + self.bias.to(output.dtype).view(-1, *[1] * (output.dim() - 2))
        return output

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> _SimplexConv:
        # Endpoints have a dimension more than the weights that a memory format is meant for (torch
        # would refuse them, or format a wrong one); flat, they keep their own.
        super()._apply(  # type: ignore[no-untyped-call]
            lambda tensor: fn(tensor.flatten()).view(tensor.shape), recurse
        )
        return self


class SimplexConv1d(_SimplexConv, nn.Conv1d):
    """`torch.nn.Conv1d` with a simplex of weights and one bias.

    Takes its arguments, with `num_endpoints` (M) after `kernel_size`; initial values as those of
    `SimplexLinear`. `endpoints` is a parameter [M, out_channels, in_channels / groups, *kernel].
    """

    batched_dim = 3


class SimplexConv2d(_SimplexConv, nn.Conv2d):
    """`torch.nn.Conv2d` with a simplex of weights and one bias: see `SimplexConv1d`."""

    batched_dim = 4


class SimplexConv3d(_SimplexConv, nn.Conv3d):
    """`torch.nn.Conv3d` with a simplex of weights and one bias: see `SimplexConv1d`."""

    batched_dim = 5


# ---- models --------------------------------------------------------------------------------------

_SIMPLEX_OF: dict[type[nn.Module], type[_SimplexLayer]] = {
    nn.Linear: SimplexLinear,
    nn.Conv1d: SimplexConv1d,
    nn.Conv2d: SimplexConv2d,
    nn.Conv3d: SimplexConv3d,
}


def simplexify(
    model: Model,
    layers: str | Iterable[str] | None = None,
    num_endpoints: int = 10,
    *,
    generator: torch.Generator | None = None,
) -> Model:
    """Makes layers of a model a simplex, in place.

    The layers themselves change: they become a `SimplexLinear` or `SimplexConv1d/2d/3d` wherever
    the model holds them, and keep their bias, hooks, device, dtype, mode and whether they are
    trained. Their weights are dropped; the endpoints start anew, Xavier-normal. An optimizer that
    has the weights must be made anew.

    All simplex layers of the model, also those that it had before, stand at one point in each
    forward pass of the model, ``model(...)``. (A layer that is called by other ways draws for
    itself.) With activation checkpointing, run the backward pass before the next forward pass:
    what is recomputed is at the latest point.

    Args:
        model: any model.
        layers: names of `torch.nn.Linear` or `torch.nn.Conv1d/2d/3d` layers, as in
            ``model.named_modules()``; the last one in that order if None, as in Floco.
        num_endpoints: M, at least 1. 10 as published.
        generator: where the seeds of the initial values come from; torch's default one if None. An
            endpoint's values depend on it, the place of its layer in `layers` and its own place.

    Returns:
        The model.

    Raises:
        TypeError: a layer of another type. (A subclass may have a forward pass of its own.)
        ValueError: no such layer, or one that is a simplex already, whose parameters are computed
            (`torch.nn.utils.parametrize`, `weight_norm`, ...) or whose weight another module has
            too; no layer; num_endpoints less than 1, or not that of the model's simplex layers. The
            model is then as it was.
    """
    chosen = _chosen_layers(model, layers)
    for name, layer in chosen.items():
        _check_layer(model, name, layer)
    if num_endpoints < 1:
        raise ValueError(f"simplexify: num_endpoints must be at least 1, got {num_endpoints}")
    for layer in _simplex_layers(model):
        if layer.num_endpoints != num_endpoints:
            raise ValueError(
                "simplexify: num_endpoints must be that of the model's other simplex layers, "
                f"{layer.num_endpoints}, got {num_endpoints}"
            )
    for layer in dict.fromkeys(chosen.values()):
        _become_simplex(layer, num_endpoints, _fork(generator))
    point = _Point()
    for layer in _simplex_layers(model):
        layer._point = point
    if not _has_pass(model):
        _Pass(model)
    return model


def _become_simplex(layer: Any, num_endpoints: int, generator: torch.Generator) -> None:
    device = layer.weight.device
    layer.__class__ = _SIMPLEX_OF[type(layer)]
    layer._span(num_endpoints, device)
    layer._draw_endpoints(generator)


def _chosen_layers(model: nn.Module, names: str | Iterable[str] | None) -> dict[str, nn.Module]:
    modules = dict(model.named_modules(remove_duplicate=False))
    if names is None:
        kinds = tuple(_SIMPLEX_OF)
        names = [name for name, module in modules.items() if isinstance(module, kinds)][-1:]
    elif isinstance(names, str):
        names = [names]
    chosen = {}
    for name in names:
        if name not in modules:
            nearest = get_close_matches(name, modules, n=1)
            hint = f" (did you mean {nearest[0]!r}?)" if nearest else ""
            raise ValueError(f"simplexify: the model has no layer {name!r}{hint}")
        chosen[name] = modules[name]
    if not chosen:
        raise ValueError("simplexify: wanted at least one Linear or Conv layer, got none")
    return chosen


def _check_layer(model: nn.Module, name: str, layer: nn.Module) -> None:
    if isinstance(layer, _SimplexLayer):
        raise ValueError(f"simplexify: layer {name!r} is a simplex already")
    if nn.utils.parametrize.is_parametrized(layer) or (
        type(layer) in _SIMPLEX_OF and "weight" not in layer._parameters
    ):
        raise ValueError(
            f"simplexify: layer {name!r} computes its parameters (parametrize, weight_norm, "
            "pruning, ...): remove that first"
        )
    if type(layer) not in _SIMPLEX_OF:
        raise TypeError(
            f"simplexify: layer {name!r} must be a Linear, Conv1d, Conv2d or Conv3d of torch.nn, "
            f"got {type(layer).__name__}"
        )
    weight = layer.get_parameter("weight")
    for other_name, other in model.named_modules():
        for parameter_name, parameter in other._parameters.items():
            if parameter is weight and (other, parameter_name) != (layer, "weight"):
                raise ValueError(
                    f"simplexify: layer {name!r} shares its weight with "
                    f"{'.'.join(filter(None, [other_name, parameter_name]))!r}"
                )


@contextmanager
def subregion(
    model: Model,
    center: Tensor | None = None,
    radius: float | None = None,
    *,
    per_sample: bool = False,
    generator: torch.Generator | None = None,
) -> Iterator[Model]:
    """Says where on the simplex a model looks, while in this context.

    In training mode each forward pass of the model draws a point uniformly from the subregion
    {alpha in the simplex: |alpha - center|_1 <= radius}. In eval mode it looks at `center`. Without
    a context it is as in ``subregion(model)``. A layer's own mode decides, as for dropout.

    Contexts nest: the inner one holds, and on its exit the outer one again. Models that are copied
    or pickled in a context are in none.

    Args:
        model: any with simplex layers; also one that holds a model that `simplexify` has changed,
            or the layers of several.
        center: on the simplex (entries finite and not negative, sums within 1e-3 of 1), [M], or
            one for each sample of every batch, [N, M]. The simplex centre if None.
        radius: finite, not negative. 0 is the centre itself, in training too; 2 and more the whole
            simplex. None: the whole simplex if center is None too, else 0.
        per_sample: draw a point for each sample rather than one for the batch. How many samples
            there are tells the first dimension of the model's first tensor argument.
        generator: where the points come from, in training; torch's default one if None.

    Yields:
        The model.

    Raises:
        ValueError: a model without simplex layers or with ones of different M, or a center or
            radius that is not as above. In a forward pass: a batch of another size than [N, M].
    """
    layers = list(_simplex_layers(model))
    point = _Point(*_checked_region(layers, center, radius), per_sample, generator)
    points_before = [layer._point for layer in layers]
    own_pass = None if _has_pass(model) else _Pass(model)
    try:
        for layer in layers:
            layer._point = point
        yield model
    finally:
        for layer, before in zip(layers, points_before, strict=True):
            layer._point = before
        if own_pass is not None:
            own_pass.remove()


def _checked_region(
    layers: list[_SimplexLayer], center: Tensor | None, radius: float | None
) -> tuple[Tensor | None, float]:
    """Centre and radius as `_Point` has them."""
    sizes = sorted({layer.num_endpoints for layer in layers})
    if len(sizes) != 1:
        raise ValueError(
            "subregion: model must have simplex layers, all with as many endpoints, got "
            + (f"layers with {sizes}" if sizes else "none")
        )
    if center is None and radius is None:
        return None, 2.0
    if radius is None:
        radius = 0.0
    if not 0 <= radius < math.inf:
        raise ValueError(f"subregion: radius must be finite and not negative, got {radius}")
    theta, size = layers[0].endpoints, sizes[0]
    if center is None:
        return _simplex_center(theta), radius
    if center.dim() not in (1, 2) or center.shape[-1] != size:
        raise ValueError(
            f"subregion: center must have shape [{size}] or [N, {size}], got {[*center.shape]}"
        )
    center = center.detach().to(theta.device, _point_dtype(theta), copy=True)
    # Written so that nan fails.
    on_simplex = (center >= 0).all(-1) & ((center.sum(-1) - 1).abs() <= 1e-3)
    if not on_simplex.all():
        row = center[~on_simplex][0] if center.dim() == 2 else center
        raise ValueError(
            "subregion: center must be on the simplex (entries not negative, sum 1), got "
            f"{row.tolist()}"
        )
    return center, radius


@contextmanager
def interpolated(model: nn.Module, weights: Sequence[Tensor]) -> Iterator[None]:
    """Gives a model's simplex layers their weights, while in this context; no point is drawn.

    For loops that interpolate by themselves, in memory of their own, and want the gradient of the
    interpolated weights: the endpoints' is alpha_m times it.

    Args:
        model: with simplex layers.
        weights: theta(alpha) of each simplex layer, in the order of ``model.modules()``.
    """
    layers = list(_simplex_layers(model))
    before = [layer._interpolated for layer in layers]
    try:
        for layer, weight in zip(layers, weights, strict=True):
            layer._interpolated = weight
        yield
    finally:
        for layer, weight_before in zip(layers, before, strict=True):
            layer._interpolated = weight_before


def endpoint_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The endpoints [M, ...] of a model's simplex layers, in the order of ``model.modules()``.

    What Floco's clients report of (`fedkern.simplex.assign_subregions`): global minus local values.
    """
    return [layer.endpoints for layer in _simplex_layers(model)]


def _simplex_layers(model: nn.Module) -> Iterator[_SimplexLayer]:
    return (module for module in model.modules() if isinstance(module, _SimplexLayer))


def _has_pass(model: nn.Module) -> bool:
    return any(map(is_pass, model._forward_pre_hooks.values()))


def is_pass(hook: object) -> bool:
    """Whether a hook of a model is one that `simplexify` or `subregion` put there."""
    return isinstance(getattr(hook, "__self__", None), _Pass)
