"""Floco's simplex of models (arXiv 2403.03333): points on it, projections, subregions.

M endpoints theta_1, ..., theta_M span a simplex. Its points alpha (alpha >= 0, sum 1) name the
models theta(alpha) = sum_m alpha_m theta_m; a subregion holds the points within an L1 radius of a
centre.
"""

from typing import cast

import torch
from torch import Tensor
from torch.overrides import has_torch_function

from fedkern import _library


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
    # A straight call costs less than one through torch.ops; but compilers and what imitates tensors
    # need the latter, and it says which argument is of a wrong type.
    if not (torch.compiler.is_compiling() or has_torch_function((x, z))):
        try:  # contextlib.suppress would cost more than this path saves
            return cast(Tensor, _library.call_simplex_project(x, z, dim))
        except TypeError:
            pass
    size = z if isinstance(z, Tensor) else torch.tensor(z, dtype=torch.float64)
    return cast(Tensor, torch.ops.fedkern.simplex_project.default(x, size, dim)[0])
