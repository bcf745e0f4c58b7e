"""fedkern.simplex.assign_subregions against its slow twin, and its parts against others."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from cpu_capabilities import CAPABILITIES, run_tests_with
from sklearn.decomposition import PCA
from torch import Tensor

from fedkern import _pca, reference, simplex
from fedkern.reference.simplex_assign_subregions import principal_components
from fedkern.simplex import SCREEN_ERROR

by_size = torch.ops.fedkern.simplex_riesz_energy_by_size.default


# ---- statistics ---------------------------------------------------------------------------------


def noise(clients: int, size: int, generator: torch.Generator) -> Tensor:
    return torch.randn(clients, size, dtype=torch.float64, generator=generator) / size**0.5


def clusters(clients: int, size: int, generator: torch.Generator) -> Tensor:
    """Five kinds of clients, as a partition by classes makes them."""
    kinds = noise(5, size, generator)
    return kinds[torch.arange(clients) % 5] + 0.1 * noise(clients, size, generator)


def duplicates(clients: int, size: int, generator: torch.Generator) -> Tensor:
    return noise(clients, size, generator)[torch.arange(clients) // 2]


def one_direction(clients: int, size: int, generator: torch.Generator) -> Tensor:
    """A first component that has ten thousand times the variance of the others.

    Beside a larger one the twin's own rounding would show in the energies of small simplices.
    """
    direction = torch.randn(size, dtype=torch.float64, generator=generator)
    along = torch.randn(clients, 1, dtype=torch.float64, generator=generator)
    return 1e-2 * noise(clients, size, generator) + along * direction / size**0.5


def small(clients: int, size: int, generator: torch.Generator) -> Tensor:
    """Of the size of a late round's updates: most simplices hold all the scores inside."""
    return 1e-3 * noise(clients, size, generator)


KINDS = [noise, clusters, duplicates, one_direction, small]
by_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)


# ---- the whole ----------------------------------------------------------------------------------


# the fewest that have all components; odd; one tile of 256 points, and more
@pytest.mark.parametrize("clients", [11, 37, 100, 300])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@by_kind
def test_equals_its_twin(
    kind: Callable[[int, int, torch.Generator], Tensor], dtype: torch.dtype, clients: int
) -> None:
    stats = kind(clients, 500, torch.Generator().manual_seed(clients)).to(dtype)
    expected, energies = reference.simplex_assign_subregions(stats, 10, 200)
    beta = simplex.assign_subregions(stats, 10, num_sizes=200)
    _, info = simplex.assign_subregions(stats, 10, num_sizes=200, return_info=True)
    assert beta.dtype == dtype
    torch.testing.assert_close(info.energy, energies.min(), rtol=0, atol=1e-9)
    # On the smallest simplices a score's rounding is large beside the least distance.
    torch.testing.assert_close(info.energies, energies, rtol=0, atol=1e-7)
    least, next_to = energies.sort().values[:2]
    if next_to - least > 1e-9:
        torch.testing.assert_close(beta.double(), expected, rtol=0, atol=1e-6)
    else:
        assert kind is duplicates


def test_on_every_device(device: str) -> None:
    stats = clusters(23, 200, torch.Generator().manual_seed(0))
    expected, energies = reference.simplex_assign_subregions(stats, 4, 30)
    beta, info = simplex.assign_subregions(stats.to(device), 4, num_sizes=30, return_info=True)
    torch.testing.assert_close(beta.cpu(), expected, rtol=0, atol=1e-9)
    torch.testing.assert_close(info.energies.cpu(), energies, rtol=0, atol=1e-9)
    assert torch.equal(info.sizes[info.energies.argmin()], info.size)
    screened = simplex.assign_subregions(stats.to(device), 4, num_sizes=30)
    assert torch.equal(screened, beta)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@by_kind
def test_regions_lie_on_the_simplex(
    kind: Callable[[int, int, torch.Generator], Tensor], dtype: torch.dtype
) -> None:
    stats = kind(40, 100, torch.Generator().manual_seed(1)).to(dtype)
    beta = simplex.assign_subregions(stats, 7, num_sizes=50)
    assert beta.shape == (40, 7)
    assert beta.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert (beta >= 0).all()
    ulp = torch.finfo(beta.dtype).eps
    torch.testing.assert_close(beta.sum(1), torch.ones(40).to(beta), rtol=0, atol=4 * ulp)


def test_equal_clients_share_the_centre() -> None:
    """All energies are equal, and the first size wins."""
    stats = torch.ones(5, 20)
    beta, info = simplex.assign_subregions(stats, 4, return_info=True)
    torch.testing.assert_close(beta, torch.full((5, 4), 0.25))
    assert info.size == info.sizes[0] == 1e-4


def test_one_endpoint() -> None:
    assert torch.equal(simplex.assign_subregions(torch.randn(3, 5), 1), torch.ones(3, 1))


def test_one_size() -> None:
    stats = noise(6, 20, torch.Generator().manual_seed(0))
    _, info = simplex.assign_subregions(stats, 3, num_sizes=1, return_info=True)
    assert info.size == 1e-4


def test_no_gradient_is_recorded() -> None:
    stats = torch.randn(5, 10, requires_grad=True)
    assert not simplex.assign_subregions(stats, 3, num_sizes=5).requires_grad


# ---- screening ----------------------------------------------------------------------------------


def near(clients: int, _: int, generator: torch.Generator) -> Tensor:
    """Pairs as near as distances are counted, where float32 does most harm."""
    directions = torch.randn(clients, 10, dtype=torch.float64, generator=generator)
    return torch.rand(10, dtype=torch.float64, generator=generator) + 1e-4 * directions


@pytest.mark.parametrize("kind", [*KINDS, near], ids=lambda kind: kind.__name__)
def test_screening_is_within_its_error(
    kind: Callable[[int, int, torch.Generator], Tensor], device: str
) -> None:
    sizes = torch.linspace(1e-4, 1, 20, dtype=torch.float64)
    for seed in range(3):
        scores = kind(40, 10, torch.Generator().manual_seed(seed))
        exact = by_size(scores.to(device), sizes.to(device))
        screened = by_size(scores.to(device), sizes.to(device), None, True)
        assert (exact - screened).abs().max() < SCREEN_ERROR
        assert not torch.equal(exact, screened)


@pytest.mark.parametrize("kind", [*KINDS, near], ids=lambda kind: kind.__name__)
def test_screening_changes_no_choice(
    kind: Callable[[int, int, torch.Generator], Tensor],
) -> None:
    for seed in range(20):
        stats = kind(31, 10, torch.Generator().manual_seed(seed))
        beta, _ = simplex.assign_subregions(stats, 6, return_info=True)
        assert torch.equal(simplex.assign_subregions(stats, 6), beta)


def test_unwanted_sizes_are_infinite(device: str) -> None:
    scores = noise(20, 4, torch.Generator().manual_seed(0)).to(device)
    sizes = torch.linspace(1e-4, 1, 6, dtype=torch.float64, device=device)
    wanted = torch.tensor([True, False, True, False, False, True], device=device)
    energies = by_size(scores, sizes, wanted)
    assert energies[~wanted].isposinf().all()
    assert torch.equal(energies[wanted], by_size(scores, sizes)[wanted])


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_every_cpu_capability(capability: str) -> None:
    chosen = "((twin and 300) or screening) and not emulated"
    run_tests_with(capability, __file__, chosen)


# ---- principal components -----------------------------------------------------------------------


# decomposed directly; by the Lanczos process; fewer statistics than clients
@pytest.mark.parametrize(("clients", "size"), [(12, 300), (300, 500), (700, 900), (600, 40)])
@pytest.mark.parametrize("kind", [noise, clusters, one_direction], ids=lambda k: k.__name__)
def test_principal_components_equal_scikit_learns(
    kind: Callable[[int, int, torch.Generator], Tensor], clients: int, size: int
) -> None:
    stats = kind(clients, size, torch.Generator().manual_seed(0))
    expected = PCA(4, svd_solver="full").fit_transform(stats.numpy())
    actual = _pca.principal_components(stats, 4).numpy()
    # A component is as exact as its distance from the next allows.
    scale = np.abs(expected).max(0)
    np.testing.assert_allclose(actual / scale, expected / scale, rtol=0, atol=1e-6)


def test_a_component_loses_nothing_beside_a_large_one() -> None:
    """The Gram matrix alone would leave two digits: its eigenvalues differ by 14 orders."""
    generator = torch.Generator().manual_seed(0)
    left = torch.linalg.qr(noise(30, 5, generator)).Q
    left = torch.linalg.qr(left - left.mean(0)).Q
    right = torch.linalg.qr(noise(400, 5, generator)).Q
    values = torch.tensor([1e6, 1.0, 0.5, 0.25, 0.125], dtype=torch.float64)
    scores = _pca.principal_components(left * values @ right.mT, 5)
    torch.testing.assert_close(scores[:, 1:].abs(), (left * values)[:, 1:].abs(), rtol=0, atol=1e-8)


def mirrored(clients: int, size: int, generator: torch.Generator) -> Tensor:
    """Two classes, say, whose gradients are opposite but for little: loadings come in near ties."""
    stats = noise(clients, size // 2, generator)
    return torch.cat([stats, -(1 - 1e-9) * stats], 1)


def far_off(clients: int, size: int, generator: torch.Generator) -> Tensor:
    return noise(clients, size, generator) + 1e4


@pytest.mark.parametrize("precision", ["highest", "medium"])
@pytest.mark.parametrize("kind", [noise, mirrored, far_off], ids=lambda k: k.__name__)
def test_signs_do_not_rest_on_float32(
    kind: Callable[[int, int, torch.Generator], Tensor], precision: str
) -> None:
    stats = kind(30, 2000, torch.Generator().manual_seed(0))
    expected = principal_components(stats, 4)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision(precision)
        actual = _pca.principal_components(stats, 4)
    finally:
        torch.set_float32_matmul_precision(before)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize("scale", [1e-100, 1e-42, 1e-38, 1e36, 1e100])
def test_signs_of_any_magnitude(scale: float) -> None:
    """Those too small or too large for float32, too."""
    stats = noise(30, 2000, torch.Generator().manual_seed(0))
    expected = principal_components(stats, 4)
    actual = _pca.principal_components(stats * scale, 4) / scale
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-8)


def test_few_columns_may_hold_a_largest_loading() -> None:
    stats = noise(30, 2000, torch.Generator().manual_seed(0))
    _, left = _pca.top_eigenpairs(torch.ops.fedkern.centered_gram(stats), 4)

    def columns(*significant: bool) -> int:
        wanted = _pca._may_hold_largest_loading(stats, left, torch.tensor(significant))
        return int(wanted.sum())

    few = columns(True, True, True, True)
    assert few < 10
    with torch.autocast("cpu", torch.bfloat16):
        assert columns(True, True, True, True) == few
    assert columns(False, False, False, False) == 0
    try:
        torch.backends.mkldnn.matmul.fp32_precision = "bf16"  # then float32 tells nothing
        assert columns(True, True, True, True) == 2000
    finally:
        torch.backends.mkldnn.matmul.fp32_precision = "none"


def test_components_beyond_the_rank_are_zero() -> None:
    generator = torch.Generator().manual_seed(0)
    stats = noise(30, 3, generator) @ noise(3, 100, generator)
    scores = _pca.principal_components(stats, 10)
    assert torch.equal(scores[:, 3:], torch.zeros(30, 7, dtype=torch.float64))
    assert (scores[:, :3].abs().amax(0) > 1e-3).all()


@pytest.mark.parametrize("copies", [1, 2, 12])
def test_equal_eigenvalues_are_all_found(copies: int) -> None:
    """A Krylov space of one vector has one eigenvector of each eigenvalue."""
    size, count = 600, 12
    generator = torch.Generator().manual_seed(copies)
    values = torch.rand(size, dtype=torch.float64, generator=generator)
    values[:count] = torch.arange(count).div(copies, rounding_mode="floor") + 2.0
    basis = torch.linalg.qr(torch.randn(size, size, dtype=torch.float64, generator=generator)).Q
    _, found = _pca.top_eigenpairs(basis * values @ basis.mT, count)
    torch.testing.assert_close(found.mT @ found, torch.eye(count).double(), rtol=0, atol=1e-12)
    # The same space: the projection of one onto the other loses nothing.
    overlap = basis[:, :count].mT @ found
    torch.testing.assert_close(overlap @ overlap.mT, torch.eye(count).double(), rtol=0, atol=1e-8)


# ---- bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "message", "stats", "options"),
    [
        (TypeError, "stats must be floating, got torch.int64", torch.ones(4, 5).long(), {}),
        (ValueError, r"shape \[K, D\] with K >= 2, got \[5\]", torch.ones(5), {}),
        (ValueError, r"with K >= 2, got \[1, 5\]", torch.ones(1, 5), {}),
        (ValueError, "number of clients and of .* 2 and 5, got 3", torch.ones(2, 5), {}),
        (ValueError, "4 and 2, got 3", torch.ones(4, 2), {}),
        (ValueError, "num_sizes must be at least 1, got 0", torch.ones(4, 5), {"num_sizes": 0}),
        (ValueError, "must be finite; those of client 2 are not",
         torch.ones(4, 5).index_fill(0, torch.tensor(2), torch.nan), {}),
    ],
)  # fmt: skip
def test_bad_input(
    error: type[Exception], message: str, stats: Tensor, options: dict[str, int]
) -> None:
    with pytest.raises(error, match=message):
        simplex.assign_subregions(stats, 3, **options)
