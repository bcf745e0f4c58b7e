"""Forward and backward of simplex.project beside what sorts: time.

sorted          the sort-based formula in plain PyTorch: the slow twin
entmax          entmax.sparsemax, the same projection for z = 1
entmax_topk     the same with a partial sort, of enough elements for all rows at the first try
relu            torch.relu, which does no more than move the same memory, both ways
copy            x copied once, as large as the result

The shapes: many points of a small simplex, rows of a thousand, a few long rows. `make bench` runs
it.
"""

from collections.abc import Callable

import entmax
import pytest
import timing
import torch
from torch import Tensor

import fedkern
from fedkern import reference

SHAPES = [(4096, 10), (256, 1000), (4, 100_000)]


@timing.on_one_thread
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
def test_simplex_project(shape: tuple[int, int], device: str, threads: int) -> None:
    generator = torch.Generator(device).manual_seed(0)
    x = torch.randn(shape, generator=generator, device=device).requires_grad_()
    upstream = torch.randn(shape, generator=generator, device=device)
    largest_support = int((fedkern.simplex.project(x) > 0).sum(1).max())

    def entmax_topk(x: Tensor) -> Tensor:
        return entmax.sparsemax(x, -1, min(largest_support + 1, shape[1]))

    variants = {
        "fedkern": fedkern.simplex.project,
        "sorted": reference.simplex_project,
        "entmax": entmax.sparsemax,
        "entmax_topk": entmax_topk,
        "relu": torch.relu,
    }

    def step(project: Callable[[Tensor], Tensor]) -> timing.Step:
        def run() -> None:
            project(x).backward(upstream)
            x.grad = None  # each variant frees its own gradient

        return run

    steps = {name: step(project) for name, project in variants.items()}
    steps["copy"] = lambda: x.detach().clone()
    with timing.torch_threads(threads):
        times = timing.interleaved(steps, timing.clock_of(device))
    setting = {"shape": shape, "dtype": str(x.dtype), "threads": threads, "device": device}
    timing.report("simplex_project", setting, times)
