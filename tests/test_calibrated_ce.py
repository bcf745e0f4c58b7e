"""fedkern.calibrated_ce against its slow twin and cross_entropy; its rules; bad input."""

import itertools
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from accuracy import DTYPES, assert_as_accurate
from cpu_capabilities import CAPABILITIES, expected_capability, run_tests_with
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_problems import (
    Arguments,
    classes_of,
    every_argument,
    generator,
    make_counts,
    make_logits,
    make_target,
    make_weight,
    value_and_gradient,
)
from torch import Tensor
from torch.nn import functional as F

import fedkern
from fedkern import reference

# [C]; one of everything; less than a vector; a vector, and one more; rows for two blocks of work;
# long rows, with a tail; positions; positions and channels-last; more positions than a tile of 16.
SHAPES = [
    (7,),
    (1, 1),
    (5, 3),
    (6, 16),
    (6, 17),
    (3300, 10),
    (3, 4099),
    (2, 5, 3),
    (2, 6, 4, 5),
    (2, 9, 21),
]

# ---- against the twin ---------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_float64_equals_the_reference_for_every_argument(
    shape: tuple[int, ...], device: str
) -> None:
    logits, target = make_logits(shape).to(device), make_target(shape).to(device)
    for arguments in every_argument(classes_of(shape)):
        arguments = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in arguments.items()}
        actual = value_and_gradient(fedkern.calibrated_ce, logits, target, arguments)
        expected = value_and_gradient(reference.calibrated_ce, logits, target, arguments)
        # A mean over nothing is nan; the kernel then gives no gradient to rows that do not count.
        nothing_counts = bool(expected[0].isnan().all())
        torch.testing.assert_close(actual[0], expected[0], equal_nan=True)
        torch.testing.assert_close(
            actual[1], torch.zeros_like(logits) if nothing_counts else expected[1]
        )


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_accuracy_is_that_of_the_plain_formula(
    shape: tuple[int, ...], dtype: torch.dtype, device: str
) -> None:
    num_classes = classes_of(shape)
    counts = make_counts(num_classes).to(device)
    # The largest of a few rounding errors is luck: at least 64 rows are judged together.
    rounds = -(-64 * num_classes // torch.Size(shape).numel())
    for smoothing, weighted, reduction, calibration in itertools.product(
        [0.0, 0.1], [False, True], ["mean", "none"], ["label", "gradient"]
    ):
        weight = make_weight(num_classes).to(device, dtype) if weighted else None
        arguments: Arguments = {
            "weight": weight,
            "class_counts": counts,
            "label_smoothing": smoothing,
            "reduction": reduction,
            "calibration": calibration,
        }
        kernels, naives, truths = [], [], []
        for seed in range(rounds):
            logits = make_logits(shape, seed=seed).to(device, dtype)
            target = make_target(shape, seed=seed + 1000).to(device)
            kernels.append(value_and_gradient(fedkern.calibrated_ce, logits, target, arguments))
            naives.append(value_and_gradient(reference.calibrated_ce, logits, target, arguments))
            truths.append(value_and_gradient_in_double(logits, target, arguments))
        for i, name in enumerate(("loss", "gradient")):
            kernel, naive, truth = (
                torch.stack([r[i] for r in x]) for x in (kernels, naives, truths)
            )
            assert kernel.dtype == dtype
            assert_as_accurate(kernel, naive, truth, f"{name} {arguments}")


def value_and_gradient_in_double(
    logits: Tensor, target: Tensor, arguments: Arguments
) -> tuple[Tensor, Tensor]:
    """As value_and_gradient in float64, but all that goes in is of logits' dtype."""
    dtype, logits = logits.dtype, logits.double().requires_grad_()
    loss = reference.calibrated_ce(logits, target, **arguments)
    upstream = torch.randn(loss.shape, dtype=torch.float64, generator=generator(4))
    loss.backward(upstream.to(dtype).to(loss))
    assert logits.grad is not None
    return loss.detach(), logits.grad


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_any_strides_give_what_contiguous_logits_give(dtype: torch.dtype, device: str) -> None:
    base = make_logits((4, 6, 8, 10)).to(device, dtype)
    views = {
        "channels last": base.contiguous(memory_format=torch.channels_last),
        "out of order": base.transpose(2, 3),
        "classes last": base.permute(0, 3, 1, 2),
        "every other position": base[:, :, ::2, ::3],
        "every other class": base[:, ::2],
        "every other sample": base[::2],
        "expanded": base[:1].expand(3, -1, -1, -1),
        "one class": base[:, :1],
        "transposed matrix": base[0, 0].t(),
        "column": base[0, 0, :, 3],
    }
    for name, logits in views.items():
        target = make_target(tuple(logits.shape)).to(device)
        arguments: Arguments = {"class_counts": make_counts(classes_of(logits.shape)).to(device)}
        plain = value_and_gradient(fedkern.calibrated_ce, logits.contiguous(), target, arguments)
        before = logits.clone()
        strided = value_and_gradient(fedkern.calibrated_ce, logits, target, arguments)
        assert torch.equal(logits, before), f"{name}: logits overwritten"
        for a, b in zip(strided, plain, strict=True):
            # Another layout may add up in another order: a few ulp of the largest, of the dtype
            # it computes in, times what counts of different size amplify.
            ulps = 32 if dtype.itemsize >= 4 else 4
            atol = ulps * torch.finfo(dtype).eps * float(b.abs().max())
            torch.testing.assert_close(a, b, rtol=0, atol=atol, msg=name)


@pytest.mark.parametrize(
    "dtype",
    [torch.int8, torch.uint8, torch.int16, torch.int32, torch.uint16, torch.uint32, torch.uint64],
    ids=str,
)
def test_labels_of_any_integer_dtype(dtype: torch.dtype) -> None:
    logits, target = make_logits((6, 5)), make_target((6, 5))
    for ignore_index in (-100, 2):
        arguments: Arguments = {"ignore_index": ignore_index, "reduction": "none"}
        expected = value_and_gradient(fedkern.calibrated_ce, logits, target, arguments)
        actual = value_and_gradient(fedkern.calibrated_ce, logits, target.to(dtype), arguments)
        for a, b in zip(actual, expected, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize(
    "dtype", [torch.int32, torch.int64, torch.float16, torch.float32, torch.float64], ids=str
)
def test_counts_of_any_real_dtype(dtype: torch.dtype) -> None:
    logits, target, counts = make_logits((6, 5)), make_target((6, 5)), make_counts(5)
    expected = reference.calibrated_ce(logits, target, class_counts=counts)
    actual = fedkern.calibrated_ce(logits, target, class_counts=counts.to(dtype))
    torch.testing.assert_close(actual, expected)


# ---- balanced counts are cross entropy ----------------------------------------------------------


@pytest.fixture(scope="module")
def cross_entropy_samples(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """PyTorch's own sample inputs for cross_entropy with class indices: (logits, target, kwargs).

    A process of its own makes them: importing that module changes torch's global settings.
    """
    path = tmp_path_factory.mktemp("samples") / "samples.pt"
    code = f"""
import torch
from torch.testing._internal.common_methods_invocations import op_db
(op,) = [op for op in op_db if op.name == "nn.functional.cross_entropy"]
samples = op.sample_inputs("cpu", torch.float64, requires_grad=False)
kept = [(s.input, *s.args, s.kwargs) for s in samples if not s.args[0].is_floating_point()]
torch.save(kept, {str(path)!r})
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    samples: list[Any] = torch.load(path)
    return samples


@pytest.mark.parametrize("calibration", ["label", "gradient"])
def test_balanced_counts_equal_cross_entropy_on_its_own_samples(
    cross_entropy_samples: list[Any], calibration: str
) -> None:
    assert len(cross_entropy_samples) >= 10
    for logits, target, kwargs in cross_entropy_samples:
        num_classes = logits.shape[0 if logits.dim() == 1 else 1]
        ours = {
            "class_counts": torch.full((num_classes,), 3),
            "calibration": calibration,
            **kwargs,
        }
        actual = value_and_gradient(fedkern.calibrated_ce, logits, target, ours)
        expected = value_and_gradient(F.cross_entropy, logits, target, kwargs)
        for a, b in zip(actual, expected, strict=True):
            torch.testing.assert_close(a, b, equal_nan=True, msg=str(kwargs))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_balanced_labels_equal_cross_entropy(dtype: torch.dtype, device: str) -> None:
    """Without counts the labels' own histogram counts: each class occurs as often here."""
    logits = make_logits((20, 5)).to(device, dtype)
    target = torch.arange(20, device=device) % 5
    actual = value_and_gradient(fedkern.calibrated_ce, logits, target, {})
    expected = value_and_gradient(F.cross_entropy, logits, target, {})
    for a, b in zip(actual, expected, strict=True):
        # Both round to dtype on their way, cross_entropy the logarithms of p, too.
        torch.testing.assert_close(a, b, rtol=0, atol=4 * torch.finfo(dtype).eps)


def test_gradcheck_with_balanced_counts() -> None:
    counts = torch.full((4,), 7)
    for shape, reduction in itertools.product([(4,), (3, 4), (2, 4, 3)], ["none", "mean", "sum"]):
        logits, target = make_logits(shape).requires_grad_(), make_target(shape)
        assert torch.autograd.gradcheck(
            lambda z, target=target, reduction=reduction: fedkern.calibrated_ce(
                z,
                target,
                make_weight(4),
                class_counts=counts,
                reduction=reduction,
                label_smoothing=0.1,
            ),
            (logits,),
        )


# ---- what the definition implies ----------------------------------------------------------------


@st.composite
def problems(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor]:
    rows, num_classes = draw(st.integers(1, 20)), draw(st.integers(1, 40))
    seed = draw(st.integers(0, 2**32))
    logits = make_logits((rows, num_classes), draw(st.sampled_from([0.0, 1.0, 30.0])), seed)
    target = torch.randint(num_classes, (rows,), generator=generator(seed))
    counts = torch.randint(1, 10**6, (num_classes,), generator=generator(seed)).double()
    return logits, target, counts


@settings(deadline=None)
@given(problems())
def test_gradient_of_a_row_sums_to_zero(problem: tuple[Tensor, Tensor, Tensor]) -> None:
    logits, target, counts = problem
    arguments: Arguments = {"class_counts": counts, "reduction": "sum"}
    _, gradient = value_and_gradient(fedkern.calibrated_ce, logits, target, arguments)
    # What cancels are terms of the size of n_j / n_y.
    size = 1 + gradient.abs().sum(1) + counts.max() / counts[target]
    assert bool((gradient.sum(1).abs() <= 32 * torch.finfo(torch.float64).eps * size).all())


@settings(deadline=None)
@given(problems(), st.integers(-30, 30), st.floats(1e-6, 1e12))
def test_only_ratios_of_counts_matter(
    problem: tuple[Tensor, Tensor, Tensor], power: int, factor: float
) -> None:
    logits, target, counts = problem
    plain = value_and_gradient(fedkern.calibrated_ce, logits, target, {"class_counts": counts})
    doubled = value_and_gradient(
        fedkern.calibrated_ce, logits, target, {"class_counts": counts * 2.0**power}
    )
    scaled = value_and_gradient(
        fedkern.calibrated_ce, logits, target, {"class_counts": counts * factor}
    )
    for a, b, c in zip(plain, doubled, scaled, strict=True):
        assert torch.equal(a, b)
        torch.testing.assert_close(a, c)


@settings(deadline=None)
@given(problems(), st.sampled_from([-1e4, -1.0, 1e4]))
def test_an_offset_of_the_logits_changes_nothing(
    problem: tuple[Tensor, Tensor, Tensor], offset: float
) -> None:
    logits, target, counts = problem
    arguments: Arguments = {"class_counts": counts}
    plain = value_and_gradient(fedkern.calibrated_ce, logits, target, arguments)
    moved = value_and_gradient(fedkern.calibrated_ce, logits + offset, target, arguments)
    for a, b in zip(plain, moved, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


@settings(deadline=None)
@given(problems())
def test_ignored_rows_might_as_well_be_absent(problem: tuple[Tensor, Tensor, Tensor]) -> None:
    logits, target, counts = problem
    keep = torch.arange(len(target)) % 3 != 1
    ignored = torch.where(keep, target, -7)
    poisoned = torch.where(keep[:, None], logits, torch.nan)
    for given_counts in (None, counts):
        arguments: Arguments = {"class_counts": given_counts}
        loss, gradient = value_and_gradient(
            fedkern.calibrated_ce, poisoned, ignored, {**arguments, "ignore_index": -7}
        )
        fewer = value_and_gradient(fedkern.calibrated_ce, logits[keep], target[keep], arguments)
        torch.testing.assert_close(loss, fewer[0])
        torch.testing.assert_close(gradient[keep], fewer[1])
        assert not gradient[~keep].any()


@settings(deadline=None)
@given(problems(), st.integers(0, 2**32))
def test_the_order_of_classes_does_not_matter(
    problem: tuple[Tensor, Tensor, Tensor], seed: int
) -> None:
    logits, target, counts = problem
    order = torch.randperm(len(counts), generator=generator(seed))
    place = order.argsort()
    plain = value_and_gradient(fedkern.calibrated_ce, logits, target, {"class_counts": counts})
    moved = value_and_gradient(
        fedkern.calibrated_ce, logits[:, order], place[target], {"class_counts": counts[order]}
    )
    torch.testing.assert_close(plain[0], moved[0])
    torch.testing.assert_close(plain[1][:, order], moved[1])


def test_worked_by_hand() -> None:
    """Two classes, p = (3/4, 1/4), label 1, counts (3, 1): r = (-2, 0), t = (-3/2, 1)."""
    logits = torch.tensor([[3.0, 1.0]], dtype=torch.float64).log()
    target, counts = torch.tensor([1]), torch.tensor([3.0, 1.0])
    log = torch.tensor([0.75, 0.25], dtype=torch.float64).log()
    arguments: Arguments = {"class_counts": counts, "reduction": "sum"}
    upstream = torch.randn((), dtype=torch.float64, generator=generator(4))

    loss, gradient = value_and_gradient(fedkern.calibrated_ce, logits, target, arguments)
    torch.testing.assert_close(loss, 1.5 * log[0] - log[1])
    # p_j (1 + (n_j - nbar) / n_y) - [j = y] with nbar = 2.5
    torch.testing.assert_close(gradient[0] / upstream, torch.tensor([1.125, -1.125]).double())

    arguments["calibration"] = "gradient"
    loss, gradient = value_and_gradient(fedkern.calibrated_ce, logits, target, arguments)
    torch.testing.assert_close(loss, 1.5 * log[0] - log[1])
    # p_j n_j / n_y - [j = y]
    torch.testing.assert_close(gradient[0] / upstream, torch.tensor([2.25, -0.75]).double())


def test_a_missing_class() -> None:
    """Under "gradient" its logit gets no push; under "label" only p_j (1 - nbar / n_y)."""
    logits, target = make_logits((8, 3)), torch.tensor([0, 0, 0, 0, 0, 1, 1, 1])
    counts = torch.tensor([5, 3, 0])
    p = logits.softmax(1)
    arguments: Arguments = {"class_counts": counts, "reduction": "sum"}
    upstream = torch.randn((), dtype=torch.float64, generator=generator(4))
    _, label = value_and_gradient(fedkern.calibrated_ce, logits, target, arguments)
    expected = p[:, 2] * (1 - (p * counts).sum(1) / counts[target])
    torch.testing.assert_close(label[:, 2] / upstream, expected)
    _, aligned = value_and_gradient(
        fedkern.calibrated_ce, logits, target, {**arguments, "calibration": "gradient"}
    )
    assert not aligned[:, 2].any()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_masked_logits_contribute_nothing(dtype: torch.dtype, device: str) -> None:
    """-inf marks a class that cannot occur: the others see nothing of it, in any column."""
    logits = make_logits((5, 37)).to(device, dtype)
    target = make_target((5, 30)).to(device)
    counts = make_counts(37).to(device)
    wide = torch.cat([logits[:, :30], torch.full_like(logits[:, 30:], -torch.inf)], dim=1)
    narrow = value_and_gradient(
        fedkern.calibrated_ce, logits[:, :30], target, {"class_counts": counts[:30]}
    )
    actual = value_and_gradient(fedkern.calibrated_ce, wide, target, {"class_counts": counts})
    torch.testing.assert_close(actual[0], narrow[0])
    torch.testing.assert_close(actual[1][:, :30], narrow[1])
    assert not actual[1][:, 30:].any()


def test_minus_infinity_at_the_label(device: str) -> None:
    logits = make_logits((3, 5)).to(device)
    logits[1, 2] = -torch.inf
    target = torch.tensor([0, 2, 4], device=device)
    loss = fedkern.calibrated_ce(logits, target, reduction="none")
    assert loss[1] == torch.inf
    assert bool(loss[[0, 2]].isfinite().all())
    # With a weight of 0 for it, the term is 0 (cross_entropy gives nan).
    weight = torch.tensor([1.0, 1, 0, 1, 1], device=device)
    assert bool(fedkern.calibrated_ce(logits, target, weight, reduction="none").isfinite().all())


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nan_and_infinity_spoil_their_row_only(dtype: torch.dtype, bad: float, device: str) -> None:
    logits = make_logits((3, 37)).to(device, dtype)
    for column in (0, 20, 36):
        spoiled = logits.clone()
        spoiled[1, column] = bad
        arguments: Arguments = {"reduction": "none"}
        target = make_target((3, 37)).to(device)
        loss, gradient = value_and_gradient(fedkern.calibrated_ce, spoiled, target, arguments)
        assert loss.isnan().tolist() == [False, True, False]
        assert gradient.isnan().all(1).tolist() == [False, True, False]
        assert gradient.isnan().any(1).tolist() == [False, True, False]


def test_all_masked_row_is_nan(device: str) -> None:
    logits = torch.full((1, 9), -torch.inf, device=device)
    target = torch.zeros(1, dtype=torch.long, device=device)
    loss, gradient = value_and_gradient(fedkern.calibrated_ce, logits, target, {})
    assert bool(loss.isnan())
    assert bool(gradient.isnan().all())


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("shape", [(0, 3), (2, 3, 0)], ids=str)
def test_no_sample(shape: tuple[int, ...], reduction: str, device: str) -> None:
    logits = torch.zeros(shape, device=device)
    target = make_target(shape).to(device)
    arguments: Arguments = {"reduction": reduction}
    actual = value_and_gradient(fedkern.calibrated_ce, logits, target, arguments)
    expected = value_and_gradient(F.cross_entropy, logits, target, arguments)
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, equal_nan=True)


def test_everything_ignored(device: str) -> None:
    logits = make_logits((4, 3)).to(device)
    target = torch.full((4,), -100, device=device)
    for reduction, value in (("mean", torch.nan), ("sum", 0.0)):
        arguments: Arguments = {"reduction": reduction}
        loss, gradient = value_and_gradient(fedkern.calibrated_ce, logits, target, arguments)
        torch.testing.assert_close(loss.item(), value, equal_nan=True)
        assert not gradient.any()


# ---- numerics -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sign", [-1, 1])
def test_large_offsets(dtype: torch.dtype, sign: int, device: str) -> None:
    """Beside 1.3e8 (8192 in float16), in steps that the dtype holds there, differences count."""
    offset = 2.0 ** (13 if dtype == torch.float16 else 27)
    step = offset * torch.finfo(dtype).eps
    differences = torch.randint(8, (6, 37), generator=generator(0)).double() * step
    moved = (differences + sign * offset).to(dtype)
    assert torch.equal(moved.double() - sign * offset, differences)
    target = make_target((6, 37)).to(device)
    arguments: Arguments = {"class_counts": make_counts(37).to(device), "reduction": "none"}
    actual = value_and_gradient(fedkern.calibrated_ce, moved.to(device), target, arguments)
    plain = differences.to(device, dtype)
    expected = value_and_gradient(fedkern.calibrated_ce, plain, target, arguments)
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_subnormal_probabilities_and_extreme_counts(dtype: torch.dtype, device: str) -> None:
    """Probabilities of 1e-38 to 1e-45, of classes 1e12 times as common as the label's."""
    logits = make_logits((64, 40), scale=1.0)
    logits[:, 20:] -= torch.linspace(80, 105, 20, dtype=torch.float64)
    logits, target = logits.to(device, dtype), make_target((64, 20)).to(device)
    counts = make_counts(40)
    for scale in (1e-6, 1.0, 1e12):
        n = (counts * torch.where(torch.arange(40) < 20, 1.0, scale)).to(device)
        arguments: Arguments = {"class_counts": n, "reduction": "sum"}
        kernel = value_and_gradient(fedkern.calibrated_ce, logits, target, arguments)
        naive = value_and_gradient(reference.calibrated_ce, logits, target, arguments)
        truth = value_and_gradient_in_double(logits, target, arguments)
        for k, v, t, what in zip(kernel, naive, truth, ("loss", "gradient"), strict=True):
            assert bool(k.isfinite().all())
            assert_as_accurate(k, v, t, f"{what}, counts times {scale}")


def available_bytes() -> int:
    for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("MemAvailable"):
            return int(line.split()[1]) * 1024
    return 0


def test_more_elements_than_32_bits_count() -> None:
    """The last rows are what they would be alone; logits of stride 0 need no memory."""
    if not os.path.exists("/proc/meminfo") or available_bytes() < 10e9:
        pytest.skip("needs 10 GB of memory")
    torch.set_num_threads(max(1, os.cpu_count() or 1))
    num_classes = 70_000
    rows = 2**31 // num_classes + 10
    row = make_logits((1, num_classes)).bfloat16()
    target = torch.arange(rows) % num_classes
    counts = make_counts(num_classes)
    arguments: Arguments = {"class_counts": counts, "reduction": "none"}
    with torch.no_grad():
        loss = fedkern.calibrated_ce(row.expand(rows, -1), target, **arguments)
    logits = row.expand(rows, -1).detach().requires_grad_()
    assert logits.numel() > 2**31
    (gradient,) = torch.autograd.grad(
        fedkern.calibrated_ce(logits, target, **{**arguments, "reduction": "sum"}), logits
    )
    last = slice(rows - 3, rows)
    alone = row.expand(3, -1).detach().requires_grad_()
    expected = fedkern.calibrated_ce(alone, target[last], **arguments)
    assert torch.equal(loss[last], expected)
    expected.sum().backward()
    assert alone.grad is not None
    assert torch.equal(gradient[last], alone.grad)


def test_no_memory_beside_the_gradient() -> None:
    """Forward and backward of a scalar loss allocate one gradient and O(N + C)."""
    rows, num_classes = 200, 1000
    for reduction in ("mean", "sum"):
        logits = make_logits((rows, num_classes)).float().requires_grad_()
        target = make_target((rows, num_classes))
        with torch.autograd.profiler.profile(profile_memory=True) as profile:
            fedkern.calibrated_ce(logits, target, reduction=reduction).backward()  # type: ignore[arg-type]
        allocated = sum(max(0, e.self_cpu_memory_usage) for e in profile.function_events)
        gradient = rows * num_classes * 4
        assert gradient <= allocated <= gradient + 16 * (rows + num_classes)


# ---- bad data on a device -----------------------------------------------------------------------

BAD_DATA = {
    "a label that is too large": "target[5] = 10",
    "a negative label": "target[5] = -1",
    "no count of a label's class": "counts[int(target[0])] = 0",
    "a negative count": "counts[9] = -1",
    "an infinite count": "counts[9] = torch.inf",
}


def bad_call(device: str, change: str) -> str:
    return f"""
import torch, fedkern
logits, target, counts = torch.zeros(64, 10), torch.arange(64) % 10, torch.ones(10)
{change}
logits, target, counts = (t.to({device!r}) for t in (logits, target, counts))
fedkern.calibrated_ce(logits, target, class_counts=counts)
"""


@pytest.mark.parametrize("change", BAD_DATA.values(), ids=BAD_DATA)
def test_bad_data_stops_an_emulated_kernel(change: str, emulated: ModuleType) -> None:
    with pytest.raises(RuntimeError, match="device-side assert"):
        exec(bad_call("cpu", change), {})


@pytest.mark.parametrize("change", BAD_DATA.values(), ids=BAD_DATA)
def test_bad_data_stops_a_gpu(change: str) -> None:
    """In a process of its own, which is of no use for CUDA afterwards."""
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    code = bad_call("cuda", change) + "torch.cuda.synchronize()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode != 0
    assert "device-side assert" in done.stderr


# ---- threads and CPU capabilities ---------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(40000, 10), (300, 1000), (4, 19, 64, 64)], ids=str)
def test_same_bits_for_any_number_of_threads(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    logits, target = make_logits(shape).to(dtype), make_target(shape)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(value_and_gradient(fedkern.calibrated_ce, logits, target, {}))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_more_threads_share_the_work() -> None:
    """A process that has called nothing else starts torch's threads for it."""
    if not os.path.isdir("/proc/self/task"):
        pytest.skip("threads are counted in Linux's /proc")
    code = """
import os, torch, fedkern
torch.set_num_threads(1)
logits, target = torch.zeros(1000, 1000), torch.zeros(1000, dtype=torch.long)
torch.set_num_threads(3)
before = len(os.listdir("/proc/self/task"))
fedkern.calibrated_ce(logits, target)
assert len(os.listdir("/proc/self/task")) == before + 2
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_every_cpu_capability(capability: str) -> None:
    """The kernels for each vector width this machine has, in a process that is made to use them."""
    chosen = "(accuracy or reference or strides or masked or nan_and or forced) and not emulated"
    run_tests_with(capability, __file__, chosen)


def test_the_forced_capability_is_in_use() -> None:
    assert fedkern.build_info()["cpu_capability"] == expected_capability()


# ---- bad input ----------------------------------------------------------------------------------

LOGITS, TARGET = torch.zeros(4, 10), torch.zeros(4, dtype=torch.long)


@pytest.mark.parametrize(
    ("error", "message", "arguments"),
    [
        (TypeError, "input must be float32.*got Long", {"input": LOGITS.long()}),
        (TypeError, "input must be float32.*got Complex", {"input": LOGITS.cfloat()}),
        (ValueError, r"input must have shape .* got \[\]", {"input": torch.tensor(1.0)}),
        (ValueError, "at least one class", {"input": torch.zeros(4, 0)}),
        (TypeError, "class probabilities are not supported", {"target": torch.zeros(4, 10)}),
        (TypeError, "target must hold class indices.*got Bool", {"target": TARGET.bool()}),
        (ValueError, r"target must have input's shape .*\[4\], got \[3\]", {"target": TARGET[:3]}),
        (ValueError, r"\[4\], got \[4, 1\]", {"target": TARGET[:, None]}),
        (
            ValueError,
            "target must be on input's device, cpu, got meta",
            {"target": TARGET.to("meta")},
        ),
        (
            IndexError,
            r"target must hold class indices in \[0, 10\), got 12 at position 3",
            {"target": torch.tensor([0, 1, 2, 12])},
        ),
        (IndexError, "got -1 at position 0", {"target": torch.tensor([-1, 1, 2, 3])}),
        (
            ValueError,
            r"weight must have one entry per class, \[10\], got shape \[9\]",
            {"weight": torch.ones(9)},
        ),
        (TypeError, "weight must be floating, got Long", {"weight": torch.ones(10).long()}),
        (ValueError, "weight must be on input's device", {"weight": torch.ones(10, device="meta")}),
        (
            ValueError,
            r"class_counts must have one entry .* got shape \[10, 1\]",
            {"class_counts": torch.ones(10, 1)},
        ),
        (TypeError, "class_counts must be real, got Bool", {"class_counts": torch.ones(10).bool()}),
        (
            TypeError,
            "class_counts must be real, got Complex",
            {"class_counts": torch.ones(10).cfloat()},
        ),
        (
            ValueError,
            "class_counts must be positive for every class that is a label, got 0 for class 0, "
            "which occurs 4 times",
            {"class_counts": torch.arange(10)},
        ),
        (
            ValueError,
            "not negative, got -3 for class 9",
            {"class_counts": torch.tensor([1.0] * 9 + [-3])},
        ),
        (
            ValueError,
            "finite and not negative, got nan",
            {"class_counts": torch.full((10,), torch.nan)},
        ),
        (
            ValueError,
            "finite and not negative, got inf",
            {"class_counts": torch.full((10,), torch.inf)},
        ),
        (
            ValueError,
            "calibration must be 'label' or 'gradient', got 'Label'",
            {"calibration": "Label"},
        ),
        (ValueError, "reduction must be 'mean', 'sum' or 'none', got 'avg'", {"reduction": "avg"}),
        (ValueError, r"label_smoothing must be in \[0, 1\], got 1.5", {"label_smoothing": 1.5}),
        (ValueError, "label_smoothing must be", {"label_smoothing": float("nan")}),
        (TypeError, "size_average", {"size_average": True}),
        (TypeError, "reduce", {"reduce": True}),
    ],
)
def test_bad_input(error: type[Exception], message: str, arguments: Arguments) -> None:
    with pytest.raises(error, match=message):
        fedkern.calibrated_ce(**{"input": LOGITS, "target": TARGET, **arguments})


def test_a_bad_label_among_many_is_found() -> None:
    """Enough labels that threads share the counting."""
    torch.set_num_threads(2)
    target = torch.zeros(100_000, dtype=torch.long)
    target[99_999] = 3
    with pytest.raises(IndexError, match=r"\[0, 3\), got 3 at position 99999"):
        fedkern.calibrated_ce(torch.zeros(100_000, 3), target)
