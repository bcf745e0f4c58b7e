"""fedkern.simplex.sample_ball beside the published code's draw, which is not uniform.

"published_loop" draws a point at a time with NumPy, as that code does for each batch;
"published_numpy" draws all of them at once; "published" is ours of the same draw. "rand" is
torch.rand of one point's size: what a single point is held against. The centers: two positive
entries out of ten, ten equal ones, a vertex. `make bench` runs it.
"""

import numpy as np
import pytest
import timing
import torch

from fedkern import simplex

NUM_ENDPOINTS = 10
CENTERS = {
    "sparse": [0.5, 0.5, *[0.0] * 8],
    "equal": [0.1] * 10,
    "vertex": [1.0, *[0.0] * 9],
}
RADIUS = 0.3


def published_draw(center: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    v = rng.uniform(-1, 1, NUM_ENDPOINTS)
    v /= np.abs(v).sum()
    return np.asarray(center + rng.uniform(0, RADIUS) * v)


def published_loop(center: np.ndarray, num_samples: int, rng: np.random.Generator) -> None:
    for _ in range(num_samples):
        published_draw(center, rng)


def published_numpy(center: np.ndarray, num_samples: int, rng: np.random.Generator) -> np.ndarray:
    v = rng.uniform(-1, 1, (num_samples, NUM_ENDPOINTS))
    v /= np.abs(v).sum(1, keepdims=True)
    return np.asarray(center + rng.uniform(0, RADIUS, (num_samples, 1)) * v)


def rand_step(numbers: int, device: str) -> timing.Step:
    if device == "cpu":  # naming the device takes half a microsecond
        return lambda: torch.rand(numbers)
    return lambda: torch.rand(numbers, device=device)


@timing.on_one_thread
@pytest.mark.parametrize("num_samples", [1, 10_000])
@pytest.mark.parametrize("name", CENTERS)
def test_simplex_sample_ball(name: str, num_samples: int, device: str, threads: int) -> None:
    center = torch.tensor(CENTERS[name], device=device)
    on_cpu, rng = np.array(CENTERS[name]), np.random.default_rng(0)
    steps = {
        "fedkern": lambda: simplex.sample_ball(center, RADIUS, num_samples),
        "published": lambda: simplex.sample_ball(center, RADIUS, num_samples, method="published"),
        "published_numpy": lambda: published_numpy(on_cpu, num_samples, rng),
        "published_loop": lambda: published_loop(on_cpu, num_samples, rng),
        "rand": rand_step(num_samples * NUM_ENDPOINTS, device),
    }
    with timing.torch_threads(threads):
        times = timing.interleaved(steps, timing.clock_of(device))
    setting = {
        "shape": (num_samples, NUM_ENDPOINTS),
        "center": name,
        "radius": RADIUS,
        "dtype": str(center.dtype),
        "threads": threads,
        "device": device,
    }
    timing.report("simplex_sample_ball", setting, times)
