"""fedkern.optim.sgd_step_ against torch's optimizer and clipping, row by row, and its memory."""

from types import ModuleType
from typing import Any

import pytest
import torch
from accuracy import DTYPES, assert_as_accurate
from cpu_capabilities import CAPABILITIES, expected_capability, run_tests_with
from device_calls import DeviceCalls
from hypothesis import given, settings
from hypothesis import strategies as st
from operators._entry import randn
from operators.sgd_step import alpha_dtype
from torch import Tensor, nn

import fedkern
from fedkern import reference
from fedkern.optim import sgd_step_

# One; less than a vector; one more than a CPU's piece (2048); more than two of a GPU's.
SIZES = [1, 7, 2049, 5000]
# max_norm, momentum, weight_decay, pull: nothing; each by itself; all. Norms here are about 5.
OPTIONS = [
    (None, 0.0, 0.0, 0.0),
    (0.5, 0.0, 0.0, 0.0),
    (1e3, 0.0, 0.0, 0.0),
    (None, 0.9, 0.0, 0.0),
    (None, 0.0, 0.01, 0.0),
    (0.5, 0.0, 0.0, 0.3),
    (0.5, 0.9, 0.01, 0.3),
]
STEPS = 12
LR = 0.1


def gradients(size: int, dtype: torch.dtype) -> list[Tensor]:
    return [randn(size, dtype=dtype, seed=100 + i) * 0.1 for i in range(STEPS)]


def torch_steps(param: Tensor, grads: list[Tensor], options: tuple[Any, ...]) -> Tensor:
    """What torch makes of a parameter. A pull is added to its gradient before that is clipped."""
    max_norm, momentum, weight_decay, pull = options
    parameter, anchor = nn.Parameter(param.clone()), param.clone()
    optimizer = torch.optim.SGD([parameter], LR, momentum, weight_decay=weight_decay)
    for grad in grads:
        parameter.grad = grad + pull * (parameter.detach() - anchor) if pull else grad.clone()
        if max_norm is not None:
            nn.utils.clip_grad_norm_([parameter], max_norm)
        optimizer.step()
    return parameter.detach()


def our_steps(param: Tensor, grads: list[Tensor], options: tuple[Any, ...]) -> Tensor:
    max_norm, momentum, weight_decay, pull = options
    stepped = param.clone()
    named = {
        "momentum_buffer": torch.zeros_like(param) if momentum else None,
        "anchor": param.clone() if pull else None,
        "momentum": momentum,
        "weight_decay": weight_decay,
        "max_norm": max_norm,
        "pull": pull,
    }
    for grad in grads:
        sgd_step_(stepped, grad, lr=LR, **named)
    return stepped


# ---- torch's steps ------------------------------------------------------------------------------


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("size", SIZES)
def test_steps_equal_torchs(size: int, options: tuple[Any, ...], device: str) -> None:
    """In float64; a dozen steps, so that momentum and errors would add up."""
    param, grads = randn(size), gradients(size, torch.float64)
    actual = our_steps(param.to(device), [g.to(device) for g in grads], options).cpu()
    torch.testing.assert_close(actual, torch_steps(param, grads, options), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_accuracy_is_that_of_torch(
    dtype: torch.dtype, options: tuple[Any, ...], device: str
) -> None:
    param, grads = randn(5000, dtype=dtype), gradients(5000, dtype)
    kernel = our_steps(param.to(device), [g.to(device) for g in grads], options).cpu()
    naive = torch_steps(param, grads, options)
    truth = torch_steps(param.double(), [g.double() for g in grads], options)
    assert_as_accurate(kernel, naive, truth, "parameters")


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("max_norm", [None, 0.5])
def test_a_gradient_that_is_not_finite_does_what_it_does_in_torch(
    value: float, max_norm: float | None, device: str
) -> None:
    param, grad = randn(3000), randn(3000, seed=1)
    grad[2500] = value
    options = (max_norm, 0.0, 0.0, 0.0)
    expected = torch_steps(param, [grad], options)
    actual = our_steps(param.to(device), [grad.to(device)], options).cpu()
    torch.testing.assert_close(actual, expected, equal_nan=True)


def test_gradients_at_the_ends_of_the_range(device: str) -> None:
    """Their squares overflow, or vanish, in the dtype: the norm is as torch's then."""
    for scale in (1e30, 1e-30):
        param = torch.zeros(100)
        grad = randn(100, dtype=torch.float32) * scale
        expected = torch_steps(param, [grad], (0.5, 0.0, 0.0, 0.0))
        actual = our_steps(param.to(device), [grad.to(device)], (0.5, 0.0, 0.0, 0.0))
        torch.testing.assert_close(actual.cpu(), expected)


# ---- any problem --------------------------------------------------------------------------------


@st.composite
def problems(draw: st.DrawFn) -> tuple[Any, ...]:
    """Arguments of the operator, in float64, rows any distance apart."""
    rows = draw(st.none() | st.integers(0, 4))
    endpoints = draw(st.none() | st.integers(1, 5))
    plain, endpoint = draw(st.integers(0, 70)), draw(st.integers(1, 2100))
    grad_size = plain + endpoint
    size = grad_size + (max(endpoints or 1, 1) - 1) * endpoint
    seed = draw(st.integers(0, 2**16))

    def make(length: int, seed: int) -> Tensor:
        gap, offset = draw(st.integers(0, 3)), draw(st.integers(0, 3))
        buffer = randn((rows or 1) * (length + gap) + offset, seed=seed)
        apart = buffer[offset:].view(rows or 1, length + gap)[:, :length]
        return apart[0] if rows is None else apart[:rows]

    def flags() -> Tensor:
        count = 1 if rows is None else rows
        drawn = torch.tensor(draw(st.lists(st.booleans(), min_size=count, max_size=count))).bool()
        return drawn[0] if rows is None else drawn

    number = st.floats(0.01, 2.0)
    momentum, pull = draw(st.just(0.0) | number), draw(st.just(0.0) | number)
    anchor = make(size, seed + 3) if pull else None
    if anchor is not None and rows and draw(st.booleans()):
        anchor = anchor[0]
    alpha = None
    if endpoints is not None:
        alpha = randn(endpoints, seed=seed + 4).softmax(-1)
        if rows is not None and draw(st.booleans()):
            alpha = randn(rows, endpoints, seed=seed + 4).softmax(-1)
    return (
        make(size, seed),
        make(grad_size, seed + 1),
        make(size, seed + 2) if momentum else None,
        anchor,
        alpha,
        draw(st.none() | st.builds(flags)),
        draw(number),
        momentum,
        draw(st.just(0.0) | number),
        draw(st.none() | number | st.just(float("inf"))),
        pull,
        draw(st.booleans()),
    )


@settings(max_examples=150, deadline=None)
@given(problems())
def test_any_problem_equals_its_twin(problem: tuple[Any, ...]) -> None:
    expected = reference.sgd_step(*problem)
    torch.ops.fedkern.sgd_step_(*problem)
    for a, e in zip(problem, expected, strict=False):
        if a is not None:
            torch.testing.assert_close(a, e, rtol=1e-12, atol=1e-12)


# ---- rows ---------------------------------------------------------------------------------------


def stack_of_models(dtype: torch.dtype) -> dict[str, Any]:
    """Five models, each with its own of everything; a simplex of three behind other parameters."""
    size, endpoint = 60_000, 10_000
    return {
        "param": randn(5, size, dtype=dtype),
        "grad": randn(5, size - 2 * endpoint, dtype=dtype, seed=1),
        "momentum_buffer": randn(5, size, dtype=dtype, seed=2),
        "anchor": randn(5, size, dtype=dtype, seed=3),
        "alpha": randn(5, 3, dtype=alpha_dtype(dtype), seed=4).softmax(-1),
        "active": torch.tensor([True, True, False, True, True]),
    }


NUMBERS = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01, "max_norm": 5.0, "pull": 0.3}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_row_is_stepped_as_if_it_were_alone(dtype: torch.dtype) -> None:
    """And with any number of threads, which have whole rows, or share one."""
    results = []
    for threads in (1, 2, 7):
        torch.set_num_threads(threads)
        together, apart = stack_of_models(dtype), stack_of_models(dtype)
        sgd_step_(**together, **NUMBERS, zero_grad=True)
        for i in range(5):
            row = {name: tensor[i] for name, tensor in apart.items()}
            sgd_step_(**row, **NUMBERS, zero_grad=True)
        results += [together, apart]
    for other in results[1:]:
        assert all(torch.equal(other[name], tensor) for name, tensor in results[0].items())


def test_rows_on_any_device(device: str) -> None:
    """Smaller ones than above; on a GPU a row has several blocks, and the last has few elements."""
    size, endpoint = 3001, 700
    tensors = {
        "param": randn(3, size),
        "grad": randn(3, size - 2 * endpoint, seed=1),
        "momentum_buffer": randn(3, size, seed=2),
        "anchor": randn(size, seed=3),
        "alpha": randn(3, 3, seed=4).softmax(-1),
        "active": torch.tensor([True, False, True]),
    }
    moved = {name: tensor.to(device, copy=True) for name, tensor in tensors.items()}
    expected = reference.sgd_step(**tensors, **NUMBERS, zero_grad=True)
    sgd_step_(**moved, **NUMBERS, zero_grad=True)
    for name, e in zip(("param", "grad", "momentum_buffer"), expected, strict=True):
        torch.testing.assert_close(moved[name].cpu(), e, rtol=1e-12, atol=1e-12)


def test_an_inactive_row_stays_as_it_is(device: str) -> None:
    """Whatever its gradient is; zero_grad is for it, too."""
    param, grad = randn(2, 3000).to(device), randn(2, 3000, seed=1).to(device)
    grad[0] = torch.nan
    before = param.clone()
    sgd_step_(
        param, grad, lr=1.0, max_norm=0.5, active=torch.tensor([False, True]).to(device),
        zero_grad=True,
    )  # fmt: skip
    assert torch.equal(param[0], before[0])
    assert not torch.equal(param[1], before[1])
    assert not grad.any()


def test_gradients_are_left_alone_but_for_zero_grad(device: str) -> None:
    param, grad = randn(3000).to(device), randn(3000, seed=1).to(device)
    before = grad.clone()
    sgd_step_(param, grad, lr=1.0, max_norm=0.5)
    assert torch.equal(grad, before)
    sgd_step_(param, grad, lr=1.0, max_norm=0.5, zero_grad=True)
    assert not grad.any()


# ---- a simplex of models ------------------------------------------------------------------------


def test_endpoints_get_autograds_gradients(device: str) -> None:
    """Through the interpolation written out, with everything but the interpolation beside it."""
    plain, endpoints = randn(10), randn(4, 6, seed=1)
    alpha = randn(4, seed=2).softmax(0)
    parameters = [nn.Parameter(plain.clone()), nn.Parameter(endpoints.clone())]
    optimizer = torch.optim.SGD(parameters, LR, momentum=0.9, weight_decay=0.01)
    values = torch.cat([plain, endpoints.flatten()]).to(device)
    buffer, anchor = torch.zeros_like(values), values.clone()

    def loss_of(bias: Tensor, theta: Tensor) -> Tensor:
        return (torch.outer(bias, theta).sin() * 3).sum()

    for _ in range(STEPS):
        theta = alpha @ parameters[1]
        optimizer.zero_grad()
        distance = sum(
            ((p - a) ** 2).sum() for p, a in zip(parameters, (plain, endpoints), strict=True)
        )
        torch.autograd.backward(loss_of(parameters[0], theta) + 0.3 / 2 * distance)

        bias = values[:10].cpu().requires_grad_()
        theta = (alpha @ values[10:].cpu().view(4, 6)).requires_grad_()
        grads = torch.autograd.grad(loss_of(bias, theta), (bias, theta))

        nn.utils.clip_grad_norm_(parameters, 2.0)
        optimizer.step()
        sgd_step_(
            values, torch.cat(grads).to(device), lr=LR, momentum_buffer=buffer, anchor=anchor,
            alpha=alpha.to(device), momentum=0.9, weight_decay=0.01, max_norm=2.0, pull=0.3,
        )  # fmt: skip
    expected = torch.cat([p.detach().flatten() for p in parameters])
    torch.testing.assert_close(values.cpu(), expected, rtol=1e-12, atol=1e-12)


def test_one_endpoint_is_a_row_as_any_other(device: str) -> None:
    """Whatever its weight is: it is 1 by definition."""
    param, grad = randn(50).to(device), randn(50, seed=1).to(device)
    expected = param.clone()
    sgd_step_(expected, grad, lr=LR, max_norm=0.5)
    alpha = torch.tensor([torch.nan], dtype=torch.float64, device=device)
    sgd_step_(param, grad, lr=LR, max_norm=0.5, alpha=alpha)
    assert torch.equal(param, expected)


# ---- memory -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_may_begin_anywhere(dtype: torch.dtype, device: str) -> None:
    """At any address, any distance apart; nothing beside them is touched."""
    size = 2100

    def placed(t: Tensor, offset: int, gap: int) -> tuple[Tensor, Tensor]:
        rows, length = t.shape
        buffer = torch.full((offset + rows * (length + gap),), 7.0, dtype=dtype, device=device)
        view = buffer[offset:].view(rows, length + gap)[:, :length]
        view.copy_(t)
        return buffer, view

    def step(offsets: list[int], gap: int) -> list[Tensor]:
        buffers, views = [], []
        for i, offset in enumerate(offsets):
            buffer, view = placed(randn(2, size, dtype=dtype, seed=i), offset, gap)
            buffers.append((buffer, offset))
            views.append(view)
        param, grad, momentum_buffer, anchor = views
        sgd_step_(
            param, grad, momentum_buffer=momentum_buffer, anchor=anchor, **NUMBERS, zero_grad=True
        )
        for buffer, offset in buffers:
            beside = [buffer[:offset]]
            if gap:
                beside.append(buffer[offset:].view(2, size + gap)[:, size:])
            assert all((b == 7).all() for b in beside)
        return [param, grad, momentum_buffer]

    expected = step([0, 0, 0, 0], 0)
    for offsets, gap in (
        ([1, 1, 1, 1], 0),
        ([1, 0, 2, 3], 0),
        ([0, 0, 0, 0], 1),
        ([8, 0, 0, 8], 8),
    ):
        for a, e in zip(step(offsets, gap), expected, strict=True):
            torch.testing.assert_close(a, e)


def test_all_may_lie_in_one_tensor() -> None:
    arena = randn(3, 100)
    expected = reference.sgd_step(arena[0], arena[1], None, None, None, None, LR)[0]
    sgd_step_(arena[0], arena[1], lr=LR)
    torch.testing.assert_close(arena[0], expected)
    with pytest.raises(ValueError, match="grad must not be param, nor share memory with it"):
        sgd_step_(arena.view(-1)[:100], arena.view(-1)[99:199], lr=LR)


def test_what_is_written_gets_a_new_version() -> None:
    """So that a backward pass notices which saved the old values."""
    tensors = [torch.zeros(3), torch.ones(3), torch.zeros(3)]
    before = [t._version for t in tensors]
    sgd_step_(tensors[0], tensors[1], lr=LR)
    assert [t._version > b for t, b in zip(tensors, before, strict=True)] == [True, False, False]
    before = [t._version for t in tensors]
    sgd_step_(
        tensors[0], tensors[1], lr=LR, momentum=0.9, momentum_buffer=tensors[2], zero_grad=True
    )
    assert all(t._version > b for t, b in zip(tensors, before, strict=True))


# ---- torch's machinery --------------------------------------------------------------------------


def test_leaves_are_stepped_under_no_grad() -> None:
    param = torch.zeros(3, requires_grad=True)
    with pytest.raises(ValueError, match=r"sgd_step: param requires grad.*torch.no_grad\(\)"):
        sgd_step_(param, torch.ones(3), lr=LR)
    with torch.no_grad():
        sgd_step_(param, torch.ones(3), lr=LR)
    assert torch.equal(param.detach(), torch.full((3,), -LR))


def test_compiles() -> None:
    def steps(param: Tensor, grad: Tensor, momentum_buffer: Tensor) -> Tensor:
        for _ in range(2):
            sgd_step_(
                param, grad * 2, lr=LR, momentum_buffer=momentum_buffer, momentum=0.9, max_norm=0.5
            )
        return param * 2

    arguments = [[randn(30, seed=i) for i in range(3)] for _ in range(2)]
    actual = torch.compile(steps, backend="aot_eager", fullgraph=True)(*arguments[0])
    torch.testing.assert_close(actual, steps(*arguments[1]))
    torch.testing.assert_close(arguments[0], arguments[1])


def test_it_is_one_call() -> None:
    with DeviceCalls() as calls:
        sgd_step_(torch.zeros(3), torch.ones(3), lr=LR, max_norm=0.5)
    assert calls.ours() == {"sgd_step_": 1}


# ---- GPUs ---------------------------------------------------------------------------------------


def test_launches(emulated: ModuleType) -> None:
    """The update; with clipping the norm before it. No other kernel, and no copy."""
    param, grad = randn(3000), randn(3000, seed=1)
    for max_norm, expected in ((None, 1), (torch.inf, 1), (0.5, 2)):
        before = len(emulated.launches())
        sgd_step_(param, grad, lr=LR, max_norm=max_norm)
        assert len(emulated.launches()) - before == expected


def test_the_order_of_a_gpus_threads_does_not_matter(emulated: ModuleType) -> None:
    results = []
    for order in ("forward", "reverse"):
        emulated.set_order(order)
        param, grad = randn(2, 3001, dtype=torch.float32), randn(2, 3001, dtype=torch.float32)
        sgd_step_(param, grad, lr=LR, max_norm=0.5, zero_grad=True)
        results.append(param)
    emulated.set_order("forward")
    assert torch.equal(*results)


def test_a_row_of_more_pieces_than_blocks(emulated: ModuleType) -> None:
    """Of 512 elements of float64, for 1024 blocks."""
    size = 1024 * 512 + 700
    param, grad = randn(size), randn(size, seed=1)
    expected = reference.sgd_step(param, grad, None, None, None, None, LR, max_norm=0.5)[0]
    sgd_step_(param, grad, lr=LR, max_norm=0.5)
    torch.testing.assert_close(param, expected, rtol=1e-12, atol=1e-12)


# ---- CPUs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_every_cpu_capability(capability: str) -> None:
    chosen = (
        "(torch or accuracy or problem or row or endpoints or anywhere) and not capability "
        "and not emulated"
    )
    run_tests_with(capability, __file__, chosen)


def test_the_capability_asked_for_is_used() -> None:
    assert fedkern.build_info()["cpu_capability"] == expected_capability()
