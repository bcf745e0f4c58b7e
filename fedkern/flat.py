"""Parameters whose values and gradients lie in one flat buffer each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn


class FlatParameters:
    """Makes parameters views of one flat tensor, and their gradients views of another.

    They stay the same objects with the same values, shapes and strides, and models and autograd
    work with them as before; but what is done to the flat tensors is done to all of them at once.
    Gradients are accumulated where they are, so they are there, as zeros, from the beginning.

    Frozen parameters (requires_grad is False) are left out.

    Attributes:
        parameters: those that are in the flat tensors, in their order.
        values: [P], all of them, one after the other, each in the order of its memory.
        gradients: [P], theirs.

    Args:
        parameters: dense ones of one dtype and device; each once.

    Raises:
        ValueError: no parameter requires grad; one occurs twice, or shares its memory with another;
            they differ in dtype or device; one is not dense, as an expanded one.
    """

    parameters: list[nn.Parameter]
    values: Tensor
    gradients: Tensor

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self.parameters = [p for p in parameters if p.requires_grad]
        self._check()
        first = self.parameters[0]
        size = sum(p.numel() for p in self.parameters)
        self.values = torch.empty(size, dtype=first.dtype, device=first.device)
        self.gradients = torch.zeros_like(self.values)
        self._gradients = self.views(self.gradients)
        for parameter, value, gradient in zip(
            self.parameters, self.views(self.values), self._gradients, strict=True
        ):
            value.copy_(parameter.detach())
            parameter.data = value
            self._collect(parameter, gradient)
        self._addresses = [p.data_ptr() for p in self.parameters]

    def views(self, flat: Tensor) -> list[Tensor]:
        """The parts of a tensor like `values` that are the parameters', in their shapes."""
        result, offset = [], 0
        for p in self.parameters:
            result.append(view_in(flat, offset, p.shape, p.stride()))
            offset += p.numel()
        return result

    def collect_gradients(self) -> None:
        """Sees to it that `gradients` holds every parameter's gradient.

        It does, unless somebody has put something else in the place of a parameter's ``.grad``. A
        tensor there is copied, None counts as zeros; then ``.grad`` is the view again.

        Raises:
            RuntimeError: a parameter has left the flat tensor, for instance since its module has
                been moved to another device.
        """
        for parameter, gradient, address in zip(
            self.parameters, self._gradients, self._addresses, strict=True
        ):
            if parameter.data_ptr() != address:
                raise RuntimeError(
                    f"FlatParameters: a parameter of shape {[*parameter.shape]} is no longer in "
                    "the flat tensor: its data was replaced, as by Module.to(). Make a new "
                    "FlatParameters or optimizer after that"
                )
            if parameter.grad is not gradient:
                self._collect(parameter, gradient)

    def zero_gradients(self) -> None:
        """Makes every gradient zero, in one pass; each parameter's ``.grad`` is the view again."""
        for parameter, gradient in zip(self.parameters, self._gradients, strict=True):
            if parameter.grad is not gradient:
                parameter.grad = gradient
        self.gradients.zero_()

    @staticmethod
    def _collect(parameter: nn.Parameter, gradient: Tensor) -> None:
        if parameter.grad is None:
            gradient.zero_()
        else:
            gradient.copy_(parameter.grad.detach())
        parameter.grad = gradient

    def _check(self) -> None:
        if not self.parameters:
            raise ValueError("FlatParameters: wanted a parameter that requires grad, got none")
        first = self.parameters[0]
        seen: set[int] = set()
        for p in self.parameters:
            if (p.dtype, p.device) != (first.dtype, first.device):
                raise ValueError(
                    "FlatParameters: parameters must have one dtype and device, got "
                    f"{first.dtype} on {first.device} and {p.dtype} on {p.device}"
                )
            if p.layout != torch.strided or not _is_dense(p):
                raise ValueError(
                    f"FlatParameters: parameters must be dense, got one of shape {[*p.shape]} "
                    "with gaps or shared elements"
                )
            if p.numel() and p.data_ptr() in seen:
                raise ValueError(
                    f"FlatParameters: a parameter of shape {[*p.shape]} is given twice, or shares "
                    "its memory with another: give it once"
                )
            seen.add(p.data_ptr())


def view_in(rows: Tensor, offset: int, shape: Sequence[int], strides: Sequence[int]) -> Tensor:
    """What lies from an offset on in flat rows [..., P], as a tensor [..., *shape]."""
    return rows.as_strided(
        (*rows.shape[:-1], *shape),
        (*rows.stride()[:-1], *strides),
        rows.storage_offset() + offset,
    )


def _is_dense(tensor: Tensor) -> bool:
    """Whether its elements fill a piece of memory, in whatever order of dimensions."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1 and stride != expected:
            return tensor.numel() == 0
        expected *= size
    return True
