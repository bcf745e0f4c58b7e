"""fedkern.simplex.project against its definition, its slow twin and other packages; its rules."""

import itertools
from types import ModuleType
from typing import Any

import entmax
import pytest
import sparsemax
import torch
from accuracy import DTYPES, assert_as_accurate
from cpu_capabilities import CAPABILITIES, run_tests_with
from hypothesis import given, settings
from hypothesis import strategies as st
from operators._entry import randn
from torch import Tensor

import fedkern
from fedkern import reference
from fedkern.simplex import project

# One element; two; some more than there are lanes; the last row that is sorted, and the first that
# is not; a word of the support, and one element more; many words and a tail.
LENGTHS = [1, 2, 10, 17, 31, 32, 33, 64, 65, 1000]
LONG = 100_003  # several times any cache line, page or L1 cache; a prime


def value_and_gradient(
    function: Any, x: Tensor, *arguments: Any, upstream: Tensor
) -> tuple[Tensor, Tensor]:
    x = x.detach().requires_grad_()
    result = function(x, *arguments)
    result.backward(upstream.to(result))
    assert x.grad is not None
    return result.detach(), x.grad


def rows_of_every_kind(length: int) -> dict[str, Tensor]:
    """Rows that take an algorithm down different paths, [rows, length] in float64."""
    steps = torch.arange(length, dtype=torch.float64).sqrt()  # no element is tau itself
    return {
        "random": randn(3, length),
        "all equal": torch.full((2, length), 0.3, dtype=torch.float64),
        "ascending": steps.expand(2, -1).contiguous(),
        "descending": steps.flip(0).expand(2, -1).contiguous(),
        "one dominates": torch.nn.functional.pad(randn(2, length - 1), (0, 1), value=50.0),
        "a few values only": (randn(2, length) * 2).round(),
        "growing gaps": -(1.5 ** torch.arange(length, dtype=torch.float64).clamp(max=60)).expand(
            2, -1
        ),
        "tiny beside large": torch.where(torch.arange(length) % 2 == 0, 1e-9, 1.0).double()
        * randn(2, length),
    }


SIZES = [1e-4, 0.1, 1.0, 1e4]


# ---- what the definition says -------------------------------------------------------------------


def assert_is_projection(w: Tensor, x: Tensor, z: Tensor) -> None:
    """The KKT conditions: w >= 0, sum w = z, and one tau with w = d - tau > 0 or w = 0, d <= tau.

    tau, and so each element of the support, may be wrong by what it is rounded to, and by what the
    sum of the support's n elements is: at random, sqrt(n) / 2 roundings of at most tau each.
    """
    d = x - x.amax(-1, keepdim=True)
    eps = torch.finfo(x.dtype).eps
    assert bool((w >= 0).all())
    support = w > 0
    size = support.sum(-1, keepdim=True)
    tau = torch.where(support, d - w, 0).sum(-1, keepdim=True) / size
    rounding = eps * tau.abs() * (2 + size.sqrt() / 2)
    excess = w.sum(-1) - z
    assert bool((excess.abs() <= (size * rounding).squeeze(-1) + 8 * eps * z).all())
    atol = float(rounding.max())
    torch.testing.assert_close((d - w)[support], tau.expand_as(d)[support], rtol=0, atol=atol)
    assert bool((d <= tau + atol)[~support].all())


@pytest.mark.parametrize("length", LENGTHS)
def test_kkt_conditions(length: int, device: str) -> None:
    for z, (name, x) in itertools.product(SIZES, rows_of_every_kind(length).items()):
        w = project(x.to(device), z).cpu()
        try:
            assert_is_projection(w, x, torch.tensor(z, dtype=torch.float64))
        except AssertionError as error:
            raise AssertionError(f"{name}, z = {z}") from error


def test_kkt_conditions_of_a_long_row() -> None:
    for z, (name, x) in itertools.product([1e-4, 1e4], rows_of_every_kind(LONG).items()):
        w = project(x, z)
        try:
            assert_is_projection(w, x, torch.tensor(z, dtype=torch.float64))
        except AssertionError as error:
            raise AssertionError(f"{name}, z = {z}") from error


@st.composite
def problems(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    rows, length = draw(st.integers(1, 20)), draw(st.integers(1, 150))
    x = randn(rows, length, seed=draw(st.integers(0, 2**32)))
    x = x * draw(st.sampled_from([0.0, 1e-3, 1.0, 1e3]))
    if draw(st.booleans()):  # ties
        x = x.round()
    z = torch.tensor(draw(st.lists(st.floats(1e-4, 1e4), min_size=rows, max_size=rows)))
    return x, z.double()


@settings(deadline=None)
@given(problems())
def test_kkt_conditions_of_any_problem(problem: tuple[Tensor, Tensor]) -> None:
    x, z = problem
    assert_is_projection(project(x, z), x, z)


@settings(deadline=None)
@given(problems())
def test_projecting_again_changes_nothing(problem: tuple[Tensor, Tensor]) -> None:
    x, z = problem
    once = project(x, z)
    # Once more, each element errs by what z is rounded to.
    twice = project(once, z)
    assert bool(((twice - once).abs() <= 8 * torch.finfo(x.dtype).eps * z[:, None]).all())


@settings(deadline=None)
@given(problems(), st.randoms())
def test_the_order_of_elements_does_not_matter(problem: tuple[Tensor, Tensor], random: Any) -> None:
    x, z = problem
    order = list(range(x.shape[1]))
    random.shuffle(order)
    torch.testing.assert_close(
        project(x[:, order], z), project(x, z)[:, order], rtol=0, atol=1e-13 * float(z.max())
    )


@settings(deadline=None)
@given(problems())
def test_equal_elements_share_equally(problem: tuple[Tensor, Tensor]) -> None:
    x, z = problem
    w, twice = project(x, z), torch.cat([x, x], dim=1)
    of_twice = project(twice, 2 * z)
    assert torch.equal(of_twice[:, : x.shape[1]], of_twice[:, x.shape[1] :])
    torch.testing.assert_close(of_twice[:, : x.shape[1]], w, rtol=0, atol=1e-13 * float(z.max()))


def test_worked_by_hand(device: str) -> None:
    x = torch.tensor([[0.5, 0.25, -1.0], [2.0, 0.5, 1.5]], device=device)
    # tau = (0.75 - 1) / 2, and tau = (3.5 - 1) / 2
    expected = torch.tensor([[0.625, 0.375, 0.0], [0.75, 0.0, 0.25]], device=device)
    assert torch.equal(project(x), expected)
    upstream = torch.tensor([[1.0, 3.0, 7.0], [1.0, 7.0, 3.0]], device=device)
    _, gradient = value_and_gradient(project, x, upstream=upstream)
    assert torch.equal(gradient, torch.tensor([[-1.0, 1.0, 0.0], [-1.0, 0.0, 1.0]], device=device))


# ---- against the twin, and other packages -------------------------------------------------------


@pytest.mark.parametrize("length", LENGTHS)
def test_float64_equals_the_reference(length: int, device: str) -> None:
    for z, (name, x) in itertools.product(SIZES, rows_of_every_kind(length).items()):
        if name == "tiny beside large":
            continue  # whether elements 1e-9 apart are in the support is not for the last bits
        upstream = randn(*x.shape, seed=1)
        actual = value_and_gradient(project, x.to(device), z, upstream=upstream)
        expected = value_and_gradient(reference.simplex_project, x, z, upstream=upstream)
        for a, e in zip(actual, expected, strict=True):
            torch.testing.assert_close(a.cpu(), e, rtol=1e-10, atol=1e-12, msg=f"{name}, z = {z}")


@pytest.mark.parametrize("shape", [(40, 10), (3, 1000), (2, 3, 40)], ids=str)
def test_second_opinions(shape: tuple[int, ...]) -> None:
    """Sparsemax is the projection with z = 1."""
    x, upstream = randn(*shape), randn(*shape, seed=1)
    actual = value_and_gradient(project, x, upstream=upstream)
    for other in (entmax.sparsemax, sparsemax.Sparsemax(dim=-1)):
        expected = value_and_gradient(other, x, upstream=upstream)
        for a, e in zip(actual, expected, strict=True):
            torch.testing.assert_close(a, e)


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@pytest.mark.parametrize("length", LENGTHS)
def test_accuracy_is_that_of_the_plain_formula(
    length: int, dtype: torch.dtype, device: str
) -> None:
    # The largest of a few rounding errors is luck: many rows are judged together.
    rows = 64 if length <= 65 else 8
    for z in SIZES:
        x, upstream = randn(rows, length).to(dtype), randn(rows, length, seed=1).to(dtype)
        kernel, gradient = value_and_gradient(project, x.to(device), z, upstream=upstream)
        naive = reference.simplex_project(x, z)
        truth = reference.simplex_project(x.double(), z)
        assert kernel.dtype == gradient.dtype == dtype
        assert_as_accurate(kernel.cpu(), naive, truth, f"z = {z}")

        # The gradient for the kernel's own support: of half types w may be 0 on it.
        _, support = torch.ops.fedkern.simplex_project(x.to(device), torch.tensor(z))
        member = (support.cpu().unsqueeze(-1) >> torch.arange(8) & 1).flatten(-2)[:, :length]
        means = (upstream.double() * member).sum(-1, keepdim=True) / member.sum(-1, keepdim=True)
        true_gradient = torch.where(member.bool(), upstream.double() - means, 0)
        naive_means = (upstream * member).sum(-1, keepdim=True) / member.sum(-1, keepdim=True)
        naive_gradient = torch.where(member.bool(), upstream - naive_means.to(dtype), 0)
        assert_as_accurate(gradient.cpu(), naive_gradient, true_gradient, f"gradient, z = {z}")


def test_accuracy_of_a_long_row() -> None:
    x = randn(2, LONG).float()
    for z in SIZES:
        naive, truth = (reference.simplex_project(t, z) for t in (x, x.double()))
        assert_as_accurate(project(x, z), naive, truth, f"z = {z}")


# ---- its rules ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("offset", [-1e8, 1e8])
def test_large_offsets_lose_only_what_the_input_lost(
    dtype: torch.dtype, offset: float, device: str
) -> None:
    for length in (10, 70):
        moved = (randn(20, length) * 30).to(dtype) + offset
        lost_already = moved.double() - moved.double().amax(-1, keepdim=True)
        actual = project(moved.to(device), 20.0).cpu()
        expected = reference.simplex_project(lost_already, 20.0)
        ulp = torch.finfo(dtype).eps * float(expected.max())
        torch.testing.assert_close(actual.double(), expected, rtol=0, atol=2 * ulp)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("length", [1, 10, 70])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf], ids=str)
def test_nan_and_infinity_spoil_their_row_only(
    dtype: torch.dtype, length: int, bad: float, device: str
) -> None:
    x, upstream = randn(3, length).to(dtype), randn(3, length, seed=1).to(dtype)
    clean = value_and_gradient(project, x.to(device), upstream=upstream)
    for columns in ([0], [length // 2], [length - 1], range(length)):
        spoilt = x.clone()
        spoilt[1, list(columns)] = bad
        result, gradient = value_and_gradient(project, spoilt.to(device), upstream=upstream)
        for a, c in zip((result, gradient), clean, strict=True):
            assert torch.equal(a[[0, 2]], c[[0, 2]])
        masked = spoilt[1] == -torch.inf
        if bad == -torch.inf and not bool(masked.all()):
            assert not bool(result.cpu()[1][masked].any() or gradient.cpu()[1][masked].any())
            assert bool(result[1].isfinite().all() and gradient[1].isfinite().all())
        else:
            assert bool(result[1].isnan().all() and gradient[1].isnan().all())


def test_masked_elements_might_as_well_be_absent(device: str) -> None:
    for length in (10, 70):
        x = randn(5, length).to(device)
        keep = torch.arange(length, device=device) % 3 != 1
        masked = project(torch.where(keep, x, -torch.inf))
        torch.testing.assert_close(masked[:, keep], project(x[:, keep]))
        assert not bool(masked[:, ~keep].any())


def test_what_underflows_stays_in_the_support(device: str) -> None:
    """Half of the difference between z and the largest element is 0 in float16, not in float32."""
    for length in (2, 40):
        x = torch.full((1, length), -torch.inf, dtype=torch.float16, device=device)
        x[0, :2] = torch.tensor([2.0**-10, 0.0])
        upstream = torch.ones(1, length)
        upstream[0, 1] = 3
        result, gradient = value_and_gradient(project, x, 2.0**-10 + 2.0**-30, upstream=upstream)
        assert result[0, 0] == 2.0**-10
        assert not bool(result[0, 1:].any())
        assert gradient[0, :2].tolist() == [-1, 1]


def test_z_of_each_row(device: str) -> None:
    x = randn(4, 3, 10).to(device)
    z = torch.rand(4, 3, generator=torch.Generator().manual_seed(0)).to(device) + 0.1
    for each in (z, z.double(), z[:1], z[:, :1], z[0], z[0, 0], z[:1, :1]):
        expected = torch.stack(
            [
                torch.stack([project(row, float(s)) for row, s in zip(rows, sizes, strict=True)])
                for rows, sizes in zip(x, each.expand(4, 3), strict=True)
            ]
        )
        assert torch.equal(project(x, each), expected)
        long = project(x.repeat(1, 1, 7), each)
        torch.testing.assert_close(long.sum(-1), each.double().expand(4, 3))
    assert torch.equal(project(x, 1), project(x, 1.0))


@pytest.mark.parametrize("length", [10, 70])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_any_dimension_and_strides(length: int, dtype: torch.dtype, device: str) -> None:
    base = randn(length, 4, length, 6).to(device, dtype)
    views = {
        "first dimension": (base[:, :, 0], 0),
        "from the end": (base, -2),
        "middle of permuted": (base.permute(3, 2, 0, 1), 1),
        "every other": (base[:, :, ::2], 2),
        "every other row": (base[::3].movedim(2, -1), -1),
        "expanded": (base[:1, 0].expand(3, -1, -1), 1),
        "one dimension": (base[0, 0, :, 1], 0),
        "not at a boundary": (base.flatten()[1 : 1 + 5 * length].view(5, length), 1),
    }
    for name, (x, dim) in views.items():
        upstream = randn(*x.shape, seed=1)
        rows = x.movedim(dim, -1).contiguous()
        plain = value_and_gradient(project, rows, upstream=upstream.movedim(dim, -1))
        strided = value_and_gradient(project, x, 1.0, dim, upstream=upstream)
        assert strided[0].stride() == torch.empty_like(x).stride(), name
        for a, b in zip(strided, plain, strict=True):
            assert torch.equal(a.movedim(dim, -1), b), name


@pytest.mark.parametrize("shape", [(300, 10), (30, 1000), (3, LONG)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_same_bits_for_any_number_of_threads(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Rows for several threads each, by the number of elements."""
    shape = (shape[0] * 40, shape[1]) if shape[1] == 10 else shape
    x, upstream = randn(*shape).to(dtype), randn(*shape, seed=1)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(value_and_gradient(project, x, upstream=upstream))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_a_million_elements() -> None:
    x = randn(1, 1_000_000).float()
    assert_as_accurate(
        project(x), reference.simplex_project(x), reference.simplex_project(x.double()), "1e6"
    )


# ---- derivatives --------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 10, 40])
def test_gradcheck_and_gradgradcheck(length: int) -> None:
    """Of random rows whose support no step of the check changes."""
    x = randn(3, length)
    z = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    w = project(x, z)
    tau = torch.where(w > 0, x - w, -torch.inf).amax(-1, keepdim=True)
    assert (x - tau).abs().min() > 1e-3
    assert torch.autograd.gradcheck(lambda x: project(x, z), x.requires_grad_())
    assert torch.autograd.gradgradcheck(lambda x: project(x, z), x)


def test_third_derivatives_exist() -> None:
    x = randn(3, 10).requires_grad_()
    (first,) = torch.autograd.grad(project(x).pow(3).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.pow(2).sum(), x, create_graph=True)
    (third,) = torch.autograd.grad(second.sum(), x)
    y = x.detach().clone().requires_grad_()
    (first,) = torch.autograd.grad(reference.simplex_project(y).pow(3).sum(), y, create_graph=True)
    (second,) = torch.autograd.grad(first.pow(2).sum(), y, create_graph=True)
    torch.testing.assert_close(third, torch.autograd.grad(second.sum(), y)[0])


def test_func_transforms_and_compile() -> None:
    x, upstream = randn(5, 3, 10), randn(3, 10, seed=1)
    z = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)

    def loss(function: Any, x: Tensor) -> Tensor:
        return (function(x, z) * upstream).sum()

    actual = torch.func.vmap(torch.func.grad(lambda x: loss(project, x)))(x)
    expected = torch.func.vmap(torch.func.grad(lambda x: loss(reference.simplex_project, x)))(x)
    torch.testing.assert_close(actual, expected)
    compiled = torch.compile(project, backend="aot_eager", fullgraph=True)
    for size in (1.0, z):
        plain = value_and_gradient(project, x[0], size, upstream=upstream)
        traced = value_and_gradient(compiled, x[0], size, upstream=upstream)
        assert all(torch.equal(a, b) for a, b in zip(plain, traced, strict=True))


def test_forward_mode_is_refused() -> None:
    with pytest.raises(NotImplementedError, match="simplex_project: forward-mode"):
        torch.func.jvp(project, (randn(3, 4),), (randn(3, 4),))


# ---- devices and vector widths ------------------------------------------------------------------


def test_bad_z_stops_an_emulated_kernel(emulated: ModuleType) -> None:
    for length in (10, 70):
        with pytest.raises(RuntimeError, match="device-side assert"):
            project(torch.zeros(3, length), torch.tensor([1.0, -1.0, 1.0]))
        assert "z must be positive" in emulated.last_message()
        emulated.reset()


def test_more_rows_than_a_grid_has_blocks(emulated: ModuleType) -> None:
    """Blocks take several rounds: 2^16 blocks of 128 rows at most."""
    x = torch.zeros(2**23 + 130, 1)
    assert bool((project(x, 2.0) == 2).all())
    assert emulated.launches()


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_every_cpu_capability(capability: str) -> None:
    """The kernels for each vector width this machine has, in a process that is made to use them."""
    chosen = "(kkt_conditions or accuracy or strides or nan_and) and not problem and not emulated"
    run_tests_with(capability, __file__, chosen)


# ---- bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "message", "arguments"),
    [
        (TypeError, "x must be float32.*got Long", (torch.zeros(4, 10).long(),)),
        (ValueError, "z must be positive, finite and not subnormal, got 0", (torch.zeros(3), 0)),
        (ValueError, "got -1", (torch.zeros(3), -1.0)),
        (ValueError, "got inf", (torch.zeros(3), float("inf"))),
        (ValueError, "got nan", (torch.zeros(3), float("nan"))),
        (ValueError, "got inf", (torch.zeros(3), 1e39)),  # of float32
        (ValueError, r"broadcastable to \[4\]", (torch.zeros(4, 10), torch.ones(10))),
        (IndexError, r"dim must be in \[-1, 1\), got 1", (torch.zeros(3), 1.0, 1)),
        (
            ValueError,
            "z must not require grad",
            (torch.zeros(3), torch.ones((), requires_grad=True)),
        ),
        (TypeError, "'str'", (torch.zeros(3), "1")),
    ],
)
def test_bad_input(error: type[Exception], message: str, arguments: Any) -> None:
    with pytest.raises(error, match=message):
        fedkern.simplex.project(*arguments)
