"""Local SGD: a whole step, with gradient-norm clipping and a proximal term, as one operator.

`FlatSGD` takes the place of torch.optim.SGD and torch.nn.utils.clip_grad_norm_ in a training loop:

    optimizer = optim.FlatSGD(model.parameters(), lr=0.02, momentum=0.5, max_norm=10.0)
    for inputs, targets in batches:
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), targets).backward()
        optimizer.step()

`sgd_step_` is the operator, for parameters that lie in a flat tensor, or many models' in its rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import has_torch_function

from fedkern import _library
from fedkern.flat import FlatParameters


def sgd_step_(
    param: Tensor,
    grad: Tensor,
    *,
    lr: float,
    momentum_buffer: Tensor | None = None,
    anchor: Tensor | None = None,
    alpha: Tensor | None = None,
    active: Tensor | None = None,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    max_norm: float | None = None,
    pull: float = 0.0,
    zero_grad: bool = False,
) -> None:
    """One step of SGD with gradient-norm clipping on flat parameters, in place.

    With |.| a row's Euclidean norm:

        g = grad + pull (param - anchor)
        momentum_buffer = momentum momentum_buffer + min(1, max_norm / |g|) g + weight_decay param
        param = param - lr momentum_buffer

    That is torch.nn.utils.clip_grad_norm_, then torch.optim.SGD. The pull is the proximal term of
    FedProx (arXiv 1812.06127) and Ditto (arXiv 2012.04221). Rows are models of their own.

    Args:
        param: [P] or [G, P]: float32, float64, bfloat16 or float16, which compute in float32 and
            round once. Rows must be contiguous; how far apart they lie does not matter.
        grad: of the same shape and dtype, unless there is an `alpha`.
        lr: the learning rate.
        momentum_buffer: as param, zeros before the first step; wanted iff momentum is not 0.
        anchor: [P] for all rows, or [G, P]; wanted iff pull is not 0.
        alpha: [M] or [G, M], float32, or float64 with float64 parameters: points of a simplex of
            models (arXiv 2403.03333). Then the last M D entries of a row of param are M endpoints,
            and the last D entries of grad's row are the gradient by the interpolated weights, which
            endpoint m gets alpha_m times. grad has P - M D + D entries a row; that says what D is.
        active: bool, [] or [G]: rows to step with; the others stay as they are.
        momentum: finite, not negative, as are lr, weight_decay and pull.
        weight_decay: added to the clipped gradient, times param.
        max_norm: positive; None or inf: no clipping.
        pull: how strongly parameters are held near the anchor.
        zero_grad: leave zeros in grad, of rows that are not active, too.

    Returns:
        Nothing: param and momentum_buffer are written to, and grad if zero_grad. The bits do not
        depend on the number of threads. A norm that is nan makes its row nan; one that is infinite
        makes the factor 0.

    Raises:
        TypeError: a dtype that is not as above.
        ValueError: a shape, stride, device or number that is not as above; tensors that share
            memory of which one is written to; a tensor that requires grad, outside of no_grad.
    """
    tensors = (param, grad, momentum_buffer, anchor, alpha, active)
    arguments = (*tensors, lr, momentum, weight_decay, max_norm, pull, zero_grad)
    # A straight call costs less than one through torch.ops, as in fedkern.calibrated_ce.
    if not (torch.compiler.is_compiling() or has_torch_function(tensors)):
        try:
            _library.call_sgd_step_(*arguments)
            return
        except TypeError:
            pass
    torch.ops.fedkern.sgd_step_.default(*arguments)


class FlatSGD(torch.optim.Optimizer):
    """torch.optim.SGD with clip_grad_norm_ and a proximal term: a step is one call of `sgd_step_`.

    Makes the parameters views of one flat tensor, and their gradients of another (see
    `FlatParameters`): move a model to its device before. The gradients are there from the
    beginning, as zeros: a parameter that the loss does not depend on gets its weight decay,
    momentum and pull, where torch.optim.SGD leaves one alone whose ``.grad`` is None.

    Learning rate schedulers work. The state_dict holds momentum and anchor; that of torch.optim.SGD
    can be loaded, too.

    Args:
        params: the parameters, one group of them; frozen ones are left out.
        lr: the learning rate.
        momentum: as in torch.optim.SGD, undamped.
        weight_decay: added to the clipped gradient, times the parameters.
        max_norm: the norm that all gradients together are clipped to; None: no clipping.
        pull: the factor of (parameters - anchor), which is added to the gradients before clipping:
            FedProx's mu (arXiv 1812.06127), Ditto's lambda (arXiv 2012.04221). The anchor is what
            the parameters were when `hold` was called last or, before that, at the first step.

    Raises:
        TypeError: params holds groups.
        ValueError: parameters that `FlatParameters` does not take.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        max_norm: float | None = None,
        pull: float = 0.0,
    ) -> None:
        parameters = list(params)
        if not all(isinstance(p, Tensor) for p in parameters):
            raise TypeError(
                "FlatSGD: params must be parameters, one group of them: all are clipped and "
                "stepped with together"
            )
        self.flat = FlatParameters(parameters)
        self._buffers: dict[str, Tensor] = {}  # flat, and in views what `state` has
        options = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "max_norm": max_norm,
            "pull": pull,
        }
        super().__init__(self.flat.parameters, options)

    def hold(self) -> None:
        """Makes the present values the anchor of the pull, as at the beginning of a round."""
        self._buffer("anchor").copy_(self.flat.values)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """A step with the gradients that are there.

        Args:
            closure: evaluates the model again and returns the loss, as torch's optimizers take it.

        Returns:
            What the closure returns, or None.

        Raises:
            RuntimeError: a parameter has left the flat tensor.
            ValueError: an option in `param_groups` is not as `sgd_step_` wants it.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.flat.collect_gradients()
        options = self.param_groups[0]
        momentum, pull = options["momentum"], options["pull"]
        if pull and "anchor" not in self._buffers:
            self.hold()
        sgd_step_(
            self.flat.values,
            self.flat.gradients,
            lr=options["lr"],
            momentum_buffer=self._buffer("momentum_buffer") if momentum else None,
            anchor=self._buffer("anchor") if pull else None,
            momentum=momentum,
            weight_decay=options["weight_decay"],
            max_norm=options["max_norm"],
            pull=pull,
        )
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Makes the gradients zero, in one pass. They stay: `set_to_none` changes nothing."""
        self.flat.zero_gradients()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Refused: there is one group, which the constructor makes."""
        if self.param_groups:
            raise ValueError("FlatSGD: there is one group of parameters, and none can be added")
        super().add_param_group(param_group)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads what `state_dict` of this class, or of torch.optim.SGD, has returned.

        Args:
            state_dict: options that it does not have stay as they are.

        Raises:
            ValueError: torch.optim.SGD's options ask for what this class does not do.
        """
        for option in ("dampening", "nesterov", "maximize"):
            if any(group.get(option) for group in state_dict["param_groups"]):
                raise ValueError(f"FlatSGD: a state with the option {option} cannot be loaded")
        before = dict(self.param_groups[0])
        super().load_state_dict(state_dict)
        for option, value in before.items():
            self.param_groups[0].setdefault(option, value)
        loaded = [dict(self.state[p]) for p in self.flat.parameters]
        self.state.clear()
        self._buffers.clear()
        for name in ("momentum_buffer", "anchor"):
            if all(state.get(name) is None for state in loaded):
                continue
            views = self.flat.views(self._buffer(name))
            for view, state in zip(views, loaded, strict=True):
                if state.get(name) is not None:
                    view.copy_(state[name])

    def _buffer(self, name: str) -> Tensor:
        """A flat tensor of the state: zeros when it is new."""
        if name not in self._buffers:
            self._buffers[name] = torch.zeros_like(self.flat.values)
            views = self.flat.views(self._buffers[name])
            for parameter, view in zip(self.flat.parameters, views, strict=True):
                self.state[parameter][name] = view
        return self._buffers[name]
