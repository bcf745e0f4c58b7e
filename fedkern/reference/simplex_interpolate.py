"""The twin of `fedkern.simplex.interpolate`."""

from collections.abc import Sequence
from typing import overload

from torch import Tensor


@overload
def simplex_interpolate(endpoints: Tensor, alpha: Tensor) -> Tensor: ...


@overload
def simplex_interpolate(endpoints: Sequence[Tensor], alpha: Tensor) -> list[Tensor]: ...


def simplex_interpolate(
    endpoints: Tensor | Sequence[Tensor], alpha: Tensor
) -> Tensor | list[Tensor]:
    """The same value and derivatives as `fedkern.simplex.interpolate`, for the same arguments.

    Computes in endpoints' dtype, with all products in memory at once.
    """
    if isinstance(endpoints, Tensor):
        return _interpolate(endpoints, alpha)
    return [_interpolate(tensor, alpha) for tensor in endpoints]


def _interpolate(endpoints: Tensor, alpha: Tensor) -> Tensor:
    weights = alpha.to(endpoints.dtype).reshape([*alpha.shape, *[1] * (endpoints.dim() - 1)])
    return (weights * endpoints).sum(alpha.dim() - 1)
