"""Principal components of a few long rows: K statistics of D numbers, K much smaller than D.

The K x K Gram matrix of the centred rows has the scores' directions as eigenvectors. Forming it
squares the singular values, so small ones lose digits beside a large one: where there are such, a
Rayleigh-Ritz step on the rows themselves gives them back. All of that is in float64.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

PIECE_NUMBERS = 2**19  # of the statistics, in float64 at a time: 4 MB,
LEAST_COLUMNS = 1024  # but no fewer columns than these
SMALL_RATIO = 1e-4  # of eigenvalues: below it singular values have lost 4 digits and more
SMALL = 512  # matrices up to this size are decomposed directly
CHECK_STEPS = 32  # of the Lanczos process, between two looks at how far it is


def principal_components(stats: Tensor, num_components: int) -> Tensor:
    """The scores of the rows of `stats` on their first principal components.

    Components whose eigenvalue is below K eps times the largest are 0. Of each component's D
    loadings the first of largest magnitude is positive, as in scikit-learn >= 1.5.

    Args:
        stats: [K, D] floating, finite, K and D at least num_components.
        num_components: M.

    Returns:
        float64 [K, M].
    """
    gram = torch.ops.fedkern.centered_gram.default(stats)
    if not gram.diagonal().isfinite().all():
        raise ValueError(f"assign_subregions: stats must be finite; {_what_is_not_finite(stats)}")
    eigenvalues, left = top_eigenpairs(gram, num_components)
    if eigenvalues[-1] < SMALL_RATIO * eigenvalues[0]:
        eigenvalues, left = _refined(stats, left)
    negligible = eigenvalues < len(stats) * torch.finfo(torch.float64).eps * eigenvalues[0]
    scores = left * eigenvalues.sqrt() * _signs(stats, left, ~negligible)
    return torch.where(negligible, 0.0, scores)


def _what_is_not_finite(stats: Tensor) -> str:
    clients = stats.isfinite().all(1).logical_not().nonzero()
    if len(clients) == 0:
        return "the sums of their squares are not"
    return f"those of client {int(clients[0])} are not"


# ---- products with the rows ---------------------------------------------------------------------


def _refined(stats: Tensor, left: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues [M] and eigenvectors [K, M] after a Rayleigh-Ritz step on the rows.

    One more product with the rows brings the space of the eigenvectors nearer, and the small
    decomposition of what it projects the rows to separates the components.
    """
    directions, _ = torch.linalg.qr(_loadings(stats, left).mT)
    projected = torch.zeros_like(left)
    for columns, rows in _centered_pieces(stats):
        projected.addmm_(rows, directions[columns])
    left, singular_values, _ = torch.linalg.svd(projected, full_matrices=False)
    return singular_values.square(), left


def _signs(stats: Tensor, left: Tensor, significant: Tensor) -> Tensor:
    """The signs [M] of the significant components' largest loadings.

    The columns that may hold them are found in float32.
    """
    wanted = _may_hold_largest_loading(stats, left, significant)
    wanted[0] = True  # so that there is a column
    loadings = _loadings(stats[:, wanted], left)
    largest = loadings.gather(1, loadings.abs().argmax(1, keepdim=True))[:, 0]
    return torch.where(largest < 0, -1.0, 1.0)


def _may_hold_largest_loading(stats: Tensor, left: Tensor, significant: Tensor) -> Tensor:
    """Whether a column may hold the largest loading of a significant component: bool [D].

    The rows are not centred: the eigenvectors are orthogonal to what the rows have in common.
    """
    if not _float32_products_are_exact():
        return torch.ones(stats.shape[1], dtype=torch.bool, device=stats.device)
    rows = stats.float()
    with torch.autocast(stats.device.type, enabled=False):
        loadings = (left.mT.float() @ rows).abs()
    # Each factor is rounded, then each of K products and sums: of numbers whose magnitudes are
    # those of a unit vector, of which the sum is at most sqrt(K), times statistics. Or they are too
    # small for float32.
    clients = len(stats)
    relative = (clients + 3) * 2**-24 * clients**0.5 + left.sum(0).abs()
    error = relative.float() * torch.maximum(rows.amax(), -rows.amin()) + clients * 2**-126
    least = torch.where(significant, loadings.amax(1) - 2 * error, torch.inf)
    return (loadings < least[:, None]).logical_not_().any(0)  # nan, if they are too large


def _float32_products_are_exact() -> bool:
    try:
        return torch.get_float32_matmul_precision() == "highest"
    except RuntimeError:  # torch's answer if it is another one on one backend only
        return False


def _loadings(stats: Tensor, left: Tensor) -> Tensor:
    """The components' loadings [M, D], each as long as its singular value."""
    return torch.cat([left.mT @ rows for _, rows in _centered_pieces(stats)], dim=1)


def _centered_pieces(stats: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Columns of the statistics less their mean, some at a time in float64, and which these are."""
    width = max(LEAST_COLUMNS, PIECE_NUMBERS // len(stats))
    for begin in range(0, stats.shape[1], width):
        columns = slice(begin, begin + width)
        rows = stats[:, columns].double()
        yield columns, rows - rows.mean(0)


# ---- eigenvectors -------------------------------------------------------------------------------


def top_eigenpairs(matrix: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The largest eigenvalues [count] of a symmetric matrix, orthonormal eigenvectors [K, count].

    Small matrices are decomposed as a whole. Of large ones the Lanczos process (with full
    reorthogonalisation) finds the top. A single starting vector never sees a second eigenvector of
    the same eigenvalue: so once all have converged, it goes on from a random vector for some steps,
    and is done when that changes nothing.
    """
    size = len(matrix)
    if size <= SMALL:
        return _decomposed(matrix, count)
    steps = size // 2  # beyond them the whole decomposition is faster
    basis = matrix.new_empty((steps, size))
    products = matrix.new_empty((steps, size))
    generator = torch.Generator(matrix.device).manual_seed(0)
    eps = torch.finfo(matrix.dtype).eps
    next_check = CHECK_STEPS
    found: Tensor | None = None

    direction = _random_vector(matrix, generator)
    for step in range(steps):
        length = torch.linalg.vector_norm(direction)
        for _ in range(2):  # the second pass removes what rounding left
            direction = direction - (basis[:step] @ direction) @ basis[:step]
        if torch.linalg.vector_norm(direction) <= 1e3 * eps * length:  # an invariant subspace
            direction = _random_vector(matrix, generator)
            direction -= (basis[:step] @ direction) @ basis[:step]
        basis[step] = direction / torch.linalg.vector_norm(direction)
        direction = products[step] = matrix @ basis[step]

        done = step + 1
        if done < max(count, next_check):
            continue
        next_check += CHECK_STEPS
        values, vectors = torch.linalg.eigh(basis[:done] @ products[:done].mT)
        values, vectors = values[-count:], vectors[:, -count:]
        residuals = products[:done].mT @ vectors - (basis[:done].mT @ vectors) * values
        allowed = torch.maximum(1e-11 * values, 8 * eps * values[-1])
        if (torch.linalg.vector_norm(residuals, dim=0) > allowed).any():
            continue
        if found is not None and ((values - found).abs() <= allowed).all():
            return values.flip(0), basis[:done].mT @ vectors.flip(1)
        found = values
        direction = _random_vector(matrix, generator)
    return _decomposed(matrix, count)


def _decomposed(matrix: Tensor, count: int) -> tuple[Tensor, Tensor]:
    values, vectors = torch.linalg.eigh(matrix)
    return values[-count:].flip(0), vectors[:, -count:].flip(1)


def _random_vector(matrix: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(len(matrix), dtype=matrix.dtype, device=matrix.device, generator=generator)
