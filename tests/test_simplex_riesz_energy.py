"""fedkern.simplex.riesz_energy against closed forms and its slow twin."""

import math

import pytest
import torch

from fedkern import reference, simplex

SQUARE = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])


@pytest.mark.parametrize("s", [0.5, 1.0, 2.0, 3.0])
def test_a_square(s: float, device: str) -> None:
    """Four sides of length 1, two diagonals of length sqrt 2."""
    expected = math.log((4 + 2 * math.sqrt(2) ** -s) / 6)
    energy = simplex.riesz_energy(SQUARE.to(device), s)
    assert energy.shape == ()
    assert energy.dtype == torch.float64
    assert energy.item() == pytest.approx(expected, rel=1e-14)


def test_distances_have_a_least(device: str) -> None:
    near = torch.tensor([[0.0, 0.0], [0.0, 1e-9]], dtype=torch.float64, device=device)
    assert simplex.riesz_energy(near).item() == pytest.approx(math.log(1e8), rel=1e-14)
    assert simplex.riesz_energy(near, 1.0, 1e-9).item() == pytest.approx(math.log(1e9), rel=1e-14)
    assert simplex.riesz_energy(near, 2.0, 1e-3).item() == pytest.approx(math.log(1e6), rel=1e-14)


# the fewest; odd; around the vectors' steps, CUDA's blocks (128) and the CPU's tiles (256)
@pytest.mark.parametrize("count", [2, 3, 15, 16, 17, 33, 127, 129, 255, 256, 257, 513])
def test_every_pair_counts_once(count: int, device: str) -> None:
    generator = torch.Generator().manual_seed(count)
    # none, one, as usual, more than one chunk of CUDA's shared memory
    for dimensions in (0, 1, 10, 17):
        points = torch.randn(count, dimensions, dtype=torch.float64, generator=generator)
        expected = reference.simplex_riesz_energy(points)
        actual = simplex.riesz_energy(points.to(device)).cpu()
        torch.testing.assert_close(actual, expected, rtol=1e-13, atol=1e-13)


def test_extreme_distances(device: str) -> None:
    """A fourth power of a squared distance would be out of float64's range."""
    points = torch.randn(20, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for scale in (1e-60, 1e60):
        actual = simplex.riesz_energy((scale * points).to(device), 2.0, 1e-70).cpu()
        expected = reference.simplex_riesz_energy(points, 2.0, 1e-10) - 2 * math.log(scale)
        torch.testing.assert_close(actual, expected, rtol=1e-12, atol=0)


def test_derivatives_are_refused() -> None:
    energy = simplex.riesz_energy(SQUARE.clone().requires_grad_())
    with pytest.raises(RuntimeError, match="derivative for fedkern::simplex_riesz_energy"):
        energy.backward()
