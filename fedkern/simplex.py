"""Floco's simplex of models (arXiv 2403.03333): points on it, projections, subregions.

M endpoints theta_1, ..., theta_M span a simplex. Its points alpha (alpha >= 0, sum 1) name the
models theta(alpha) = sum_m alpha_m theta_m; a subregion holds the points within an L1 radius of a
centre.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias, cast, overload

import torch
from torch import Tensor
from torch.overrides import has_torch_function

from fedkern import _library
from fedkern._pca import principal_components

SampleMethod: TypeAlias = Literal["exact", "published"]

# What float32 changes in an energy, at most. A point's norm is at most 1: rounding its coordinates
# moves it by 2^-24, a distance by 2^-23, that is a squared distance of 1e-4^2 by the factor
# 1 + 2 * 2^-23 / 1e-4. The sums' rounding is far less than what is added for it.
SCREEN_ERROR = 2 * 2**-23 / 1e-4 + 1e-4


# ---- points --------------------------------------------------------------------------------------


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
        if isinstance(device, str):
            device = torch.device(device)
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


def project(x: Tensor, z: Tensor | float = 1.0, dim: int = -1) -> Tensor:
    r"""The points of the simplex {w >= 0, sum w = z} that are nearest to the rows of x.

    Euclidean projection; with z = 1 also known as sparsemax (Martins and Astudillo, arXiv
    1602.02068). With tau such that the result sums to z,

        w = max(x - tau, 0)

    Its derivative keeps the support S = {i : x_i > tau}: the upstream gradient g becomes g less its
    mean over S on S, and 0 elsewhere. Derivatives of any order; where the support changes they are
    those of one side. Under torch.vmap a stack of calls is one call of the kernel.

    Args:
        x: [..., M, ...], at least one element a row; float32, float64, bfloat16 or float16, any
            strides. Rows that do not lie one after the other, each contiguous, are copied. -inf
            gives 0. A row with nan or inf, or all of -inf, is nan, and so is its gradient.
        z: the sum of a row: positive, finite and not subnormal (of half types: in float32). A
            number, or a floating tensor with one value a row, of x's shape without `dim` or
            broadcastable to that. It gets no gradient.
        dim: the dimension that rows lie along.

    Returns:
        x's shape and dtype, with the strides of `torch.empty_like(x)`. Half types compute in
        float32. The row's maximum is subtracted first: a common offset loses nothing but what it
        has cost x already. Forward-mode derivatives are refused.

    Raises:
        TypeError: a dtype that is not supported.
        ValueError: a shape, device or z that is not as above, or a z that requires grad. On CUDA
            the values of a tensor z are checked by device-side asserts.
        IndexError: no such dimension.
    """
    if _straight(x, z):
        try:  # contextlib.suppress would cost more than this path saves
            return cast(Tensor, _library.call_simplex_project(x, z, dim))
        except TypeError:
            pass
    size = z if isinstance(z, Tensor) else torch.tensor(z, dtype=torch.float64)
    return cast(Tensor, torch.ops.fedkern.simplex_project.default(x, size, dim)[0])


# ---- models --------------------------------------------------------------------------------------


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


# ---- subregions of clients -----------------------------------------------------------------------


class SubregionInfo(NamedTuple):
    """How `assign_subregions` came to its result."""

    size: Tensor
    """z, the size of the simplex that the scores were projected onto; float64 []."""
    energy: Tensor
    """The Riesz energy of the result; float64 []."""
    sizes: Tensor
    """The sizes that were tried; float64 [num_sizes]."""
    energies: Tensor
    """The energies at `sizes`; float64 [num_sizes]."""
    scores: Tensor
    """The statistics' principal components; float64 [K, M]."""


def riesz_energy(points: Tensor, s: float = 2.0, min_distance: float = 1e-4) -> Tensor:
    """The Riesz s-energy of points: how evenly they are spread (Hardin and Saff 2004).

    The logarithm of the mean over all pairs of 1 / max(distance, min_distance)^s.

    Args:
        points: [K, M], K at least 2, floating; converted to float64.
        s: positive.
        min_distance: distances are taken to be at least so large; positive.

    Returns:
        float64 []; nan where a point is not finite. It has no derivative: asking for one raises a
        RuntimeError.

    Raises:
        TypeError: points that are not floating.
        ValueError: a shape, s or min_distance that is not as above.
    """
    return cast(Tensor, torch.ops.fedkern.simplex_riesz_energy.default(points, s, min_distance))


@overload
def assign_subregions(
    stats: Tensor,
    num_endpoints: int,
    *,
    num_sizes: int = ...,
    return_info: Literal[False] = ...,
) -> Tensor: ...


@overload
def assign_subregions(
    stats: Tensor, num_endpoints: int, *, num_sizes: int = ..., return_info: Literal[True]
) -> tuple[Tensor, SubregionInfo]: ...


@torch.no_grad()
def assign_subregions(
    stats: Tensor, num_endpoints: int, *, num_sizes: int = 1000, return_info: bool = False
) -> Tensor | tuple[Tensor, SubregionInfo]:
    """Each client's point of the simplex, the centre of its subregion (Floco, arXiv 2403.03333).

    The clients' statistics are reduced to their first M principal components. For sizes z evenly
    spaced in [1e-4, 1] these are projected onto the simplex of size z and divided by z; the z with
    the least Riesz energy (s = 2, distances at least 1e-4) wins, the first one of equals.

    Pairs are screened in float32. The energies that may be the least are computed in float64.

    Args:
        stats: [K, D], a row a client: its flattened pseudo-gradient of the endpoints, global minus
            local. Floating and finite. They are not rescaled, so their scale matters.
        num_endpoints: M, at least 1 and at most K and D. K is at least 2.
        num_sizes: how many z are tried.
        return_info: also return a `SubregionInfo`; all energies are then computed in float64.

    Returns:
        beta, [K, M], rows in the order of the statistics, each on the simplex; float64 for float64
        statistics, else float32. With `return_info`, (beta, info).

    Raises:
        TypeError: stats that are not floating.
        ValueError: fewer clients or statistics than endpoints, fewer than two clients, statistics
            that are not finite, or num_sizes less than 1.
    """
    _check_assign_subregions(stats, num_endpoints, num_sizes)
    scores = principal_components(stats, num_endpoints)
    sizes = torch.linspace(1e-4, 1, num_sizes, dtype=torch.float64, device=stats.device)
    energies = _energies_by_size(scores, sizes, screen=not return_info)
    best = energies.argmin()
    points = project(scores, sizes[best])
    beta = points / points.sum(1, keepdim=True)
    if stats.dtype != torch.float64:
        beta = beta.float()
    if return_info:
        return beta, SubregionInfo(sizes[best], energies[best], sizes, energies, scores)
    return beta


def _check_assign_subregions(stats: Tensor, num_endpoints: int, num_sizes: int) -> None:
    if not stats.is_floating_point():
        raise TypeError(f"assign_subregions: stats must be floating, got {stats.dtype}")
    if stats.dim() != 2 or len(stats) < 2:
        raise ValueError(
            f"assign_subregions: stats must have shape [K, D] with K >= 2, got {[*stats.shape]}"
        )
    if not 1 <= num_endpoints <= min(stats.shape):
        clients, dimensions = stats.shape
        raise ValueError(
            "assign_subregions: num_endpoints must be at least 1 and at most the number of clients "
            f"and of statistics of each, {clients} and {dimensions}, got {num_endpoints}"
        )
    if num_sizes < 1:
        raise ValueError(f"assign_subregions: num_sizes must be at least 1, got {num_sizes}")


def _energies_by_size(scores: Tensor, sizes: Tensor, screen: bool) -> Tensor:
    """The energies of the scores on simplices of the sizes, in float64.

    With `screen`, inf where float32 has shown that it is not the least.
    """
    energies_of = torch.ops.fedkern.simplex_riesz_energy_by_size.default
    wanted = None
    if screen:
        screened = energies_of(scores, sizes, None, True)
        wanted = screened <= screened.min() + 2 * SCREEN_ERROR
    return cast(Tensor, energies_of(scores, sizes, wanted))


# ---- calls ---------------------------------------------------------------------------------------


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
    to = torch.get_default_device() if device is None else torch.device(device)
    # Of memory that is not pinned CUDA makes a copy before the call returns: nothing waits.
    return key.to(to, non_blocking=to.type == "cuda")
