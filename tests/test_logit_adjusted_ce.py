"""fedkern.logit_adjusted_ce against cross_entropy of the sum; its rules; transforms; bad input."""

import itertools
from typing import Any

import pytest
import torch
from accuracy import DTYPES, assert_as_accurate
from cpu_capabilities import CAPABILITIES, run_tests_with
from device_calls import DeviceCalls
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_problems import (
    Arguments,
    classes_of,
    generator,
    make_counts,
    make_logits,
    make_target,
    make_weight,
    value_and_gradient,
)
from torch import Tensor
from torch.func import grad, jvp, vmap
from torch.nn import functional as F

import fedkern

# [C]; one of everything; less than a vector; a vector, and one more; rows for two blocks of work;
# long rows: of a tile of several, of one of its own, with tails; positions; positions and
# channels-last; more positions than a tile of 16.
SHAPES = [
    (7,),
    (1, 1),
    (5, 3),
    (6, 16),
    (6, 17),
    (3300, 10),
    (5, 1000),
    (3, 5003),
    (2, 5, 3),
    (2, 6, 4, 5),
    (2, 9, 21),
]
# Longer than what a CUDA block holds, and than what several share: one of 512 threads, of 256.
LONG_SHAPES = [(3, 32000), (1, 32000)]


def make_adjustment(num_classes: int, seed: int = 5) -> Tensor:
    """Of a client with few samples of some classes, none of them missing."""
    return make_counts(num_classes, seed).double().log() - 3


def cross_entropy_of_the_sum(
    input: Tensor, target: Tensor, logit_adjustment: Tensor, **arguments: Any
) -> Tensor:
    """What is wanted, in input's dtype."""
    positions = [1] * (input.dim() - 2)
    b = logit_adjustment.to(input.dtype).reshape(-1, *positions)
    return F.cross_entropy(input + b, target, **arguments)


def every_argument(num_classes: int) -> list[Arguments]:
    return [
        {
            "weight": weight,
            "ignore_index": ignore_index,
            "reduction": reduction,
            "label_smoothing": smoothing,
        }
        for weight, ignore_index, reduction, smoothing in itertools.product(
            [None, make_weight(num_classes)], [-100, 0], ["mean", "sum", "none"], [0.0, 0.1]
        )
    ]


def to(arguments: Arguments, *args: Any) -> Arguments:
    return {k: v.to(*args) if isinstance(v, Tensor) else v for k, v in arguments.items()}


# ---- against cross entropy ----------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_float64_equals_cross_entropy_for_every_argument(
    shape: tuple[int, ...], device: str
) -> None:
    logits, target = make_logits(shape).to(device), make_target(shape).to(device)
    b = make_adjustment(classes_of(shape)).to(device)
    for arguments in every_argument(classes_of(shape)):
        arguments = {"logit_adjustment": b, **to(arguments, device)}
        actual = value_and_gradient(fedkern.logit_adjusted_ce, logits, target, arguments)
        expected = value_and_gradient(cross_entropy_of_the_sum, logits, target, arguments)
        for a, e in zip(actual, expected, strict=True):
            # A mean over nothing is nan, and its gradient here 0.
            e = e.nan_to_num(0.0) if a.shape == shape else e
            torch.testing.assert_close(a, e, equal_nan=True, msg=str(arguments))


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@pytest.mark.parametrize("shape", SHAPES + LONG_SHAPES, ids=str)
def test_accuracy_is_that_of_the_plain_formula(
    shape: tuple[int, ...], dtype: torch.dtype, device: str
) -> None:
    num_classes = classes_of(shape)
    b = make_adjustment(num_classes).to(device, dtype)
    # The largest of a few rounding errors is luck: at least 64 rows are judged together.
    rounds = min(8, -(-64 * num_classes // torch.Size(shape).numel()))
    for smoothing, weighted, reduction in itertools.product(
        [0.0, 0.1], [False, True], ["mean", "none"]
    ):
        weight = make_weight(num_classes).to(device, dtype) if weighted else None
        arguments: Arguments = {
            "logit_adjustment": b,
            "weight": weight,
            "label_smoothing": smoothing,
            "reduction": reduction,
        }
        results: list[list[tuple[Tensor, Tensor]]] = [[], [], []]
        for seed in range(rounds):
            logits = make_logits(shape, seed=seed).to(device, dtype)
            target = make_target(shape, seed=seed + 1000).to(device)
            for found, function, kind in zip(
                results,
                (fedkern.logit_adjusted_ce, cross_entropy_of_the_sum, cross_entropy_of_the_sum),
                (dtype, dtype, torch.float64),
                strict=True,
            ):
                of_kind = to(arguments, kind)
                found.append(value_and_gradient(function, logits.to(kind), target, of_kind))
        for i, name in enumerate(("loss", "gradient")):
            kernel, naive, truth = (torch.stack([r[i] for r in found]) for found in results)
            assert kernel.dtype == dtype
            assert_as_accurate(kernel, naive, truth, f"{name} {arguments}")


@pytest.mark.parametrize("dtype", DTYPES[2:], ids=str)
@pytest.mark.parametrize("shape", [(6, 17), (5, 1000), (3, 32000), (2, 9, 21)], ids=str)
def test_half_types_are_adjusted_in_float32(
    shape: tuple[int, ...], dtype: torch.dtype, device: str
) -> None:
    """An adjustment of 2 ** 13 and little, of which the little alone counts."""
    logits, target = make_logits(shape).to(device, dtype), make_target(shape).to(device)
    b = (make_adjustment(classes_of(shape)) + 2.0**13).to(device, torch.float32)
    arguments: Arguments = {"logit_adjustment": b, "reduction": "none"}
    actual = value_and_gradient(fedkern.logit_adjusted_ce, logits, target, arguments)
    expected = value_and_gradient(cross_entropy_of_the_sum, logits.float(), target, arguments)
    for a, e in zip(actual, expected, strict=True):
        ulp = torch.finfo(dtype).eps * float(e.abs().max())
        torch.testing.assert_close(a.float(), e, rtol=0, atol=2 * ulp)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_zeros_change_no_bit(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> None:
    """With and without an adjustment the same is computed, wherever the logits are read."""
    num_classes = classes_of(shape)
    logits, target = make_logits(shape).to(device, dtype), make_target(shape).to(device)
    zeros, ones = torch.zeros(num_classes, device=device), torch.ones(num_classes, device=device)
    actual = value_and_gradient(
        fedkern.logit_adjusted_ce, logits, target, {"logit_adjustment": zeros}
    )
    plain = value_and_gradient(fedkern.calibrated_ce, logits, target, {"class_counts": ones})
    assert all(torch.equal(a, p) for a, p in zip(actual, plain, strict=True))


def test_any_strides_give_what_contiguous_logits_give(device: str) -> None:
    for dtype in DTYPES[:3]:
        base = make_logits((4, 6, 8, 10)).to(device, dtype)
        long = make_logits((6, 1300)).to(device, dtype)
        views = {
            "channels last": base.contiguous(memory_format=torch.channels_last),
            "out of order": base.transpose(2, 3),
            "every other position": base[:, :, ::2, ::3],
            "every other class": base[:, ::2],
            "transposed matrix": base[0, 0].t(),
            "long rows, every other class": long[:, ::2],
            "long rows, off a boundary": long[:, 1:-2],
        }
        for name, logits in views.items():
            target = make_target(tuple(logits.shape)).to(device)
            arguments: Arguments = {
                "logit_adjustment": make_adjustment(classes_of(logits.shape)).to(device)
            }
            results = [
                value_and_gradient(fedkern.logit_adjusted_ce, z, target, arguments)
                for z in (logits, logits.contiguous())
            ]
            for a, e in zip(*results, strict=True):
                ulps = 32 if dtype.itemsize >= 4 else 4
                atol = ulps * torch.finfo(dtype).eps * float(e.abs().max())
                torch.testing.assert_close(a, e, rtol=0, atol=atol, msg=name)


@pytest.mark.parametrize("dtype", DTYPES[1:3], ids=str)
def test_an_adjustment_of_any_dtype_and_strides(dtype: torch.dtype, device: str) -> None:
    for num_classes in (5, 300, 1300):
        shape = (40, num_classes)  # more than a block's work
        logits, target = make_logits(shape).to(device, dtype), make_target(shape).to(device)
        b = torch.randint(-8, 9, (num_classes,), generator=generator(5)).to(device, torch.float32)
        expected = fedkern.logit_adjusted_ce(logits, target, b)
        others = {
            "double": b.double(),
            "bfloat16": b.bfloat16(),
            "float16": b.half(),
            "off a boundary": torch.cat([b[:1], b])[1:],
            "every other": b.repeat_interleave(2)[::2],
        }
        for name, other in others.items():
            actual = fedkern.logit_adjusted_ce(logits, target, other)
            assert torch.equal(actual, expected), f"{name}, {num_classes} classes"


# ---- what the definition implies ----------------------------------------------------------------


def test_worked_by_hand() -> None:
    """e^z = (3, 1) and counts (1, 5): p is (3, 5) / 8, and (1, 5) / 6 for equal logits."""
    logits = torch.tensor([[3.0, 1.0], [1.0, 1.0]], dtype=torch.float64).log()
    target, counts = torch.tensor([1, 0]), torch.tensor([1, 5])
    arguments: Arguments = {"logit_adjustment": counts.log(), "reduction": "sum"}
    upstream = torch.randn((), dtype=torch.float64, generator=generator(4))
    loss, gradient = value_and_gradient(fedkern.logit_adjusted_ce, logits, target, arguments)
    torch.testing.assert_close(loss, -torch.tensor(5 / 8 / 6, dtype=torch.float64).log())
    expected = torch.tensor([[3 / 8, -3 / 8], [-5 / 6, 5 / 6]], dtype=torch.float64)
    torch.testing.assert_close(gradient / upstream, expected)


@settings(deadline=None)
@given(
    st.integers(1, 20),
    st.integers(1, 600),
    st.integers(0, 2**32),
    st.sampled_from([-1e4, -1.0, 0.5, 1e4]),
)
def test_a_constant_added_to_all_classes_changes_nothing(
    rows: int, num_classes: int, seed: int, constant: float
) -> None:
    logits = make_logits((rows, num_classes), seed=seed)
    target = torch.randint(num_classes, (rows,), generator=generator(seed))
    b = make_adjustment(num_classes, seed)
    plain, moved = (
        value_and_gradient(fedkern.logit_adjusted_ce, logits, target, {"logit_adjustment": x})
        for x in (b, b + constant)
    )
    for p, m in zip(plain, moved, strict=True):
        torch.testing.assert_close(p, m, rtol=1e-9, atol=1e-9)


# ---- absent classes, nan and infinity -----------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("num_classes", [37, 1000, 5003])
def test_absent_classes_might_as_well_not_exist(
    num_classes: int, dtype: torch.dtype, device: str
) -> None:
    absent = torch.arange(num_classes) % 5 == 3
    place = (~absent).cumsum(0) - 1
    target = make_target((20, num_classes))
    target = torch.where(absent[target], target - 1, target)
    counts = torch.where(absent, 0, make_counts(num_classes))
    logits = make_logits((20, num_classes)).to(device, dtype)
    for b in (counts.log(), -0.5 * counts**-0.25):
        assert bool((b == -torch.inf).equal(absent))
        actual = value_and_gradient(
            fedkern.logit_adjusted_ce,
            logits,
            target.to(device),
            {"logit_adjustment": b.to(device), "reduction": "none"},
        )
        narrow = value_and_gradient(
            fedkern.logit_adjusted_ce,
            logits[:, ~absent],
            place[target].to(device),
            {"logit_adjustment": b[~absent].to(device), "reduction": "none"},
        )
        torch.testing.assert_close(actual[0], narrow[0])
        torch.testing.assert_close(actual[1][:, ~absent], narrow[1])
        assert not actual[1][:, absent].any()


@pytest.mark.parametrize("bad", [-torch.inf, torch.inf, torch.nan])
@pytest.mark.parametrize("shape", [(4, 5), (9, 1000), (3, 5003), (2, 5, 20)], ids=str)
def test_bad_entries_do_what_they_do_in_cross_entropy(
    shape: tuple[int, ...], bad: float, device: str
) -> None:
    """At a class that is a label, too; with label smoothing every class is one."""
    logits, target = make_logits(shape).float().to(device), make_target(shape).to(device)
    b = make_adjustment(classes_of(shape)).float().to(device)
    b[[0, 3]] = bad
    target[1] = 0
    for smoothing in (0.0, 0.1):
        arguments: Arguments = {
            "logit_adjustment": b,
            "reduction": "none",
            "label_smoothing": smoothing,
        }
        actual = value_and_gradient(fedkern.logit_adjusted_ce, logits, target, arguments)
        expected = value_and_gradient(cross_entropy_of_the_sum, logits, target, arguments)
        for a, e in zip(actual, expected, strict=True):
            torch.testing.assert_close(a, e, equal_nan=True, rtol=1e-4, atol=1e-5)


def test_ignored_rows_stay_out_of_it(device: str) -> None:
    for shape in ((6, 5), (6, 1000), (6, 5003), (2, 5, 20)):
        for dtype in DTYPES[1:3]:
            logits = make_logits(shape).to(device, dtype)
            target = make_target(shape).to(device)
            target[1] = -100
            logits[1] = torch.inf
            b = make_adjustment(classes_of(shape)).to(device)
            b[2] = -torch.inf
            target[target == 2] = 0
            loss, gradient = value_and_gradient(
                fedkern.logit_adjusted_ce, logits, target, {"logit_adjustment": b}
            )
            assert bool(loss.isfinite())
            assert bool(gradient.isfinite().all())
            assert not gradient[1].any()


# ---- derivatives and transforms -----------------------------------------------------------------


def test_derivatives_up_to_the_third() -> None:
    for shape in ((5,), (6, 5), (2, 5, 3, 2)):
        target, b = make_target(shape), make_adjustment(5)
        absent = b.clone()
        absent[4] = -torch.inf
        target[target == 4] = 0
        for arguments in every_argument(5):
            smoothed = arguments["label_smoothing"] > 0
            arguments = {**arguments, "logit_adjustment": b if smoothed else absent}
            results = []
            for loss_function in (fedkern.logit_adjusted_ce, cross_entropy_of_the_sum):
                logits = make_logits(shape).requires_grad_()
                loss = loss_function(logits, target, **arguments)
                random = generator(4)
                upstream = torch.randn(loss.shape, dtype=torch.float64, generator=random)
                (first,) = torch.autograd.grad(loss, logits, upstream, create_graph=True)
                v = torch.randn(shape, dtype=torch.float64, generator=random)
                (second,) = torch.autograd.grad(first, logits, v, create_graph=True)
                (third,) = torch.autograd.grad(second.square().sum(), logits)
                results.append((first, second, third))
            torch.testing.assert_close(*results)


def test_gradcheck_and_gradgradcheck(device: str) -> None:
    b = make_adjustment(4).to(device)
    for shape, reduction in itertools.product([(4,), (3, 4), (2, 4, 3)], ["none", "mean", "sum"]):
        logits, target = make_logits(shape).to(device), make_target(shape).to(device)

        def loss(z: Tensor, y: Tensor = target, reduction: Any = reduction) -> Tensor:
            return fedkern.logit_adjusted_ce(
                z, y, b, make_weight(4).to(device), reduction=reduction, label_smoothing=0.1
            )

        assert torch.autograd.gradcheck(loss, (logits.requires_grad_(),))
        assert torch.autograd.gradgradcheck(loss, (logits.requires_grad_(),))


CLIENTS, BATCH, CLASSES = 4, 6, 5


@pytest.mark.parametrize(
    "in_dims", [(0, 0, 0), (0, None, 0), (0, 0, None), (None, None, 0), (1, 0, 1)], ids=str
)
def test_a_stack_of_clients_is_one_call_each_way(
    in_dims: tuple[int | None, ...], device: str
) -> None:
    logits = make_logits((CLIENTS, BATCH, CLASSES))
    target = torch.randint(CLASSES, (CLIENTS, BATCH), generator=generator(1))
    b = torch.stack([make_adjustment(CLASSES, seed) for seed in range(CLIENTS)])
    stacks = tuple(
        (s[0] if d is None else s.movedim(0, d)).to(device)
        for s, d in zip((logits, target, b), in_dims, strict=True)
    )
    with DeviceCalls() as calls:
        actual = vmap(grad(fedkern.logit_adjusted_ce), in_dims)(*stacks)
    assert calls.ours() == {"calibrated_ce_forward": 1, "calibrated_ce_backward": 1}
    for k in range(CLIENTS):
        own = [s if d is None else s.select(d, k) for s, d in zip(stacks, in_dims, strict=True)]
        torch.testing.assert_close(actual[k], grad(cross_entropy_of_the_sum)(*own))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_each_client_of_a_stack_has_its_own_adjustment(dtype: torch.dtype, device: str) -> None:
    """Rows, and adjustments, that begin anywhere in memory."""
    for rows, num_classes in ((30, 703), (9, 2003), (2, 9001)):
        logits = make_logits((3, rows, num_classes)).to(device, dtype)
        target = torch.randint(num_classes, (3, rows), generator=generator(1)).to(device)
        b = torch.stack([make_adjustment(num_classes, seed) for seed in range(3)]).to(device)
        loss_and_gradient = torch.func.grad_and_value(fedkern.logit_adjusted_ce)
        together = vmap(loss_and_gradient)(logits, target, b)
        for k in range(3):
            for actual, alone in zip(
                together, loss_and_gradient(logits[k], target[k], b[k]), strict=True
            ):
                torch.testing.assert_close(actual[k], alone)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiles_without_a_graph_break(backend: str) -> None:
    def step(z: Tensor, y: Tensor, b: Tensor) -> Tensor:
        return fedkern.logit_adjusted_ce(z * 1.5, y, b, label_smoothing=0.1).square()

    torch.compiler.reset()
    compiled = torch.compile(step, fullgraph=True, backend=backend, dynamic=True)
    for shape in ((6, 5), (9, 4), (64, 10)):
        logits, target = make_logits(shape).requires_grad_(), make_target(shape)
        b = make_adjustment(shape[1])
        expected = torch.autograd.grad(step(logits, target, b), logits)
        actual = torch.autograd.grad(compiled(logits, target, b), logits)
        torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_computes_in_float32(dtype: torch.dtype, device: str) -> None:
    logits, target = make_logits((6, 5)).to(device, dtype), make_target((6, 5)).to(device)
    b = make_adjustment(5).to(device)
    expected = fedkern.logit_adjusted_ce(logits.float(), target, b)
    with torch.autocast(device, dtype=dtype):
        actual = fedkern.logit_adjusted_ce(logits, target, b)
    assert actual.dtype == torch.float32
    assert torch.equal(actual, expected)


def test_an_adjustment_has_no_derivative() -> None:
    logits, target, b = make_logits((3, 5)), make_target((3, 5)), make_adjustment(5)
    with pytest.raises(ValueError, match="logit_adjustment must not require grad"):
        fedkern.logit_adjusted_ce(logits, target, b.clone().requires_grad_())
    with pytest.raises(ValueError, match="logit_adjustment must not require grad"):
        grad(lambda b: fedkern.logit_adjusted_ce(logits, target, b))(b)
    with pytest.raises(NotImplementedError, match="forward-mode"):
        jvp(lambda b: fedkern.logit_adjusted_ce(logits, target, b), (b,), (b,))


# ---- memory, threads and CPU capabilities -------------------------------------------------------


def test_no_memory_beside_the_gradient() -> None:
    """The sum of logits and adjustment is nowhere."""
    for shape in ((200, 1000), (2, 100, 1000)):
        for dtype in (torch.float32, torch.bfloat16):
            logits, target = make_logits(shape).to(dtype).requires_grad_(), make_target(shape)
            b = make_adjustment(shape[1])
            with torch.autograd.profiler.profile(profile_memory=True) as profile:
                fedkern.logit_adjusted_ce(logits, target, b).backward()
            allocated = sum(max(0, e.self_cpu_memory_usage) for e in profile.function_events)
            assert logits.nbytes <= allocated <= logits.nbytes + 16 * (target.numel() + shape[1])


@pytest.mark.parametrize("shape", [(40000, 10), (300, 1000), (4, 19, 64, 64)], ids=str)
def test_same_bits_for_any_number_of_threads(shape: tuple[int, ...]) -> None:
    for dtype in DTYPES[1:3]:
        logits, target = make_logits(shape).to(dtype), make_target(shape)
        arguments: Arguments = {"logit_adjustment": make_adjustment(shape[1])}
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(value_and_gradient(fedkern.logit_adjusted_ce, logits, target, arguments))
        for other in results[1:]:
            assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_every_cpu_capability(capability: str) -> None:
    """The kernels for each vector width this machine has, in a process that is made to use them."""
    chosen = "(accuracy or every_argument or zeros or strides or absent or bad_entries or ignored)"
    run_tests_with(capability, __file__, f"{chosen} and not emulated")


# ---- bad input ----------------------------------------------------------------------------------

LOGITS, TARGET, ZEROS = torch.zeros(4, 10), torch.zeros(4, dtype=torch.long), torch.zeros(10)


@pytest.mark.parametrize(
    ("error", "message", "arguments"),
    [
        (
            ValueError,
            r"logit_adjustment must have one entry per class, \[10\], got shape \[9\]",
            {"logit_adjustment": torch.zeros(9)},
        ),
        (ValueError, r"logit_adjustment .* got shape \[\]", {"logit_adjustment": torch.zeros(())}),
        (
            ValueError,
            r"logit_adjustment .* got shape \[4, 10\]",
            {"logit_adjustment": torch.zeros(4, 10)},
        ),
        (
            TypeError,
            "logit_adjustment must be floating, got Long",
            {"logit_adjustment": ZEROS.long()},
        ),
        (
            TypeError,
            "logit_adjustment must be floating, got Complex",
            {"logit_adjustment": ZEROS.cfloat()},
        ),
        (
            ValueError,
            "logit_adjustment must be on input's device, cpu, got meta",
            {"logit_adjustment": ZEROS.to("meta")},
        ),
        (TypeError, "must be Tensor, not float", {"logit_adjustment": 1.0}),
        (TypeError, "must be Tensor, not NoneType", {"logit_adjustment": None}),
        (ValueError, r"input must have shape .* got \[\]", {"input": torch.tensor(1.0)}),
        (TypeError, "input must be float32.*got Long", {"input": LOGITS.long()}),
        (ValueError, "at least one class", {"input": LOGITS[:, :0], "logit_adjustment": ZEROS[:0]}),
        (TypeError, "class probabilities are not supported", {"target": torch.zeros(4, 10)}),
        (IndexError, r"\[0, 10\), got 12 at position 0", {"target": TARGET + 12}),
        (ValueError, r"weight must have one entry .* got shape \[9\]", {"weight": torch.ones(9)}),
        (ValueError, "reduction must be 'mean', 'sum' or 'none', got 'avg'", {"reduction": "avg"}),
        (ValueError, r"label_smoothing must be in \[0, 1\], got 1.5", {"label_smoothing": 1.5}),
    ],
)
def test_bad_input(error: type[Exception], message: str, arguments: Arguments) -> None:
    plain = {"input": LOGITS, "target": TARGET, "logit_adjustment": ZEROS}
    with pytest.raises(error, match=message):
        fedkern.logit_adjusted_ce(**{**plain, **arguments})
