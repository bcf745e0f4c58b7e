"""fedkern.simplex.assign_subregions beside scikit-learn and NumPy, which go size by size.

Statistics of D = 12,800 numbers a client: ten endpoints of a last layer from 128 inputs to 10
classes. `clusters`: clients of ten kinds, as a partition by classes makes them; `noise`: no
structure, the hardest case for an eigensolver. `make bench` runs it.
"""

import numpy as np
import pytest
import timing
import torch
from sklearn.decomposition import PCA
from threadpoolctl import threadpool_limits
from torch import Tensor

from fedkern import simplex
from fedkern._pca import principal_components

ENDPOINTS, STATISTICS, SIZES = 10, 12_800, 1000


def statistics_of(clients: int, kind: str, device: str) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(clients, STATISTICS, generator=generator) / STATISTICS**0.5
    if kind == "clusters":
        kinds = torch.randn(10, STATISTICS, generator=generator) / STATISTICS**0.5
        noise = kinds[torch.arange(clients) % 10] + 0.3 * noise
    return noise.to(device)


# ---- the same in scikit-learn and NumPy ---------------------------------------------------------


def numpy_components(stats: np.ndarray) -> np.ndarray:
    scores: np.ndarray = PCA(ENDPOINTS, svd_solver="full").fit_transform(stats)
    return scores


def numpy_energy(scores: np.ndarray, size: float) -> float:
    """The energy on the simplex of one size."""
    ordered = -np.sort(-scores, axis=1)
    counts = np.arange(1, scores.shape[1] + 1)
    tau = ((ordered.cumsum(1) - size) / counts).max(1, keepdims=True)
    points = np.maximum(scores - tau, 0)
    points /= points.sum(1, keepdims=True)
    distances = np.sqrt(np.square(points[:, None] - points[None]).sum(2))
    pairs = distances[np.triu_indices(len(points), 1)]
    return float(np.log(np.mean(1 / np.maximum(pairs, 1e-4) ** 2)))


# ---- the benchmarks -----------------------------------------------------------------------------


def setting_of(measure: str, clients: int, kind: str, device: str, threads: int) -> timing.Setting:
    return {
        "measure": measure,
        "shape": (clients, STATISTICS),
        "kind": kind,
        "dtype": "torch.float32",
        "threads": threads,
        "device": device,
    }


# NumPy's time is the same for each size: that of a few of them stands for all.
NUMPY_SIZES = 20


def numpy_step(scores: np.ndarray) -> timing.Step:
    sizes = np.linspace(1e-4, 1, NUMPY_SIZES)
    return lambda: [numpy_energy(scores, size) for size in sizes]


@timing.on_one_thread
@pytest.mark.parametrize("kind", ["clusters", "noise"])
@pytest.mark.parametrize("clients", [100, 1000])
def test_assign_subregions(clients: int, kind: str, device: str, threads: int) -> None:
    """The whole, and its two parts: principal components, then the energies of all sizes.

    NumPy's temporaries are large, so its time depends on the heap it finds: `numpy` runs in a
    process of its own, as a program that has nothing but NumPy would; `numpy_here` where fedkern
    does.
    """
    stats = statistics_of(clients, kind, device)
    stats_numpy = stats.cpu().numpy()
    sizes = torch.linspace(1e-4, 1, SIZES, dtype=torch.float64, device=device)
    scores = principal_components(stats, ENDPOINTS)
    scores_numpy = scores.cpu().numpy()
    steps: dict[str, timing.Step] = {
        "fedkern": lambda: simplex.assign_subregions(stats, ENDPOINTS, num_sizes=SIZES),
        "components": lambda: principal_components(stats, ENDPOINTS),
        "energies": lambda: simplex._energies_by_size(scores, sizes, screen=True),
        "scikit_learn": lambda: numpy_components(stats_numpy),
        "numpy": timing.StepElsewhere(numpy_step, scores_numpy),
        "numpy_here": numpy_step(scores_numpy),
    }
    with timing.torch_threads(threads), threadpool_limits(threads):
        times = timing.interleaved(steps, timing.clock_of(device), rounds=5)
    scikit_learn = times["scikit_learn"]
    energies = {
        name: [SIZES / NUMPY_SIZES * seconds for seconds in times[name]]
        for name in ("numpy", "numpy_here")
    }
    whole = {
        name: [a + b for a, b in zip(scikit_learn, seconds, strict=True)]
        for name, seconds in energies.items()
    }
    for measure, variants in {
        "assign_subregions": {"fedkern": times["fedkern"], **whole},
        "components": {"fedkern": times["components"], "scikit_learn": scikit_learn},
        "energies": {"fedkern": times["energies"], **energies},
    }.items():
        setting = setting_of(measure, clients, kind, device, threads)
        timing.report("simplex_assign_subregions", setting, variants)


@timing.everywhere
@pytest.mark.parametrize("clients", [100, 1000])
def test_centered_gram(clients: int, device: str, threads: int) -> None:
    """A part of the components, beside the library's matrix product."""
    stats = statistics_of(clients, "noise", device)

    def torch_gram() -> Tensor:
        rows = stats.double()
        rows -= rows.mean(0)
        return rows @ rows.mT

    steps = {"fedkern": lambda: torch.ops.fedkern.centered_gram(stats), "torch": torch_gram}
    with timing.torch_threads(threads):
        times = timing.interleaved(steps, timing.clock_of(device))
    setting = setting_of("centered_gram", clients, "noise", device, threads)
    timing.report("simplex_assign_subregions", setting, times)


@timing.everywhere
@pytest.mark.parametrize("kind", ["clusters", "noise"])
def test_many_clients(kind: str, device: str, threads: int) -> None:
    """Ten thousand clients, once: nothing else could be waited for."""
    clients = 10_000
    stats = statistics_of(clients, kind, device)
    with timing.torch_threads(threads):
        step = timing.clock_of(device)
        seconds = step(lambda: simplex.assign_subregions(stats, ENDPOINTS, num_sizes=SIZES), 1)
    setting = setting_of("assign_subregions", clients, kind, device, threads)
    timing.report("simplex_assign_subregions", setting, {"fedkern": [seconds]})
