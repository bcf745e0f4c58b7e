"""Floco's simplex of models (arXiv 2403.03333): points on it, projections, subregions.

M endpoints theta_1, ..., theta_M span a simplex. Its points alpha (alpha >= 0, sum 1) name the
models theta(alpha) = sum_m alpha_m theta_m; a subregion holds the points within an L1 radius of a
centre.
"""

from collections.abc import Sequence
from typing import cast, overload

import torch
from torch import Tensor


@overload
def interpolate(endpoints: Tensor, alpha: Tensor) -> Tensor: ...


@overload
def interpolate(endpoints: Sequence[Tensor], alpha: Tensor) -> list[Tensor]: ...


def interpolate(endpoints: Tensor | Sequence[Tensor], alpha: Tensor) -> Tensor | list[Tensor]:
    """The models at points of the simplex: theta(alpha) = sum_m alpha_m theta_m.

    One pass over the endpoints, for all tensors of a model at once (Floco, arXiv 2403.03333,
    section 3). Gradients of any order to endpoints, d theta_m = sum_g alpha_gm grad_g, and to
    alpha, d alpha_gm = <theta_m, grad_g> over all tensors; forward mode is refused.

    Args:
        endpoints: a tensor [M, *shape], M endpoints of a parameter, or a list of such tensors with
            shapes of their own; float32, float64, bfloat16 or float16, the same for all. Any
            strides; a tensor is copied only where the elements of one endpoint are not contiguous,
            so slices of one flat [M, P] buffer are read where they lie.
        alpha: the weights of the endpoints, [M], or those of G points, [G, M]; any floating dtype,
            on endpoints' device. They are used as they are: nothing checks that they are on the
            simplex.

    Returns:
        A tensor for a tensor, a list for a list: [*shape], or [G, *shape] for G points, contiguous,
        in endpoints' dtype. Sums are taken in float32 (float64 for float64), those of alpha's
        gradient in float64; the same bits for any number of threads. Weights of 0 do not hide a nan
        or an infinity, as in einsum. Under torch.vmap a stack of calls is one call.

    Raises:
        TypeError: a dtype that is not supported, or not the same for all endpoints.
        ValueError: an empty list, or a shape or device that is not as above.
    """
    op = torch.ops.fedkern.simplex_interpolate.default
    if isinstance(endpoints, Tensor):
        return cast(Tensor, op([endpoints], alpha)[0])
    return list(op(list(endpoints), alpha))
