"""fedkern.simplex.riesz_energy beside torch.pdist and torch.cdist. `make bench` runs it."""

import pytest
import timing
import torch

from fedkern import reference, simplex


@timing.everywhere
@pytest.mark.parametrize("points", [100, 1000, 5000])
def test_riesz_energy(points: int, device: str, threads: int) -> None:
    generator = torch.Generator(device).manual_seed(0)
    of_points = torch.rand(points, 10, dtype=torch.float64, generator=generator, device=device)
    first, second = torch.triu_indices(points, points, 1, device=device)

    def cdist() -> torch.Tensor:
        pairs = torch.cdist(of_points, of_points)[first, second]
        return pairs.clamp(min=1e-4).pow(-2).mean().log()

    steps = {
        "fedkern": lambda: simplex.riesz_energy(of_points),
        "pdist": lambda: reference.simplex_riesz_energy(of_points),
        "cdist": cdist,
    }
    with timing.torch_threads(threads):
        times = timing.interleaved(steps, timing.clock_of(device))
    setting = {
        "shape": (points, 10),
        "dtype": "torch.float64",
        "threads": threads,
        "device": device,
    }
    timing.report("simplex_riesz_energy", setting, times)
