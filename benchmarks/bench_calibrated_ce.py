"""Forward and backward of calibrated_ce beside what does the same or less in plain PyTorch.

    fedkern        fedkern.calibrated_ce, counts of the batch
    published      the published formula in eager PyTorch: counts, softmax, a dense label
    cross_entropy  torch's own loss: it does not calibrate
    copy           the logits copied once into fresh memory: what any gradient costs at least

`make bench` runs it. The variants of one setting run in turns (a round is one block of calls of
each) and medians of the rounds are kept: on a shared machine ratios within a run mean more than
times.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import pytest
import record
import torch
from torch import Tensor
from torch.nn import functional as F

import fedkern

SHAPES = [(64, 10), (64, 100), (50, 200), (256, 1000), (1024, 32000)]
DTYPES = [torch.float32, torch.bfloat16]
THREADS = sorted({1, torch.get_num_threads()})
DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
VARIANTS = ["fedkern", "published", "cross_entropy", "copy"]

BLOCK_SECONDS = 0.03  # of one variant's calls in a round
ROUNDS = 15


def published(logits: Tensor, target: Tensor) -> Tensor:
    """What the authors' code does: a dense calibrated label, given to cross_entropy."""
    num_classes = logits.shape[1]
    counts = torch.bincount(target, minlength=num_classes).to(logits.dtype)
    one_hot = F.one_hot(target, num_classes).to(logits.dtype)
    calibration = 1 - counts / counts[target].unsqueeze(1)
    label = one_hot + logits.detach().softmax(1) * calibration
    return F.cross_entropy(logits, label)


def make_step(variant: str, logits: Tensor, target: Tensor) -> Callable[[], Any]:
    if variant == "copy":
        return lambda: logits.detach().clone()
    loss_function = {
        "fedkern": fedkern.calibrated_ce,
        "published": published,
        "cross_entropy": F.cross_entropy,
    }[variant]

    def step() -> None:
        logits.grad = None
        loss_function(logits, target).backward()

    return step


def seconds(step: Callable[[], Any], calls: int, device: str) -> float:
    """Mean seconds of a call."""
    start = time.perf_counter()
    for _ in range(calls):
        step()
    if device == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / calls


def interleaved(steps: dict[str, Callable[[], Any]], device: str) -> dict[str, list[float]]:
    """Seconds a call of each step, one number a round."""
    calls = {}
    for name, step in steps.items():
        seconds(step, 1, device)
        calls[name] = max(1, round(BLOCK_SECONDS / seconds(step, 3, device)))
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(ROUNDS):
        for name, step in steps.items():
            times[name].append(seconds(step, calls[name], device))
    return times


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_forward_backward(
    shape: tuple[int, int], dtype: torch.dtype, threads: int, device: str, benchmark: Any
) -> None:
    if device == "cuda" and threads > 1:
        pytest.skip("threads do not matter on a GPU")
    torch.set_num_threads(threads)
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(shape, generator=generator).to(device, dtype).requires_grad_()
    target = torch.randint(shape[1], (shape[0],), generator=generator).to(device)
    steps = {name: make_step(name, logits, target) for name in VARIANTS}

    times = interleaved(steps, device)
    median = {name: statistics.median(values) for name, values in times.items()}
    ratios = {
        name: statistics.median(
            other / ours for other, ours in zip(times[name], times["fedkern"], strict=True)
        )
        for name in VARIANTS
    }
    setting = {"shape": shape, "dtype": str(dtype), "threads": threads, "device": device}
    record.append(
        "calibrated_ce",
        [
            {**setting, "variant": name, "seconds": median[name], "times_fedkern": ratios[name]}
            for name in VARIANTS
        ],
    )
    print(f"\n{shape[0]}x{shape[1]} {dtype}, {threads} thread(s), {device}:", end="")
    for name in VARIANTS:
        print(f"  {name} {median[name] * 1e6:.1f} us ({ratios[name]:.2f})", end="")
    # pytest-benchmark's own table shows fedkern's distribution.
    benchmark.extra_info.update(ratios)
    benchmark.pedantic(steps["fedkern"], rounds=20, iterations=1, warmup_rounds=2)
