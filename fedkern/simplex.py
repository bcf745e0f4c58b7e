"""Floco's simplex of models (arXiv 2403.03333): points on it, projections, subregions.

M endpoints theta_1, ..., theta_M span a simplex. Its points alpha (alpha >= 0, sum 1) name the
models theta(alpha) = sum_m alpha_m theta_m; a subregion holds the points within an L1 radius of a
centre.
"""

from collections.abc import Sequence
from typing import Literal, TypeAlias, cast

import torch
from torch import Tensor
from torch.overrides import has_torch_function

from fedkern import _library

SampleMethod: TypeAlias = Literal["exact", "published"]


def sample(
    num_endpoints: int,
    size: Sequence[int] = (),
    *,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Points drawn uniformly from the simplex: Dirichlet(1, ..., 1).

    Args:
        num_endpoints: M, at least 1.
        size: the result's leading dimensions; () for one point.
        generator: where the 64 random bits come from that the points are a function of; torch's
            default one if None. A CPU generator serves any device: the same state gives the same
            points on each.
        device: the result's; torch's default if None.
        dtype: float32 or float64; torch's default if None. The two are different draws.

    Returns:
        size + [M]: entries positive, each point's sum 1 but for rounding. The bits depend on the
        generator's state, M and a point's position alone: not on the number of threads, the CPU's
        capability, the GPU's launch, or the device.

    Raises:
        TypeError: a dtype that is not supported; in half precision a point does not sum to one.
        ValueError: num_endpoints is less than 1, or size negative.
    """
    if _straight():
        try:
            return cast(
                Tensor,
                _library.call_simplex_sample(num_endpoints, size, generator, device, dtype),
            )
        except TypeError:
            pass
    key = _draw_key(generator, device)
    dtype = torch.get_default_dtype() if dtype is None else dtype
    return cast(Tensor, torch.ops.fedkern.simplex_sample.default(key, size, num_endpoints, dtype))


def sample_ball(
    center: Tensor,
    radius: float | Tensor,
    num_samples: int = 1,
    *,
    method: SampleMethod = "exact",
    generator: torch.Generator | None = None,
) -> Tensor:
    """Points drawn uniformly from a subregion {alpha in the simplex: |alpha - center|_1 <= radius}.

    What Floco trains with from its round tau on (arXiv 2403.03333). Draws from the smallest of
    several regions that contain the subregion and keeps what falls inside: exact. Where 1024 draws
    of a point in succession fall outside, it is a random walk's from the center (hit-and-run, 64 M
    steps), which is uniform only approximately. With up to 16 endpoints no center was seen to need
    that; from about 32 endpoints on, centers with as many positive entries of unequal size do, at
    radii between 0.2 and 0.8.

    Args:
        center: points of the simplex, [M] or [K, M], float32 or float64, any strides: entries not
            negative, sums within 1e-3 of 1. No gradient flows to them.
        radius: a number, or one per center, [K]: finite, not negative. 0 gives the centre itself, 2
            and more the whole simplex.
        num_samples: n, of each center.
        method: "exact" or "published". The latter, for reproducing published numbers, is center +
            U(0, radius) v / |v|_1 with v uniform on (-1, 1)^M: not uniform, and not in the simplex.
        generator: where the 64 random bits come from that the points are a function of; torch's
            default one if None. A CPU generator serves any device: the same state gives the same
            points on each.

    Returns:
        [n, M] or [K, n, M], center's dtype and device. But for "published", entries are not
        negative, and each point has its center's sum and is within the radius but for rounding. The
        bits depend on the arguments, the generator's state and a point's position alone: not on the
        number of threads, the CPU's capability, the GPU's launch, or the device.

    Raises:
        TypeError: a dtype that is not supported; in half precision a point does not sum to one.
        ValueError: a shape, device, value or method that is not as above. On CUDA values of tensors
            are device-side asserts.
    """
    if _straight(center, radius):
        try:
            return cast(
                Tensor,
                _library.call_simplex_sample_ball(center, radius, num_samples, method, generator),
            )
        except TypeError:
            pass
    key = _draw_key(generator, center.device)
    radius = torch.as_tensor(radius, dtype=None if isinstance(radius, Tensor) else torch.float64)
    return cast(
        Tensor,
        torch.ops.fedkern.simplex_sample_ball.default(
            key, center.detach(), radius, num_samples, method
        ),
    )


def _straight(*arguments: object) -> bool:
    """Whether a call may go past torch.ops, which costs less.

    Compilers, what imitates tensors and modes (a default device, say) need torch's own functions.
    """
    return not (
        torch.compiler.is_compiling()
        or torch._C._is_torch_function_mode_enabled()
        or has_torch_function(arguments)
    )


def _draw_key(generator: torch.Generator | None, device: torch.device | str | None) -> Tensor:
    """What the points of a draw are a function of: 64 random bits."""
    low, high = -(2**63), 2**63 - 1
    if generator is None:
        return torch.randint(low, high, (), device=device)
    key = torch.randint(low, high, (), generator=generator, device=generator.device)
    return key.to(torch.get_default_device() if device is None else device)
