"""fedkern.simplex.sample_ball: its distribution, its limits, its bits, and what it refuses."""

import sys
from types import ModuleType

import numpy as np
import pytest
import sampling
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from operators.simplex_sample_ball import centers
from sampling import assert_replays_draw_anew, assert_same_distribution
from torch import Tensor

from fedkern import reference, simplex

SAMPLE_BALL = torch.ops.fedkern.simplex_sample_ball.default
N = 100_000


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def geometric(size: int) -> Tensor:
    """Entries of all sizes: for 64 and more, few draws of any region are accepted."""
    weights = 0.9 ** torch.arange(size, dtype=torch.float64)
    return weights / weights.sum()


def equal(size: int) -> Tensor:
    return torch.full((size,), 1 / size, dtype=torch.float64)


def vertex(size: int) -> Tensor:
    return torch.eye(size, dtype=torch.float64)[1]


def sparse(size: int, positive: int) -> Tensor:
    center = torch.zeros(size, dtype=torch.float64)
    center[:: size // positive][:positive] = 1 / positive
    return center


def tiny(size: int) -> Tensor:
    center = torch.full((size,), 1e-3, dtype=torch.float64)
    center[2] = 1 - 1e-3 * (size - 1)
    return center


# ---- distribution -------------------------------------------------------------------------------

FEW = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
# For each of the regions that are drawn from, and for none but the subregion itself.
REJECTION = [
    *((torch.tensor([0.3, 0.7], dtype=torch.float64), radius) for radius in (0.1, 0.3, 1.0, 1.9)),
    *((FEW, radius) for radius in (0.1, 0.3, 1.0, 1.9)),
    *((tiny(4), radius) for radius in (0.3, 1.0)),
    (tiny(7), 1.0),
    (torch.tensor([0.4, 0.0, 0.002, 0.598, 0.0], dtype=torch.float64), 0.5),
    (vertex(5), 1.0),
    (sparse(10, 2), 1.0),
    (equal(10), 1.0),
    (equal(10), 1.9),
    (geometric(16), 0.7),
    (equal(64), 1.0),
]
DIRECT = [
    (tiny(4), 0.1),
    (sparse(10, 2), 0.1),
    (sparse(10, 2), 0.3),
    (equal(10), 0.1),
    (equal(10), 0.3),
    (vertex(10), 0.3),
    (geometric(10), 0.3),
    (sparse(64, 4), 0.3),
    (equal(64), 0.1),
]


def drawn(center: Tensor, radius: float, dtype: torch.dtype = torch.float32) -> Tensor:
    return simplex.sample_ball(center.to(dtype), radius, N, generator=seeded(0))


@pytest.mark.parametrize(("center", "radius"), REJECTION)
def test_equals_rejection_from_the_simplex(center: Tensor, radius: float) -> None:
    expected = sampling.by_rejection(center.numpy(), radius, N, np.random.default_rng(1))
    assert_same_distribution(drawn(center, radius), expected, center)


@pytest.mark.parametrize(("center", "radius"), DIRECT)
def test_equals_the_direct_draw(center: Tensor, radius: float) -> None:
    """Where rejection takes too long; elsewhere the two agree, too."""
    expected = sampling.directly(center.numpy(), radius, N, np.random.default_rng(1))
    assert_same_distribution(drawn(center, radius), expected, center)


def test_the_direct_draw_equals_rejection() -> None:
    for center, radius in ((FEW, 0.3), (sparse(10, 2), 1.0)):
        rng = np.random.default_rng(2)
        expected = sampling.by_rejection(center.numpy(), radius, N, rng)
        assert_same_distribution(
            sampling.directly(center.numpy(), radius, N, rng), expected, center
        )


@pytest.mark.parametrize(("center", "radius"), [(FEW, 0.3), (sparse(10, 2), 1.0)])
def test_float64(center: Tensor, radius: float) -> None:
    expected = sampling.by_rejection(center.numpy(), radius, N, np.random.default_rng(1))
    assert_same_distribution(drawn(center, radius, torch.float64), expected, center)


def test_the_comparison_sees_faults() -> None:
    """What the tests above would say to other samplers."""
    for center, radius in ((FEW, 0.3), (equal(10), 0.3)):
        c, rng = center.numpy(), np.random.default_rng(3)
        good = sampling.directly(c, radius, N, rng)
        faulty = {
            "published": sampling.as_published(c, radius, N, rng),
            "t uniform": sampling.directly(c, radius, N, rng, t_power=1.0),
            "t for one dimension more": sampling.directly(c, radius, N, rng, t_power=1 / len(c)),
        }
        if len(c) == 10:  # of three coordinates, both q have the same weight
            faulty["q uniform"] = sampling.directly(c, radius, N, rng, weigh_q=False)
        for name, points in faulty.items():
            statistic = sampling.largest_statistic(points, good, center)
            assert statistic > sampling.LARGEST, (name, statistic)


def test_published_draws_what_the_published_code_draws() -> None:
    center = geometric(10)
    points = simplex.sample_ball(center.float(), 0.3, N, method="published", generator=seeded(0))
    expected = sampling.as_published(center.numpy(), 0.3, N, np.random.default_rng(1))
    assert_same_distribution(points, expected, center)
    sums = points.double().sum(1)
    assert float((sums - 1).abs().max()) > 0.1, "it leaves the simplex"


def test_two_and_more_is_the_whole_simplex(device: str) -> None:
    for center in (vertex(7), equal(7)):
        for radius in (2.0, 5.0):
            points = simplex.sample_ball(center.to(device), radius, 100, generator=seeded(4))
            whole = simplex.sample(
                7, (100,), generator=seeded(4), device=device, dtype=torch.float64
            )
            assert torch.equal(points, whole)


def test_zero_is_the_center(device: str) -> None:
    center = centers(torch.float32).to(device)
    points = simplex.sample_ball(center, 0.0, 3)
    assert torch.equal(points, center[:, None].expand_as(points))


# ---- limits -------------------------------------------------------------------------------------


def assert_in_ball(points: Tensor, center: Tensor, radius: float) -> None:
    """Exact signs; the center's sum and the radius but for rounding."""
    eps = torch.finfo(points.dtype).eps
    size = center.shape[-1]
    assert bool((points >= 0).all())
    # Half a unit of an entry each, and the errors of a sum of M terms in what they move.
    rounding = (1 + 2 * size**0.5) * eps
    p, c = points.double(), center.double()
    assert float((p.sum(-1) - c.sum(-1)).abs().max()) <= rounding
    assert float((p - c).abs().sum(-1).max()) <= radius + rounding


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("radius", [0.0, 1e-30, 1e-3, 0.1, 0.3, 1.0, 1.9, 2.0])
def test_points_are_in_the_subregion(radius: float, dtype: torch.dtype) -> None:
    makers = (equal, vertex, tiny, geometric)
    for center in [make(size) for make in makers for size in (3, 10, 24)] + [sparse(64, 5)]:
        center = center.to(dtype)
        points = simplex.sample_ball(center, radius, 1000, generator=seeded(5))
        assert_in_ball(points, center, radius)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(0, 1), min_size=1, max_size=12).filter(lambda w: sum(w) > 1e-3),
    st.floats(0, 3),
    st.integers(0, 2**63 - 1),
)
def test_any_center_and_radius(weights: list[float], radius: float, seed: int) -> None:
    center = torch.tensor(weights, dtype=torch.float64)
    center /= center.sum()
    points = simplex.sample_ball(center, radius, 40, generator=seeded(seed))
    assert_in_ball(points, center, radius)


def test_where_the_walk_ends() -> None:
    """Few draws are accepted at this center. Its entries are equal, so their means are."""
    center, radius, n = equal(64), 0.5, 1000
    points = simplex.sample_ball(center, radius, n, generator=seeded(0))
    assert_in_ball(points, center, radius)
    error = points.std(0) / n**0.5
    assert bool(((points.mean(0) - center).abs() < 6 * error).all())
    # In d = 63 dimensions a point's distance is radius U^(1 / d) or, cut at the faces, less.
    distance = (points - center).abs().sum(1)
    assert 0.95 * radius < float(distance.mean()) < 64 / 65 * radius


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_walk_equals_its_twin(dtype: torch.dtype, device: str) -> None:
    center, radius = geometric(64).to(dtype), torch.tensor(0.5)
    arguments = (torch.tensor(1), center.to(device), radius, 2, "exact")
    tried: list[int] = []
    twin = sys.modules["fedkern.reference.simplex_sample_ball"]
    walk = twin.walk
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(twin, "walk", lambda *a: tried.append(1) or walk(*a))
        expected = reference.simplex_sample_ball(torch.tensor(1), center, radius, 2)
    assert tried, "a point that ends in a walk is wanted"
    # 4096 steps, each rounded by a unit of an entry, do not add up in one direction
    tolerance = 64 * torch.finfo(dtype).eps
    torch.testing.assert_close(
        SAMPLE_BALL(*arguments).cpu(), expected, rtol=tolerance, atol=tolerance / 8
    )


# ---- bits ---------------------------------------------------------------------------------------


def test_same_seed_same_bits(device: str) -> None:
    center = centers(torch.float32).to(device)

    def points(seed: int) -> Tensor:
        return simplex.sample_ball(center, 0.3, 3, generator=seeded(seed))

    draws = [points(seed) for seed in (0, 1)]
    assert torch.equal(points(0), draws[0])
    assert torch.equal(points(1), draws[1])
    assert not torch.equal(*draws)


def test_a_generator_advances_and_the_global_one_does_not() -> None:
    center, generator = centers(torch.float32), seeded(0)
    before = torch.get_rng_state()
    first = simplex.sample_ball(center, 0.3, generator=generator)
    assert not torch.equal(first, simplex.sample_ball(center, 0.3, generator=generator))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(3)
    first = simplex.sample_ball(center, 0.3)
    assert not torch.equal(first, simplex.sample_ball(center, 0.3))
    torch.manual_seed(3)
    assert torch.equal(simplex.sample_ball(center, 0.3), first)


def test_centers_do_not_mind_each_other() -> None:
    """A point is a function of key, position and its own center and radius."""
    rows, key = centers(torch.float32), torch.tensor(9)
    radii = torch.tensor([0.1, 0.3, 1.0, 1.5])
    together = SAMPLE_BALL(key, rows, radii, 50, "exact")
    for k in range(4):
        alone = SAMPLE_BALL(key, rows[k].expand(4, -1), radii[k], 50, "exact")
        assert torch.equal(alone[k], together[k])


def test_few_points_have_the_bits_of_many() -> None:
    """They are drawn one by one, not as lanes of vectors."""
    key, radius = torch.tensor(9), torch.tensor(0.3)
    for center in centers(torch.float32):
        many = SAMPLE_BALL(key, center, radius, 40, "exact")
        for n in (1, 3, 4):
            assert torch.equal(SAMPLE_BALL(key, center, radius, n, "exact"), many[:n])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_cuda_kernels_have_the_cpus_bits(emulated: ModuleType, dtype: torch.dtype) -> None:
    key, each = torch.tensor(-5), torch.tensor([0.05, 0.3, 1.0, 1.5], dtype=torch.float64)
    calls = [
        (key, centers(dtype), each, 150, "exact"),  # more than one tile of a center
        (key, centers(dtype), torch.tensor(0.4), 9, "published"),
        (key, geometric(150).to(dtype), torch.tensor(0.01), 2, "exact"),  # rows are not staged
        (key, sparse(4096, 3).to(dtype), torch.tensor(0.3), 2, "exact"),  # nor is the plan
        (key, geometric(64).to(dtype), torch.tensor(0.5), 2, "exact"),  # walks
    ]
    for arguments in calls:
        of_cuda = SAMPLE_BALL(*arguments)
        emulated.disable()
        assert torch.equal(SAMPLE_BALL(*arguments), of_cuda)
        emulated.enable()


# ---- torch's machinery --------------------------------------------------------------------------


def test_shapes_and_radii(device: str) -> None:
    rows = centers(torch.float64).to(device)
    one = torch.tensor(0.3, dtype=torch.float64, device=device)
    assert simplex.sample_ball(rows[0], 0.3).shape == (1, 10)
    assert simplex.sample_ball(rows, 1, 3).shape == (4, 3, 10)
    assert simplex.sample_ball(rows, 0.3, 0).shape == (4, 0, 10)
    assert simplex.sample_ball(rows[:0], 0.3, 3).shape == (0, 3, 10)
    expected = simplex.sample_ball(rows, 0.3, 3, generator=seeded(0))
    for radius in (one.cpu(), one, one.expand(4)):
        assert torch.equal(simplex.sample_ball(rows, radius, 3, generator=seeded(0)), expected)


def test_points_are_constants() -> None:
    center = centers(torch.float32).requires_grad_()
    assert not simplex.sample_ball(center, 0.3).requires_grad


def test_compiles() -> None:
    compiled = torch.compile(simplex.sample_ball, fullgraph=True, backend="aot_eager")
    center = centers(torch.float64)
    assert_in_ball(compiled(center, 0.3, 5), center[:, None], 0.3)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_replayed_graph_draws_anew() -> None:
    center = centers(torch.float32).cuda()
    assert_replays_draw_anew(lambda: simplex.sample_ball(center, 0.3, 4))


@pytest.mark.parametrize(
    ("error", "message", "arguments"),
    [
        (TypeError, "center must be float32 or float64", (centers(torch.bfloat16), 0.3)),
        (ValueError, "sum to 1 within 0.001; center 2 does not",
         (centers(torch.float64) * torch.tensor([[1], [1], [1.002], [1]]), 0.3)),
        (ValueError, "radius must be finite and not negative, got nan",
         (centers(torch.float32), torch.nan)),
        (ValueError, "method must be", (centers(torch.float32), 0.3, 1, "uniform")),
    ],
)  # fmt: skip
def test_bad_input(error: type[Exception], message: str, arguments: tuple[object, ...]) -> None:
    center, radius, *rest = arguments
    num_samples, method = rest or (1, "exact")
    with pytest.raises(error, match=message):
        simplex.sample_ball(center, radius, num_samples, method=method)  # type: ignore[arg-type]


def test_bad_values_stop_a_cuda_kernel(emulated: ModuleType) -> None:
    center = centers(torch.float32)
    for bad, radius in ((center * 2, 0.3), (center, torch.tensor([0.1, 0.1, torch.nan, 0.1]))):
        with pytest.raises(RuntimeError, match="assert"):
            simplex.sample_ball(bad, radius)
        emulated.reset()


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_vmap_is_told_how_to_draw() -> None:
    """torch.vmap's own modes: each element has a key of its own, or all have one."""
    stack = equal(4).expand(3, 4)

    def drawn(randomness: str) -> Tensor:
        def draw(center: Tensor) -> Tensor:
            return simplex.sample_ball(center, 0.3, 2)

        return torch.vmap(draw, randomness=randomness)(stack)

    same, different = drawn("same"), drawn("different")
    assert torch.equal(same[0], same[1])
    assert not torch.equal(different[0], different[1])
    with pytest.raises(RuntimeError, match="randomness"):
        drawn("error")
