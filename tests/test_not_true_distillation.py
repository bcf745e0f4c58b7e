"""fedkern.not_true_distillation against its slow twin; its rules; torch's machinery; bad input."""

import itertools
import subprocess
import sys
from types import ModuleType
from typing import Any

import loss_problems
import pytest
import torch
from accuracy import DTYPES, assert_as_accurate
from cpu_capabilities import CAPABILITIES, expected_capability, run_tests_with
from device_calls import DeviceCalls
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_problems import (
    Arguments,
    classes_of,
    generator,
    make_logits,
    make_target,
    three_derivatives,
)
from torch import Tensor
from torch.func import grad, jacrev, jvp, vmap

import fedkern
from fedkern import reference

# [C]; no other class, one, two; a vector, and one more; rows for two blocks of work; what one lane,
# a warp and a block hold; rows of several parts; positions, few and many.
SHAPES = [
    (7,),
    (3, 1),
    (4, 2),
    (5, 3),
    (6, 16),
    (6, 17),
    (3300, 10),
    (9, 100),
    (5, 1000),
    (3, 5000),
    (2, 16385),
    (2, 5, 3),
    (2, 40, 21),
]
BIG = 2e4  # logits: more are not emulated


def make_teacher(shape: tuple[int, ...], seed: int = 5) -> Tensor:
    """Near the student that make_logits gives for the same seed less 5: a round's distance."""
    return make_logits(shape, seed=seed - 5) + make_logits(shape, scale=1.0, seed=seed + 100)


def with_teacher(module: Any, teacher: Tensor) -> Any:
    """A module's loss as a function of student and target."""
    return lambda student, target, **arguments: module.not_true_distillation(
        student, teacher, target, **arguments
    )


def value_and_gradient(
    module: Any, student: Tensor, teacher: Tensor, target: Tensor, arguments: Arguments
) -> tuple[Tensor, Tensor]:
    """The loss and its gradient for a random upstream gradient, the same for each module."""
    loss_function = with_teacher(module, teacher)
    return loss_problems.value_and_gradient(loss_function, student, target, arguments)


def problem(
    shape: tuple[int, ...], device: str = "cpu", dtype: torch.dtype = torch.float64, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        make_logits(shape, seed=seed).to(device, dtype),
        make_teacher(shape, seed=seed + 5).to(device, dtype),
        make_target(shape, seed=seed + 1).to(device),
    )


# ---- against the twin ---------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_float64_equals_the_reference(shape: tuple[int, ...], device: str) -> None:
    tensors = problem(shape, device)
    for tau, ignore_index, reduction in itertools.product(
        [0.3, 1.0, 3.0], [-100, 0], ["mean", "sum", "none"]
    ):
        arguments = {"tau": tau, "ignore_index": ignore_index, "reduction": reduction}
        actual = value_and_gradient(fedkern, *tensors, arguments)
        expected = value_and_gradient(reference, *tensors, arguments)
        # A mean over nothing is nan; the kernel then gives no gradient to rows that do not count.
        nothing_counts = bool(expected[0].isnan().all())
        torch.testing.assert_close(actual[0], expected[0], equal_nan=True)
        torch.testing.assert_close(
            actual[1], torch.zeros_like(expected[1]) if nothing_counts else expected[1]
        )


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_accuracy_is_that_of_the_plain_formula(
    shape: tuple[int, ...], dtype: torch.dtype, device: str
) -> None:
    # The largest of a few rounding errors is luck: at least 64 rows are judged together.
    rounds = -(-64 * classes_of(shape) // torch.Size(shape).numel())
    if rounds * torch.Size(shape).numel() > BIG and device == "cpu":
        rounds = min(rounds, 8)
    for tau, reduction in itertools.product([1.0, 3.0], ["mean", "none"]):
        arguments: Arguments = {"tau": tau, "reduction": reduction}
        kernels, naives, truths = [], [], []
        for seed in range(rounds):
            student, teacher, target = problem(shape, device, dtype, 10 * seed)
            kernels.append(value_and_gradient(fedkern, student, teacher, target, arguments))
            naives.append(value_and_gradient(reference, student, teacher, target, arguments))
            truths.append(in_double(student, teacher, target, arguments))
        for i, name in enumerate(("loss", "gradient")):
            kernel, naive, truth = (
                torch.stack([r[i] for r in x]) for x in (kernels, naives, truths)
            )
            assert kernel.dtype == dtype
            assert_as_accurate(kernel, naive, truth, f"{name} {arguments}")


def in_double(
    student: Tensor, teacher: Tensor, target: Tensor, arguments: Arguments
) -> tuple[Tensor, Tensor]:
    """As value_and_gradient in float64, but all that goes in is of student's dtype."""
    z = student.double().requires_grad_()
    loss = reference.not_true_distillation(z, teacher.double(), target, **arguments)
    upstream = torch.randn(loss.shape, dtype=torch.float64, generator=generator(4))
    loss.backward(upstream.to(student.dtype).double())
    assert z.grad is not None
    return loss.detach(), z.grad


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_any_strides_give_what_contiguous_logits_give(dtype: torch.dtype, device: str) -> None:
    """Of each side alone, and of both."""
    base = make_logits((4, 6, 8, 10)).to(device, dtype)
    other = make_teacher((4, 6, 8, 10)).to(device, dtype)
    views = {
        "channels last": lambda t: t.contiguous(memory_format=torch.channels_last),
        "out of order": lambda t: t.transpose(2, 3),
        "classes last": lambda t: t.permute(0, 3, 1, 2),
        "every other position": lambda t: t[:, :, ::2, ::3],
        "every other class": lambda t: t[:, ::2],
        "expanded": lambda t: t[:1].expand(3, -1, -1, -1),
        "one class": lambda t: t[:, :1],
        "transposed matrix": lambda t: t[0, 0].t(),
        "column": lambda t: t[0, 0, :, 3],
    }
    for name, view in views.items():
        z, g = view(base), view(other)
        target = make_target(tuple(z.shape)).to(device)
        plain = value_and_gradient(fedkern, z.contiguous(), g.contiguous(), target, {})
        for student, teacher in ((z, g), (z.contiguous(), g), (z, g.contiguous())):
            strided = value_and_gradient(fedkern, student, teacher, target, {})
            for a, b in zip(strided, plain, strict=True):
                # Another layout may add up in another order: a few ulp of the largest.
                ulps = 32 if dtype.itemsize >= 4 else 4
                atol = ulps * torch.finfo(dtype).eps * float(b.abs().max())
                torch.testing.assert_close(a, b, rtol=0, atol=atol, msg=name)


def test_long_rows_where_they_lie_and_in_scratch() -> None:
    """Rows of float are read in place, a label at either end; strided ones are copied."""
    num_classes = 1003
    for label, compute_gradient in itertools.product((0, 1, 500, 1001, 1002), (True, False)):
        student = make_logits((2, num_classes)).float()
        teacher = make_teacher((2, num_classes)).float()
        target = torch.full((2,), label)
        spread = [t.repeat_interleave(2, 1)[:, ::2] for t in (student, teacher)]
        found = [
            torch.ops.fedkern.not_true_distillation_forward(
                *pair, target, 1.0, -100, "none", False, compute_gradient
            )
            for pair in ((student, teacher), spread)
        ]
        for a, b in zip(*found, strict=True):
            torch.testing.assert_close(a, b)


# ---- what the definition implies ----------------------------------------------------------------


@st.composite
def problems(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor]:
    rows, num_classes = draw(st.integers(1, 20)), draw(st.integers(1, 40))
    seed, scale = draw(st.integers(0, 2**32)), draw(st.sampled_from([0.0, 1.0, 30.0]))
    student = make_logits((rows, num_classes), scale, seed)
    teacher = make_logits((rows, num_classes), scale, seed + 1)
    return student, teacher, torch.randint(num_classes, (rows,), generator=generator(seed))


@settings(deadline=None)
@given(problems(), st.sampled_from([-1e4, 1.0, 1e4]), st.booleans())
def test_a_constant_added_to_the_other_logits_changes_nothing(
    drawn: tuple[Tensor, Tensor, Tensor], offset: float, to_teacher: bool
) -> None:
    student, teacher, target = drawn
    plain = value_and_gradient(fedkern, student, teacher, target, {})
    not_true = torch.arange(student.shape[1]) != target[:, None]
    moved = [student, teacher]
    moved[to_teacher] = moved[to_teacher] + offset * not_true
    found = value_and_gradient(fedkern, *moved, target, {})
    for a, b in zip(found, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-7)


@settings(deadline=None)
@given(problems(), st.sampled_from([-torch.inf, 1e30, torch.inf, torch.nan]), st.integers(1, 3))
def test_the_true_class_does_not_matter(
    drawn: tuple[Tensor, Tensor, Tensor], value: float, which: int
) -> None:
    student, teacher, target = drawn
    plain = value_and_gradient(fedkern, student, teacher, target, {})
    is_true = torch.arange(student.shape[1]) == target[:, None]
    changed = [
        torch.where(is_true, value, t) if which >> i & 1 else t
        for i, t in enumerate((student, teacher))
    ]
    found = value_and_gradient(fedkern, *changed, target, {})
    assert all(torch.equal(a, b) for a, b in zip(found, plain, strict=True))
    assert not found[1][is_true].any()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equal_logits_give_exactly_nothing(
    shape: tuple[int, ...], dtype: torch.dtype, device: str
) -> None:
    student, _, target = problem(shape, device, dtype)
    for tau in (1.0, 3.0):
        loss, gradient = value_and_gradient(fedkern, student, student, target, {"tau": tau})
        assert loss == 0
        assert not gradient.any()


@settings(deadline=None)
@given(problems())
def test_gradient_of_a_row_sums_to_zero(drawn: tuple[Tensor, Tensor, Tensor]) -> None:
    _, gradient = value_and_gradient(fedkern, *drawn, {"reduction": "sum", "tau": 2.0})
    size = 1 + gradient.abs().sum(1)
    assert bool((gradient.sum(1).abs() <= 32 * torch.finfo(torch.float64).eps * size).all())


@settings(deadline=None)
@given(problems())
def test_ignored_rows_might_as_well_be_absent(drawn: tuple[Tensor, Tensor, Tensor]) -> None:
    student, teacher, target = drawn
    keep = torch.arange(len(target)) % 3 != 1
    ignored = torch.where(keep, target, -7)
    poisoned = [torch.where(keep[:, None], t, torch.nan) for t in (student, teacher)]
    loss, gradient = value_and_gradient(fedkern, *poisoned, ignored, {"ignore_index": -7})
    fewer = value_and_gradient(fedkern, student[keep], teacher[keep], target[keep], {})
    torch.testing.assert_close(loss, fewer[0])
    torch.testing.assert_close(gradient[keep], fewer[1])
    assert not gradient[~keep].any()


def test_worked_by_hand(device: str) -> None:
    """Others (1/4, 3/4) for the teacher, (1/2, 1/2) for the student, at tau 2."""
    teacher = 2 * torch.tensor([[1.0, 100.0, 3.0]], dtype=torch.float64, device=device).log()
    student = torch.tensor([[5.0, -8.0, 5.0]], dtype=torch.float64, device=device)
    target = torch.tensor([1], device=device)
    arguments: Arguments = {"tau": 2.0, "reduction": "sum"}
    loss, gradient = value_and_gradient(fedkern, student, teacher, target, arguments)
    q = torch.tensor([0.25, 0.75], dtype=torch.float64)
    torch.testing.assert_close(loss.cpu(), 4 * (q * (q / 0.5).log()).sum())
    upstream = torch.randn((), dtype=torch.float64, generator=generator(4))
    expected = torch.tensor([[0.5, 0.0, -0.5]], dtype=torch.float64)
    torch.testing.assert_close(gradient.cpu() / upstream, expected)


# ---- infinities, emptiness, extremes ------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_masked_classes(dtype: torch.dtype, device: str) -> None:
    """-inf for the teacher is no class at all, if it is for the student, too; else q is 0."""
    student, teacher, target = problem((5, 37), device, dtype)
    target = target % 30
    narrow = value_and_gradient(fedkern, student[:, :30], teacher[:, :30], target, {})
    student[:, 30:] = -torch.inf
    teacher[:, 30:] = -torch.inf
    actual = value_and_gradient(fedkern, student, teacher, target, {})
    torch.testing.assert_close(actual[0], narrow[0])
    torch.testing.assert_close(actual[1][:, :30], narrow[1])
    assert not actual[1][:, 30:].any()
    student[:, 30:] = 0
    loss, gradient = value_and_gradient(fedkern, student, teacher, target, {"reduction": "none"})
    expected = value_and_gradient(
        reference, student.double(), teacher.double(), target, {"reduction": "none"}
    )
    assert bool(loss.isfinite().all())
    for a, e in zip((loss, gradient), expected, strict=True):
        atol = 8 * torch.finfo(dtype).eps * float(e.abs().max())
        torch.testing.assert_close(a.double(), e, rtol=0, atol=atol)


def test_minus_infinity_of_the_student_alone(device: str) -> None:
    student, teacher, target = problem((3, 5), device)
    student[1, (int(target[1]) + 1) % 5] = -torch.inf
    loss = fedkern.not_true_distillation(student, teacher, target, reduction="none")
    assert loss[1] == torch.inf
    assert bool(loss[[0, 2]].isfinite().all())


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nan_and_infinity_spoil_their_row_only(dtype: torch.dtype, bad: float, device: str) -> None:
    for num_classes, side in itertools.product((37, 600), (0, 1)):
        student, teacher, target = problem((3, num_classes), device, dtype)
        target = target.clamp(1, num_classes - 2)
        for column in (0, num_classes - 1):
            spoiled = [student.clone(), teacher.clone()]
            spoiled[side][1, column] = bad
            arguments: Arguments = {"reduction": "none"}
            loss, gradient = value_and_gradient(fedkern, *spoiled, target, arguments)
            assert loss.isnan().tolist() == [False, True, False]
            assert gradient.isnan().any(1).tolist() == [False, True, False]
            assert gradient[1].isnan().sum() == num_classes - 1
            assert gradient[1, target[1]] == 0


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("shape", [(0, 3), (2, 3, 0)], ids=str)
def test_no_sample(shape: tuple[int, ...], reduction: str, device: str) -> None:
    tensors = problem(shape, device)
    arguments: Arguments = {"reduction": reduction}
    actual = value_and_gradient(fedkern, *tensors, arguments)
    expected = value_and_gradient(reference, *tensors, arguments)
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, equal_nan=True)


def test_everything_ignored(device: str) -> None:
    student, teacher, _ = problem((4, 3), device)
    target = torch.full((4,), -100, device=device)
    for reduction, value in (("mean", torch.nan), ("sum", 0.0)):
        arguments: Arguments = {"reduction": reduction}
        loss, gradient = value_and_gradient(fedkern, student, teacher, target, arguments)
        torch.testing.assert_close(loss.item(), value, equal_nan=True)
        assert not gradient.any()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("tau", [1e-30, 1e-3, 1e3, 1e30])
def test_extreme_temperatures(tau: float, dtype: torch.dtype, device: str) -> None:
    """Cold, the largest logits are all that counts; hot, the loss is a squared distance."""
    student, teacher, target = problem((6, 9), device, dtype)
    arguments: Arguments = {"tau": tau, "reduction": "none"}
    loss, gradient = value_and_gradient(fedkern, student, teacher, target, arguments)
    assert not loss.isnan().any()
    assert not gradient.isnan().any()
    if tau == 1e-3:
        assert bool((gradient.abs().sum(1) <= 4e-3 * 4).all())
    if tau == 1e3 and dtype == torch.float64:
        expected = value_and_gradient(reference, student, teacher, target, arguments)
        torch.testing.assert_close((loss, gradient), expected, rtol=1e-5, atol=1e-9)


# ---- derivatives --------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(4,), (3, 1), (3, 4), (2, 4, 3)], ids=str)
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_gradcheck_and_gradgradcheck(shape: tuple[int, ...], reduction: Any, device: str) -> None:
    student, teacher, target = problem(shape, device)

    def loss(z: Tensor) -> Tensor:
        return fedkern.not_true_distillation(
            z, teacher, target, tau=2.0, ignore_index=1, reduction=reduction
        )

    if reduction == "mean" and bool((target == 1).all()):
        pytest.skip("a mean over nothing is nan")
    student.requires_grad_()
    assert torch.autograd.gradcheck(loss, (student,))
    assert torch.autograd.gradgradcheck(loss, (student,))


@pytest.mark.parametrize("shape", [(5,), (6, 5), (2, 5, 3, 2)], ids=str)
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_derivatives_up_to_the_third(shape: tuple[int, ...], reduction: str) -> None:
    """By the logits and by the upstream gradient."""
    student, teacher, target = problem(shape)
    arguments = {"tau": 2.0, "reduction": reduction}
    results = [
        three_derivatives(with_teacher(module, teacher), student, target, arguments)
        for module in (fedkern, reference)
    ]
    torch.testing.assert_close(*results)


def test_backward_twice_with_a_retained_graph(device: str) -> None:
    """The saved gradient outlives what callers do to the gradients they are handed."""
    student, teacher, target = problem((6, 5), device)
    student.requires_grad_()
    loss = fedkern.not_true_distillation(student, teacher, target)
    (first,) = torch.autograd.grad(loss, student, retain_graph=True)
    expected = first.clone()
    first.mul_(100)
    (second,) = torch.autograd.grad(2 * loss, student)
    torch.testing.assert_close(second, 2 * expected)


def test_the_last_backward_gives_its_gradient_away() -> None:
    for factor in (1, 3):
        student, teacher, target = problem((6, 5))
        loss = factor * fedkern.not_true_distillation(student.requires_grad_(), teacher, target)
        with torch.autograd.profiler.profile() as profile:
            loss.backward()
        assert [event.name for event in profile.function_events if "fedkern" in event.name] == [
            "fedkern::calibrated_ce_backward_"
        ]


def test_a_teacher_that_requires_grad_is_refused() -> None:
    student, teacher, target = problem((3, 5))
    with pytest.raises(ValueError, match="teacher must not require grad: detach it"):
        fedkern.not_true_distillation(student, teacher.requires_grad_(), target)
    with torch.no_grad():
        fedkern.not_true_distillation(student, teacher, target)
    with pytest.raises(ValueError, match="teacher must not require grad"):
        grad(lambda g: fedkern.not_true_distillation(student, g, target))(teacher.detach())


def test_forward_mode_is_refused() -> None:
    student, teacher, target = problem((3, 5))
    for side in (0, 1):
        with pytest.raises(NotImplementedError, match="forward-mode"):
            jvp(
                lambda t, side=side: fedkern.not_true_distillation(
                    *((t, teacher) if side == 0 else (student, t)), target
                ),
                (student,),
                (student,),
            )


# ---- torch's machinery --------------------------------------------------------------------------

FORWARD = {"not_true_distillation_forward": 1}
BOTH = {**FORWARD, "calibrated_ce_backward": 1}


def test_a_stack_of_clients_is_one_call_each_way(device: str) -> None:
    """Students and labels of four clients; one teacher for all, or one each."""
    student, target = make_logits((4, 6, 5)).to(device), make_target((6, 5)).expand(4, 6).to(device)
    teachers = make_teacher((4, 6, 5)).to(device)

    def loss(module: Any) -> Any:
        return lambda z, g, y: module.not_true_distillation(z, g, y, tau=2.0)

    for teacher, dim in ((teachers, 0), (teachers[0], None)):
        with DeviceCalls() as calls:
            gradient = vmap(grad(loss(fedkern)), (0, dim, 0))(student, teacher, target)
        assert calls.ours() == BOTH
        expected = [
            grad(loss(reference))(student[k], teacher if dim is None else teacher[k], target[k])
            for k in range(4)
        ]
        torch.testing.assert_close(gradient, torch.stack(expected))


def test_jacrev_and_its_derivative() -> None:
    student, teacher, target = problem((6, 5))

    def rows(module: Any) -> Any:
        return lambda z: module.not_true_distillation(z, teacher, target, reduction="none")

    torch.testing.assert_close(jacrev(rows(fedkern))(student), jacrev(rows(reference))(student))
    torch.testing.assert_close(
        jacrev(jacrev(rows(fedkern)))(student), jacrev(jacrev(rows(reference)))(student)
    )


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiles_without_a_graph_break(backend: str) -> None:
    def step(z: Tensor, g: Tensor, y: Tensor) -> Tensor:
        loss = fedkern.not_true_distillation(z * 1.5, g, y, tau=3.0, reduction="none")
        return loss.square().mean()

    torch.compiler.reset()
    compiled = torch.compile(step, fullgraph=True, backend=backend, dynamic=True)
    for shape in ((6, 5), (9, 4), (64, 10)):
        student, teacher, target = problem(shape)
        student.requires_grad_()
        step(student, teacher, target).backward()
        expected, student.grad = student.grad, None
        compiled(student, teacher, target).backward()
        torch.testing.assert_close(student.grad, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_computes_in_float32(dtype: torch.dtype, device: str) -> None:
    student, teacher, target = problem((6, 5), device, dtype)
    expected = fedkern.not_true_distillation(student.float(), teacher.float(), target)
    with torch.autocast(device, dtype=dtype):
        for mixed in (teacher, teacher.float()):
            actual = fedkern.not_true_distillation(student, mixed, target)
            assert actual.dtype == torch.float32
            assert torch.equal(actual, expected)


# ---- bad data on a device -----------------------------------------------------------------------


def bad_call(device: str, label: int, rows: int) -> str:
    """Few rows take one launch, many take two."""
    return f"""
import torch, fedkern
logits, target = torch.zeros({rows}, 10), torch.arange({rows}) % 10
target[5] = {label}
logits, target = logits.to({device!r}), target.to({device!r})
fedkern.not_true_distillation(logits, logits, target)
"""


@pytest.mark.parametrize("rows", [64, 2000])
@pytest.mark.parametrize("label", [10, -1])
def test_bad_labels_stop_an_emulated_kernel(label: int, rows: int, emulated: ModuleType) -> None:
    with pytest.raises(RuntimeError, match="device-side assert"):
        exec(bad_call("cpu", label, rows), {})


@pytest.mark.parametrize("label", [10, -1])
def test_bad_labels_stop_a_gpu(label: int) -> None:
    """In a process of its own, which is of no use for CUDA afterwards."""
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    code = bad_call("cuda", label, 64) + "torch.cuda.synchronize()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode != 0
    assert "device-side assert" in done.stderr


@pytest.mark.parametrize(
    ("shape", "kernels"),
    [
        ((64, 10), ["run_teams"]),
        ((2000, 10), ["prepare", "run_teams"]),
        ((40, 500), ["prepare", "run_teams"]),
        ((2, 16385), ["prepare", "run_teams"]),
    ],
    ids=str,
)
def test_launches(shape: tuple[int, int], kernels: list[str], emulated: ModuleType) -> None:
    fedkern.not_true_distillation(*problem(shape))
    names = [str(launch) for launch in emulated.launches()]
    assert len(names) == len(kernels)
    assert all(kernel in name for kernel, name in zip(kernels, names, strict=True))


# ---- threads and CPU capabilities ---------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(40000, 10), (300, 1000), (4, 19, 64, 64)], ids=str)
def test_same_bits_for_any_number_of_threads(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    tensors = problem(shape, dtype=dtype)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(value_and_gradient(fedkern, *tensors, {}))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_every_cpu_capability(capability: str) -> None:
    """The kernels for each vector width this machine has, in a process that is made to use them."""
    chosen = (
        "(accuracy or reference or strides or masked or infinity or long_rows or exactly or forced)"
        " and not emulated"
    )
    run_tests_with(capability, __file__, chosen)


def test_the_forced_capability_is_in_use() -> None:
    assert fedkern.build_info()["cpu_capability"] == expected_capability()


# ---- bad input ----------------------------------------------------------------------------------

LOGITS, TARGET = torch.zeros(4, 10), torch.zeros(4, dtype=torch.long)


@pytest.mark.parametrize(
    ("error", "message", "arguments"),
    [
        (ValueError, "at least one class", {"input": LOGITS[:, :0], "teacher": LOGITS[:, :0]}),
        (TypeError, "target must hold class indices.*got Bool", {"target": TARGET.bool()}),
        (ValueError, "teacher must be on input's device, cpu, got meta",
         {"teacher": LOGITS.to("meta")}),
        (ValueError, "target must be on input's device, cpu, got meta",
         {"target": TARGET.to("meta")}),
        (IndexError, r"in \[0, 10\), got 12 at position 3",
         {"target": torch.tensor([0, 1, 2, 12])}),
        (IndexError, "got -1 at position 0", {"target": torch.tensor([-1, 1, 2, 3])}),
        (ValueError, "tau must be positive and finite .* got -1", {"tau": -1.0}),
        (ValueError, "tau must be positive and finite .* got inf", {"tau": float("inf")}),
        (ValueError, "tau must be positive and finite .* got nan", {"tau": float("nan")}),
        (ValueError, "reduction must be 'mean', 'sum' or 'none', got 'avg'", {"reduction": "avg"}),
    ],
)  # fmt: skip
def test_bad_input(error: type[Exception], message: str, arguments: Arguments) -> None:
    valid = {"input": LOGITS, "teacher": LOGITS, "target": TARGET}
    with pytest.raises(error, match=message):
        fedkern.not_true_distillation(**{**valid, **arguments})
