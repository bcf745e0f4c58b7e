"""How the benchmarks time, print and record: variants in turns, medians of the rounds.

A step is what is timed: a call without arguments. A clock says how long it takes:

    wall_clock   on the CPU: a block of calls between two readings of perf_counter
    cuda_clock   on a GPU: a block of calls between two CUDA events, enqueued one after the other as
                 a training loop does. Short steps cost what their launches cost
    cold_clock   on a GPU: each call between two CUDA events, with nothing of its data in L2, and
                 enqueued while the GPU is still busy: its kernels' time, without launch gaps (but
                 for what waits for the GPU in between)

A round is one block of calls of each variant. Neighbours disturb all variants of a round alike, so
ratios, taken round by round, say more than times.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Any, TypeVar

import pytest
import record
import torch

Step = Callable[[], Any]
Clock = Callable[[Step, int], float]  # mean seconds of a call, over so many calls
Times = dict[str, list[float]]  # seconds of a call of each variant, one number a round
Setting = dict[str, Any]
Result = TypeVar("Result")

BLOCK_SECONDS = 0.03  # of one variant's calls in a round
ROUNDS = 15
FLUSH_BYTES = 2**30  # many times any L2, and long enough to enqueue a step behind it

_THREADS = sorted({1, torch.get_num_threads()})
_NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
_GPU = pytest.param("cuda", 1, marks=_NEEDS_GPU)

# Decorators: the devices, and numbers of threads, that a benchmark runs with.
everywhere = pytest.mark.parametrize(
    ("device", "threads"), [*(("cpu", threads) for threads in _THREADS), _GPU]
)
on_cpu = pytest.mark.parametrize("threads", _THREADS)
on_one_thread = pytest.mark.parametrize(("device", "threads"), [("cpu", 1), _GPU])
on_gpu = pytest.mark.parametrize(("device", "threads"), [_GPU])


# ---- clocks -------------------------------------------------------------------------------------


def wall_clock(step: Step, calls: int) -> float:
    if isinstance(step, StepElsewhere):
        return step.seconds(calls)
    start = time.perf_counter()
    for _ in range(calls):
        step()
    return (time.perf_counter() - start) / calls


def cuda_clock(step: Step, calls: int) -> float:
    start, end = _events()
    start.record()
    for _ in range(calls):
        step()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3 / calls


def cold_clock(prepare: Step) -> Clock:
    """A clock that calls `prepare` before each call, outside the timing, then flushes L2."""
    flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device="cuda")

    def clock(step: Step, calls: int) -> float:
        events = [_events() for _ in range(calls)]
        for start, end in events:
            prepare()
            flush.zero_()
            start.record()
            step()
            end.record()
        torch.cuda.synchronize()
        return statistics.mean(start.elapsed_time(end) for start, end in events) / 1e3

    return clock


def _events() -> tuple[torch.cuda.Event, torch.cuda.Event]:
    return torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)


def clock_of(device: str) -> Clock:
    return cuda_clock if device == "cuda" else wall_clock


# ---- runs ---------------------------------------------------------------------------------------


def interleaved(steps: dict[str, Step], clock: Clock, rounds: int = ROUNDS) -> Times:
    """Time the steps in turns. Their first calls, which may compile, do not count."""
    calls = {}
    for name, step in steps.items():
        clock(step, 1)
        start = time.perf_counter()
        clock(step, 3)
        elapsed = time.perf_counter() - start  # a clock may do more than it times
        calls[name] = max(1, round(3 * BLOCK_SECONDS / elapsed))
    times: Times = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            times[name].append(clock(step, calls[name]))
    return times


@contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class StepElsewhere:
    """A step in a process of its own, where no other variant's memory serves it.

    There `make(*arguments)` returns it. wall_clock lets that process read the clock.
    """

    def __init__(self, make: Callable[..., Step], *arguments: Any) -> None:
        self._pool = ProcessPoolExecutor(1, mp_context=get_context("spawn"))
        self._pool.submit(_make_step, make, *arguments).result()

    def __call__(self) -> None:
        self.seconds(1)

    def seconds(self, calls: int) -> float:
        return self._pool.submit(_time_step, calls).result()


_step: Step  # of the process that a StepElsewhere runs in


def _make_step(make: Callable[..., Step], *arguments: Any) -> None:
    global _step
    torch.set_num_threads(1)
    _step = make(*arguments)


def _time_step(calls: int) -> float:
    return wall_clock(_step, calls)


def in_fresh_process(function: Callable[..., Result], *arguments: Any) -> Result:
    """What `function` returns in a new process, which takes on os.environ as it is now."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


# ---- results ------------------------------------------------------------------------------------


def report(benchmark: str, setting: Setting, times: Times, bytes_moved: int | None = None) -> None:
    """Print the medians in one line; append them to results/<benchmark>.jsonl, a row a variant.

    times_fedkern is the time in multiples of fedkern's. `bytes_moved`, the least that each variant
    must read and write, adds bytes_per_second and fraction_of_copy: the speed in parts of that of
    the variant "copy".
    """
    rows = []
    line = describe(setting)
    for name in times:
        row: dict[str, Any] = {
            "variant": name,
            "seconds": statistics.median(times[name]),
            "times_fedkern": _ratio(times, name, "fedkern"),
        }
        line += f"  {name} {row['seconds'] * 1e6:.1f} us ({row['times_fedkern']:.2f}"
        if bytes_moved:
            row["bytes_per_second"] = bytes_moved / row["seconds"]
            row["fraction_of_copy"] = _ratio(times, "copy", name)
            line += f", {row['bytes_per_second'] / 1e12:.2f} TB/s"
            line += f", {row['fraction_of_copy']:.0%} of copy"
        line += ")"
        rows.append({**setting, **row})
    print(line)
    record.append(benchmark, rows)


def describe(setting: Setting) -> str:
    """A new line with the setting, for its results to follow."""
    return "\n" + ", ".join(f"{key} {value}" for key, value in setting.items()) + ":"


def _ratio(times: Times, name: str, other: str) -> float:
    return statistics.median(a / b for a, b in zip(times[name], times[other], strict=True))
