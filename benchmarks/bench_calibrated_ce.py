"""Forward and backward of calibrated_ce beside what does the same or less: time and memory.

losses.py says which losses are compared, timing.py how they are timed. "copy" is the floor: the
logits copied once, as large as any gradient. `make bench` runs it; ARGS="-k cuda" chooses what runs
on a GPU, ARGS="-k forward_backward" the times of one batch's loss.

Rows in results/calibrated_ce.jsonl say in "measure" what they measure; where they do not, it is
forward_backward.
"""

import math
import platform
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import losses
import pytest
import record
import timing
import torch
from losses import Loss
from torch import Tensor
from torch.nn import functional as F

import fedkern

Shape = tuple[int, ...]

# The last one is a segmentation: classes in dimension 1.
SHAPES = [(64, 10), (64, 100), (50, 200), (256, 1000), (1024, 32000), (4, 19, 128, 128)]
SMALL_SHAPES = [(64, 10), (64, 100)]  # on a GPU a step is launches and little else
BIG_SHAPE = (1024, 32000)
ADJUSTED_SHAPES = [*SMALL_SHAPES, (256, 1000), BIG_SHAPE]
GPU_SHAPES = [(32768, 1024), (8192, 32000), (4096, 128256)]  # larger than any L2
CLIENTS, BATCH, CLASSES = 10, 64, 10

PAIR = ["fedkern", "cross_entropy"]
COMPILE_FROM = 256 * 1000  # logits: what a smaller step costs is not its arithmetic


def by_shape(shapes: Iterable[Shape]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("shape", shapes, ids=lambda shape: "x".join(map(str, shape)))


by_dtype = pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16], ids=lambda dtype: str(dtype).removeprefix("torch.")
)


@pytest.fixture(autouse=True)
def _fresh_compiler() -> None:
    """Every setting compiles for its own shapes: together they are more than torch allows for."""
    torch.compiler.reset()


def inputs(shape: Shape, dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor]:
    generator = torch.Generator(device).manual_seed(0)
    logits = torch.randn(shape, generator=generator, device=device).to(dtype).requires_grad_()
    positions = (shape[0], *shape[2:])
    target = torch.randint(shape[1], positions, generator=generator, device=device)
    return logits, target


def backward_step(loss: Loss, logits: Tensor, target: Tensor) -> timing.Step:
    def step() -> None:
        loss(logits, target).backward()
        logits.grad = None  # each variant frees its own gradient

    return step


def setting_of(
    measure: str, shape: Shape, dtype: torch.dtype, device: str, threads: int, **more: Any
) -> timing.Setting:
    return {
        "measure": measure,
        "shape": shape,
        "dtype": str(dtype),
        "threads": threads,
        "device": device,
        **more,
    }


# ---- forward and backward -----------------------------------------------------------------------


def steps_of(
    variants: list[str], shape: Shape, dtype: torch.dtype, device: str
) -> dict[str, timing.Step]:
    logits, target = inputs(shape, dtype, device)
    steps = {
        name: backward_step(loss, logits, target)
        for name, loss in losses.available(variants, device).items()
    }
    return {**steps, "copy": lambda: logits.detach().clone()}


@timing.everywhere
@by_dtype
@by_shape(SHAPES)
def test_forward_backward(
    shape: Shape, dtype: torch.dtype, device: str, threads: int, benchmark: Any
) -> None:
    """Beside cross_entropy, and the published formula as it is and compiled."""
    variants = [*PAIR, "published"]
    if math.prod(shape) >= COMPILE_FROM:
        variants.append("published_compiled")
    steps = steps_of(variants, shape, dtype, device)
    clock = timing.clock_of(device)
    with timing.torch_threads(threads):
        times = timing.interleaved(steps, clock)
        # pytest-benchmark's own table shows fedkern's distribution.
        benchmark.pedantic(clock, (steps["fedkern"], 1), rounds=20, warmup_rounds=2)
    setting = setting_of("forward_backward", shape, dtype, device, threads)
    timing.report("calibrated_ce", setting, times)


def times_on_one_thread(variants: list[str], shape: Shape, dtype: torch.dtype) -> timing.Times:
    with timing.torch_threads(1):
        return timing.interleaved(steps_of(variants, shape, dtype, "cpu"), timing.wall_clock)


@pytest.fixture
def huge_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """New processes get huge pages. glibc reads its tunables when a process starts."""
    if reason := no_huge_pages():
        pytest.skip(reason)
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")


@pytest.mark.usefixtures("huge_pages")
@by_dtype
def test_forward_backward_huge_pages(dtype: torch.dtype) -> None:
    """Large gradients are paid for in page faults: here every variant gets huge pages."""
    times = timing.in_fresh_process(times_on_one_thread, PAIR, BIG_SHAPE, dtype)
    setting = setting_of("forward_backward", BIG_SHAPE, dtype, "cpu", threads=1, huge_pages=True)
    timing.report("calibrated_ce", setting, times)


def times_of_parts(shape: Shape, dtype: torch.dtype) -> timing.Times:
    logits, target = inputs(shape, dtype, "cpu")
    data, warm = logits.detach(), torch.zeros(shape, dtype=dtype)
    steps = {
        "fedkern": backward_step(fedkern.calibrated_ce, logits, target),
        "loss_alone": lambda: fedkern.calibrated_ce(data, target),
        "maximum": lambda: data.amax(1),
        "zeros": lambda: torch.empty_like(data).zero_(),
        "copy": lambda: data.clone(),
        "copy_into_warm": lambda: warm.copy_(data),
    }
    with timing.torch_threads(1):
        return timing.interleaved(steps, timing.wall_clock)


@pytest.mark.usefixtures("huge_pages")
@by_dtype
def test_parts(dtype: torch.dtype) -> None:
    """Where the time of a large step goes: the loss without gradient, and memory alone."""
    times = timing.in_fresh_process(times_of_parts, BIG_SHAPE, dtype)
    setting = setting_of("parts", BIG_SHAPE, dtype, "cpu", threads=1, huge_pages=True)
    timing.report("calibrated_ce", setting, times)


def no_huge_pages() -> str:
    """Why malloc cannot be told to ask for huge pages; empty where it can."""
    library, version = platform.libc_ver()
    if library != "glibc" or tuple(map(int, version.split("."))) < (2, 35):
        return "needs glibc 2.35"
    enabled = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if not enabled.is_file() or "[never]" in enabled.read_text(encoding="utf-8"):
        return "needs transparent huge pages"
    return ""


@timing.on_gpu
@by_dtype
@by_shape(GPU_SHAPES)
def test_forward_backward_large(
    shape: Shape, dtype: torch.dtype, device: str, threads: int
) -> None:
    """The kernels' own time, beside a copy: both read the logits once and write as much once.

    The gradient is asked for, not accumulated: it goes on to the layer before, as in a model. That
    is how Liger-Kernel is meant to be used: accumulating would clone what it wrote over the logits.
    These are its own, and it gets them afresh for each call.
    """
    logits, target = inputs(shape, dtype, device)
    overwritten = torch.empty_like(logits).requires_grad_()
    copied = torch.empty_like(logits)

    @torch.no_grad()
    def prepare() -> None:
        overwritten.copy_(logits)

    def gradient_step(loss: Loss, logits: Tensor) -> timing.Step:
        return lambda: torch.autograd.grad(loss(logits, target), logits)

    variants = [*PAIR, "cross_entropy_compiled", "liger"]
    steps = {
        name: gradient_step(loss, overwritten if name == "liger" else logits)
        for name, loss in losses.available(variants, device).items()
    }
    steps["copy"] = lambda: copied.copy_(logits.detach())
    times = timing.interleaved(steps, timing.cold_clock(prepare))
    setting = setting_of("forward_backward_large", shape, dtype, device, threads)
    timing.report("calibrated_ce", setting, times, bytes_moved=2 * logits.nbytes)


# ---- adjusted logits ----------------------------------------------------------------------------


@timing.everywhere
@by_dtype
@by_shape(ADJUSTED_SHAPES)
def test_logit_adjusted(shape: Shape, dtype: torch.dtype, device: str, threads: int) -> None:
    """A constant per class is added to the logits, beside the same without it."""
    logits, target = inputs(shape, dtype, device)
    eager = losses.adjusted_by(torch.linspace(-3, 3, shape[1], dtype=dtype, device=device))
    names = [*eager, "cross_entropy_compiled"]
    steps = {
        name: backward_step(loss, logits, target)
        for name, loss in losses.available(names, device, eager).items()
    }
    steps["copy"] = lambda: logits.detach().clone()
    with timing.torch_threads(threads):
        times = timing.interleaved(steps, timing.clock_of(device))
    setting = setting_of("logit_adjusted", shape, dtype, device, threads)
    timing.report("calibrated_ce", setting, times)


# ---- small steps on a GPU -----------------------------------------------------------------------


@timing.on_gpu
@by_dtype
@by_shape(SMALL_SHAPES)
def test_cuda_graph(shape: Shape, dtype: torch.dtype, device: str, threads: int) -> None:
    """A step launched from Python, and the same step captured in a CUDA graph and replayed."""
    steps = {}
    for name in PAIR:
        step = backward_step(losses.EAGER[name], *inputs(shape, dtype, device))
        steps[name] = step
        steps[f"{name}_graph"] = captured(step)
    times = timing.interleaved(steps, timing.cuda_clock)
    setting = setting_of("cuda_graph", shape, dtype, device, threads)
    timing.report("calibrated_ce", setting, times)


def captured(step: timing.Step) -> timing.Step:
    """The replay of a CUDA graph of the step, which is warmed up on a stream of its own first."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


# ---- a stack of clients -------------------------------------------------------------------------


@timing.on_one_thread
def test_clients(device: str, threads: int) -> None:
    """Gradients of many clients' batches at once, by vmap, beside a loop over the clients."""
    shape, dtype = (CLIENTS, BATCH, CLASSES), torch.float32
    generator = torch.Generator(device).manual_seed(0)
    logits = torch.randn(shape, generator=generator, device=device)
    target = torch.randint(CLASSES, shape[:2], generator=generator, device=device)
    counts = torch.randint(1, 1000, (CLIENTS, CLASSES), generator=generator, device=device)

    def with_counts(logits: Tensor, target: Tensor, counts: Tensor) -> Tensor:
        return fedkern.calibrated_ce(logits, target, class_counts=counts)

    gradients = torch.func.vmap(torch.func.grad(with_counts))
    gradients_of_cross_entropy = torch.func.vmap(torch.func.grad(F.cross_entropy))
    clients = [
        (z.clone().requires_grad_(), *rest) for z, *rest in zip(logits, target, counts, strict=True)
    ]

    def loop() -> None:
        for z, *rest in clients:
            z.grad = None
            with_counts(z, *rest).backward()

    steps = {
        "fedkern": lambda: gradients(logits, target, counts),
        "fedkern_loop": loop,
        "cross_entropy": lambda: gradients_of_cross_entropy(logits, target),
    }
    with timing.torch_threads(threads):
        times = timing.interleaved(steps, timing.clock_of(device))
    timing.report("calibrated_ce", setting_of("clients", shape, dtype, device, threads), times)


# ---- memory -------------------------------------------------------------------------------------


@timing.on_one_thread
def test_peak_memory(device: str, threads: int) -> None:
    """What forward and backward take at most beside the logits, in multiples of their size.

    The gradient, which stays, is one of these.
    """
    if device == "cpu" and not CLEAR_REFS.exists():
        pytest.skip(f"needs {CLEAR_REFS}")
    dtype = torch.float32
    setting = setting_of("peak_memory", BIG_SHAPE, dtype, device, threads)
    size = math.prod(BIG_SHAPE) * dtype.itemsize
    rows = []
    for name in PAIR:
        extra = timing.in_fresh_process(extra_bytes, name, BIG_SHAPE, dtype, device)
        rows.append({**setting, "variant": name, "bytes": extra, "times_logits": extra / size})
    found = [f"{row['variant']} {row['bytes']} bytes ({row['times_logits']:.3f})" for row in rows]
    print(timing.describe(setting), *found, sep="  ")
    record.append("calibrated_ce", rows)


CLEAR_REFS = Path("/proc/self/clear_refs")  # resets VmHWM, the most that was ever resident


def extra_bytes(variant: str, shape: Shape, dtype: torch.dtype, device: str) -> int:
    """The peak of the memory in use during a step, less what was in use before it."""
    loss = losses.EAGER[variant]
    with timing.torch_threads(1):
        # Code and workspaces that are loaded once do not count.
        backward_step(loss, *inputs((64, 10), dtype, device))()
        step = backward_step(loss, *inputs(shape, dtype, device))
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            step()
            return torch.cuda.max_memory_allocated() - before
        CLEAR_REFS.write_text("5", encoding="ascii")
        before = most_resident()
        step()
        return most_resident() - before


def most_resident() -> int:
    status = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(1024 * int(line.split()[1]) for line in status if line.startswith("VmHWM:"))
