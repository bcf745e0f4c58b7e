"""fedkern.simplex.sample: its distribution, its bits, and its generator."""

import os
import subprocess
import sys
from types import ModuleType

import numpy as np
import pytest
import torch
from cpu_capabilities import CAPABILITIES
from sampling import assert_replays_draw_anew, assert_same_distribution
from torch import Tensor

from fedkern import simplex
from fedkern.reference.philox import philox

SAMPLE = torch.ops.fedkern.simplex_sample.default


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ---- random words -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ([0, 0, 0, 0], 0, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ([0xFFFFFFFF] * 4, 0xFFFFFFFFFFFFFFFF, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            0x299F31D0A4093822,
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_philox_known_answers(counter: list[int], key: int, words: str) -> None:
    """Random123's test vectors. That the kernels draw as the twin does, the contract tests."""
    assert " ".join(f"{word:08x}" for word in philox(np.array(counter), key)) == words


# ---- distribution -------------------------------------------------------------------------------


# the fewest that leave a choice, tails of groups of four, many groups
@pytest.mark.parametrize("num_endpoints", [2, 3, 10, 33])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_dirichlet(num_endpoints: int, dtype: torch.dtype) -> None:
    points = simplex.sample(num_endpoints, (100_000,), generator=seeded(0), dtype=dtype)
    rng = np.random.default_rng(0)
    expected = rng.dirichlet(np.ones(num_endpoints), 100_000)
    assert_same_distribution(
        points, torch.from_numpy(expected), torch.full((num_endpoints,), 1 / num_endpoints)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_points_are_on_the_simplex(dtype: torch.dtype, device: str) -> None:
    for num_endpoints in (1, 2, 7, 1000):
        points = simplex.sample(
            num_endpoints, (3, 5), generator=seeded(0), device=device, dtype=dtype
        )
        assert points.shape == (3, 5, num_endpoints)
        assert bool((points > 0).all())
        # Each entry is rounded twice, and errors of the sum before add up like a random walk.
        error = (points.double().sum(-1) - 1).abs().max()
        assert error <= 2 * num_endpoints**0.5 * torch.finfo(dtype).eps


def test_long_tails() -> None:
    """23 random bits would end exponential variables at 16.6: 2e6 of them go beyond 14 for sure."""
    points = simplex.sample(2, (1_000_000,), generator=seeded(0)).double()
    odds = points[:, 0] / points[:, 1]
    for x in (1e-5, 1e5):  # P(odds < x) = x / (1 + x)
        below = int((odds < x).sum()) if x < 1 else int((odds > x).sum())
        assert 0 < below < 40, "10 expected"


# ---- bits ---------------------------------------------------------------------------------------


def test_same_seed_same_bits(device: str) -> None:
    def drawn(seed: int) -> Tensor:
        return simplex.sample(5, (7,), generator=seeded(seed), device=device)

    draws = [drawn(seed) for seed in (0, 1, 2**31)]
    assert all(torch.equal(drawn(seed), d) for seed, d in zip((0, 1, 2**31), draws, strict=True))
    assert len({tuple(d.flatten().tolist()) for d in draws}) == 3


def test_a_generator_advances_and_the_global_one_does_not() -> None:
    generator = seeded(0)
    before = torch.get_rng_state()
    first = simplex.sample(5, generator=generator)
    assert not torch.equal(first, simplex.sample(5, generator=generator))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(3)
    first = simplex.sample(5)
    assert not torch.equal(first, simplex.sample(5))
    torch.manual_seed(3)
    assert torch.equal(simplex.sample(5), first)


def test_a_point_depends_on_its_position_alone(device: str) -> None:
    key = torch.tensor(2**62 + 12345, device=device)
    long = SAMPLE(key, [1000], 6, torch.float32)
    assert torch.equal(SAMPLE(key, [10, 13], 6, torch.float32).flatten(0, 1), long[:130])


def test_both_halves_of_the_key_count() -> None:
    keys = [0, 1, 2**32, -(2**63)]
    draws = [SAMPLE(torch.tensor(key), [], 3, torch.float32) for key in keys]
    assert len({tuple(d.tolist()) for d in draws}) == len(keys)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_cuda_kernels_have_the_cpus_bits(emulated: ModuleType, dtype: torch.dtype) -> None:
    key = torch.tensor(77)
    # rows that are staged in shared memory, and rows that are not
    for size, num_endpoints in (([300], 10), ([3], 150)):
        of_cuda = SAMPLE(key, size, num_endpoints, dtype)
        emulated.disable()
        assert torch.equal(SAMPLE(key, size, num_endpoints, dtype), of_cuda)
        emulated.enable()


CHILD = """
import hashlib, torch, fedkern
from operators.simplex_sample_ball import centers
def draws():
    for dtype in (torch.float32, torch.float64):
        key = torch.tensor(5)
        yield torch.ops.fedkern.simplex_sample.default(key, [1000], 13, dtype)
        for radius in (0.1, 0.5, 1.5):
            for method in ("exact", "published"):
                yield torch.ops.fedkern.simplex_sample_ball.default(
                    key, centers(dtype), torch.tensor(radius), 500, method)
print(fedkern.build_info()["cpu_capability"])
print(hashlib.sha256(b"".join(d.numpy().tobytes() for d in draws())).hexdigest())
"""


def test_every_cpu_capability_has_the_same_bits() -> None:
    best = torch.backends.cpu.get_cpu_capability()
    if best not in CAPABILITIES[1:]:
        pytest.skip("this machine has one capability")
    seen = set()
    for capability in CAPABILITIES[: CAPABILITIES.index(best) + 1]:
        done = subprocess.run(
            [sys.executable, "-c", CHILD],
            env={
                **os.environ,
                "ATEN_CPU_CAPABILITY": capability.lower(),
                "PYTHONPATH": os.pathsep.join([os.path.dirname(__file__), *sys.path]),
            },
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        running, digest = done.stdout.split()
        assert running == capability
        seen.add(digest)
    assert len(seen) == 1


# ---- torch's machinery --------------------------------------------------------------------------


def test_default_dtype_and_device() -> None:
    assert simplex.sample(3).dtype == torch.float32
    with torch.device("meta"):
        assert simplex.sample(3).device.type == "meta"
    torch.set_default_dtype(torch.float64)
    try:
        assert simplex.sample(3).dtype == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


def test_compiles() -> None:
    compiled = torch.compile(simplex.sample, fullgraph=True, backend="aot_eager")
    points = compiled(4, (5,))
    assert points.shape == (5, 4)
    torch.testing.assert_close(points.sum(-1), torch.ones(5))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_replayed_graph_draws_anew() -> None:
    assert_replays_draw_anew(lambda: simplex.sample(5, (7,), device="cuda"))


@pytest.mark.parametrize(
    ("error", "message", "arguments"),
    [
        (TypeError, "float32 or float64", {"num_endpoints": 3, "dtype": torch.bfloat16}),
        (ValueError, "num_endpoints must be at least 1, got 0", {"num_endpoints": 0}),
        (ValueError, "size must not be negative", {"num_endpoints": 3, "size": (-1,)}),
    ],
)
def test_bad_input(error: type[Exception], message: str, arguments: dict[str, object]) -> None:
    with pytest.raises(error, match=message):
        simplex.sample(**arguments)  # type: ignore[arg-type]
