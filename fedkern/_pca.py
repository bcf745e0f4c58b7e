"""Principal components of a few long rows: K statistics of D numbers, K much smaller than D.

The K x K Gram matrix of the centred rows has the scores' directions as eigenvectors; all is in
float64. Forming it squares the singular values, so small ones lose digits beside a large one: where
there are such, a Rayleigh-Ritz step on the rows themselves gives them back.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

PIECE_NUMBERS = 2**19  # of the statistics, in float64 at a time: 4 MB,
LEAST_COLUMNS = 1024  # but no fewer columns than these
SMALL_RATIO = 1e-3  # of singular values: below it the Gram matrix has lost more than 6 digits
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
    rows = _CentredRows(stats)
    gram = rows.gram()
    if not gram.diagonal().isfinite().all():
        raise ValueError(f"assign_subregions: stats must be finite; {_what_is_not_finite(stats)}")
    left = top_eigenvectors(gram, num_components)

    loadings = rows.transposed_times(left)  # each as long as its singular value
    singular_values = torch.linalg.vector_norm(loadings, dim=0)
    if singular_values[-1] < SMALL_RATIO * singular_values[0]:
        # One more product with the rows brings the space nearer, and the small decomposition of
        # what it projects the rows to separates the components.
        directions, _ = torch.linalg.qr(loadings)
        left, singular_values, right = torch.linalg.svd(rows.times(directions), full_matrices=False)
        loadings = directions @ right.mT

    largest = loadings.gather(0, loadings.abs().argmax(0, keepdim=True))
    eigenvalues = singular_values.square()
    threshold = len(stats) * torch.finfo(torch.float64).eps * eigenvalues[0]
    scores = left * singular_values * torch.where(largest < 0, -1.0, 1.0)
    return torch.where(eigenvalues < threshold, 0.0, scores)


def _what_is_not_finite(stats: Tensor) -> str:
    clients = stats.isfinite().all(1).logical_not().nonzero()
    if len(clients) == 0:
        return "the sums of their squares are not"
    return f"those of client {int(clients[0])} are not"


# ---- products with the centred rows -------------------------------------------------------------


class _CentredRows:
    """The rows of the statistics less their mean, in float64, some columns at a time.

    Each piece is made anew, over the one before.
    """

    def __init__(self, stats: Tensor) -> None:
        self.stats = stats
        self.width = min(stats.shape[1], max(LEAST_COLUMNS, PIECE_NUMBERS // len(stats)))
        self.buffer = stats.new_empty((len(stats) * self.width,), dtype=torch.float64)
        self.weights = stats.new_full((len(stats),), 1 / len(stats), dtype=torch.float64)

    def __iter__(self) -> Iterator[tuple[slice, Tensor]]:
        for begin in range(0, self.stats.shape[1], self.width):
            columns = slice(begin, begin + self.width)
            piece = self.stats[:, columns]
            rows = self.buffer[: piece.numel()].view_as(piece).copy_(piece)
            rows -= self.weights @ rows
            yield columns, rows

    def gram(self) -> Tensor:
        """[K, K]. The upper half is computed, in blocks of rows, and mirrored."""
        size = len(self.stats)
        gram = self.buffer.new_zeros((size, size))
        step = max(32, size // 8)
        blocks = [slice(begin, begin + step) for begin in range(0, size, step)]
        for _, rows in self:
            for block in blocks:
                gram[block, block.start :].addmm_(rows[block], rows[block.start :].mT)
        for block in blocks:
            gram[block.stop :, block] = gram[block, block.stop :].mT
        return gram

    def transposed_times(self, vectors: Tensor) -> Tensor:
        """The product of the transpose and `vectors` [K, M]."""
        return torch.cat([vectors.mT @ rows for _, rows in self], dim=1).mT

    def times(self, vectors: Tensor) -> Tensor:
        """The product with `vectors` [D, M]."""
        result = self.buffer.new_zeros((len(self.stats), vectors.shape[1]))
        for columns, rows in self:
            result.addmm_(rows, vectors[columns])
        return result


# ---- eigenvectors -------------------------------------------------------------------------------


def top_eigenvectors(matrix: Tensor, count: int) -> Tensor:
    """Orthonormal eigenvectors [K, count] of the largest eigenvalues of a symmetric matrix.

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
            found_vectors: Tensor = basis[:done].mT @ vectors.flip(1)
            return found_vectors
        found = values
        direction = _random_vector(matrix, generator)
    return _decomposed(matrix, count)


def _decomposed(matrix: Tensor, count: int) -> Tensor:
    vectors: Tensor = torch.linalg.eigh(matrix)[1]
    return vectors[:, -count:].flip(1)


def _random_vector(matrix: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(len(matrix), dtype=matrix.dtype, device=matrix.device, generator=generator)
