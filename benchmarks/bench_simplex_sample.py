"""fedkern.simplex.sample beside torch's ways to draw from Dirichlet(1, ..., 1).

"exponential" divides exponential variables by their sum, "dirichlet" is torch.distributions', and
"rand" draws as many uniform numbers. The sizes: a point, and 10,000. `make bench` runs it.
"""

import pytest
import timing
import torch

from fedkern import simplex


@timing.on_one_thread
@pytest.mark.parametrize("shape", [(10,), (10_000, 10), (10_000, 64)], ids=str)
def test_simplex_sample(shape: tuple[int, ...], device: str, threads: int) -> None:
    size, num_endpoints = shape[:-1], shape[-1]
    dirichlet = torch.distributions.Dirichlet(
        torch.ones(num_endpoints, device=device), validate_args=False
    )

    def exponential() -> torch.Tensor:
        e = torch.empty(shape, device=device).exponential_()
        return e / e.sum(-1, keepdim=True)

    steps = {
        "fedkern": lambda: simplex.sample(num_endpoints, size, device=device),
        "exponential": exponential,
        "dirichlet": lambda: dirichlet.sample(size),
        "rand": lambda: torch.rand(shape, device=device),
    }
    with timing.torch_threads(threads):
        times = timing.interleaved(steps, timing.clock_of(device))
    setting = {"shape": shape, "dtype": "torch.float32", "threads": threads, "device": device}
    timing.report("simplex_sample", setting, times)
