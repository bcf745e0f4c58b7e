"""Calls every operator 100,000 times, and looks for memory that was not given back.

`make sanitize` runs it, on the ordinary build: AddressSanitizer's own allocator keeps what is freed
for a while, and tells nothing of the heap. An operator is called with all samples that its entry in
tests/operators has, with derivatives where it has them, and with the arguments that it refuses.
"""

import contextlib
import ctypes
import gc
import importlib
import itertools
import os
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

import fedkern
from fedkern import fl
from fedkern.fl.chain import chain_of
from fedkern.fl.flat import FlatModel

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))
operators: Any = importlib.import_module("operators")

CALLS = 100_000
WARM_UP = 20_000

Call = Callable[[], object]


class Memory(NamedTuple):
    """What is in use."""

    heap: int  # bytes, of the C library's heap and its mappings: tensors, and what C++ allocates
    blocks: int  # of Python's own allocator
    resident: int  # bytes, of the process


# Of one byte a call the heap may be grown, for caches that fill late; a block of Python's has at
# least 16. Resident memory is counted in pages, and what is free between blocks in use is in it.
ALLOWED = Memory(heap=CALLS, blocks=CALLS // 100, resident=16 * CALLS)


class Row(NamedTuple):
    """One operator, called in one way."""

    operator: str
    way: str
    before: Memory
    after: Memory
    seconds: float

    @property
    def growth(self) -> Memory:
        return Memory(*(a - b for a, b in zip(self.after, self.before, strict=True)))

    @property
    def leaks(self) -> bool:
        return any(g > a for g, a in zip(self.growth, ALLOWED, strict=True))


# ---- measuring ----------------------------------------------------------------------------------


class _Mallinfo2(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    ]


_mallinfo2 = ctypes.CDLL(None).mallinfo2  # glibc 2.33
_mallinfo2.restype = _Mallinfo2


def memory() -> Memory:
    gc.collect()
    info = _mallinfo2()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return Memory(
        heap=info.uordblks + info.hblkhd,
        blocks=sys.getallocatedblocks(),
        resident=pages * os.sysconf("SC_PAGE_SIZE"),
    )


def measure(operator: str, way: str, call: Call) -> Row:
    started = time.perf_counter()
    for _ in range(WARM_UP):
        call()
    before = memory()
    for _ in range(CALLS):
        call()
    after = memory()
    return Row(operator, way, before, after, time.perf_counter() - started)


# ---- what is called -----------------------------------------------------------------------------


def in_turn(calls: list[Call]) -> Call:
    """Each call of it makes the next of these."""
    turns = itertools.cycle(calls)
    return lambda: next(turns)()


def refused(operator: Any, error: type[Exception], arguments: tuple[Any, ...]) -> Call:
    def call() -> None:
        with contextlib.suppress(error):
            operator.op(*arguments)
            raise AssertionError(f"{operator.name} took {arguments}")

    return call


def differentiated(operator: Any, arguments: tuple[Any, ...]) -> Call:
    """First derivatives by all that has some, and theirs."""
    tracked = tuple(
        operators.map_tensors(lambda a: a.clone().requires_grad_(), a)
        if i in operator.differentiable
        else a
        for i, a in enumerate(arguments)
    )

    def results() -> list[Tensor]:
        return [r for r in operator.call(tracked) if r.requires_grad]

    by: list[Tensor] = operators.tensors_of([tracked[i] for i in operator.differentiable])
    ones = [torch.ones_like(r).requires_grad_() for r in results()]

    def call() -> None:
        first = torch.autograd.grad(results(), by, ones, create_graph=True)
        torch.autograd.grad(first, [*by, *ones], [f.detach() for f in first], allow_unused=True)

    return call


def ways(operator: Any) -> Iterator[tuple[str, Call]]:
    """How an operator is called, each with all samples in turn."""
    every = [arguments for dtype in operator.dtypes for arguments in operator.samples(dtype)]
    yield "forward", in_turn([partial(operator.call, arguments) for arguments in every])
    if not isinstance(operator.differentiable, str):
        yield "derivatives", in_turn([differentiated(operator, arguments) for arguments in every])
    bad = operator.bad_inputs
    yield "errors", in_turn([refused(operator, error, a) for error, _, a in bad])


def functions() -> Iterator[tuple[str, str, Call]]:
    """What fedkern._C offers beside its operators: their short ways in, and what trains."""
    logits, other = torch.randn(6, 5, requires_grad=True), torch.randn(6, 5)
    target = torch.arange(6) % 5
    center = torch.full((5,), 0.2)
    parameter, gradient = torch.zeros(30), torch.ones(30)
    generator = torch.Generator().manual_seed(0)
    read, indices = fl.Reader(torch.zeros(10, 3, 16, 16, dtype=torch.uint8)), torch.tensor([3, 0])
    chain = chain_of(FlatModel(fl.FlocoCNN(3, 16, 16, 4)))
    assert chain is not None
    images, gradients = torch.randn(2, 3, 16, 16), torch.randn(2, 4)

    def differentiate(function: Callable[..., Tensor], *others: Tensor) -> None:
        torch.autograd.grad(function(logits, *others).sum(), logits)

    def passes() -> None:
        chain.forward(images)
        chain.backward(gradients)

    loss = partial(differentiate, fedkern.calibrated_ce, target)
    yield "fedkern.calibrated_ce", "derivatives", loss
    distillation = partial(differentiate, fedkern.not_true_distillation, other, target)
    yield "fedkern.not_true_distillation", "derivatives", distillation
    project = partial(differentiate, fedkern.simplex.project)
    yield "fedkern.simplex.project", "derivatives", project
    draw = partial(fedkern.simplex.sample, 5, (6,), generator=generator)
    yield "fedkern.simplex.sample", "forward", draw
    draw_near = partial(fedkern.simplex.sample_ball, center, 0.1, 6, generator=generator)
    yield "fedkern.simplex.sample_ball", "forward", draw_near
    step = partial(fedkern.optim.sgd_step_, parameter, gradient, lr=0.1)
    yield "fedkern.optim.sgd_step_", "forward", step
    yield "fl.Reader", "forward", partial(read, indices)
    yield "a chain of layers", "derivatives", passes


def everything() -> Iterator[tuple[str, str, Call]]:
    """What is called: its name, in which way, and how."""
    for operator in operators.OPERATORS.values():
        for way, call in ways(operator):
            yield operator.name, way, call
    yield from functions()


# ---- the verdict --------------------------------------------------------------------------------


def show(rows: list[Row]) -> None:
    table = Table(title=f"{CALLS:,} calls each, after {WARM_UP:,} to warm up; memory in bytes")
    table.add_column("operator")
    table.add_column("calls")
    for column in ("heap before", "heap after", "grown", "Python's blocks", "resident", "seconds"):
        table.add_column(column, justify="right")
    for row in rows:
        heap, blocks, resident = (f"{growth:+,}" for growth in row.growth)
        table.add_row(
            *(row.operator, row.way, f"{row.before.heap:,}", f"{row.after.heap:,}"),
            *(heap, blocks, resident, f"{row.seconds:.1f}"),
            style="red" if row.leaks else None,
        )
    # A log has no width of its own, and nothing should be cut there.
    Console(width=None if sys.stdout.isatty() else 140).print(table)


def main() -> int:
    torch.set_num_threads(1)
    every = list(everything())
    print(f"leak-check: {len(every)} times {CALLS:,} calls (minutes)", flush=True)
    rows = [measure(*one) for one in every]
    show(rows)
    leaks = [f"{row.operator} ({row.way})" for row in rows if row.leaks]
    print(
        f"leak-check: FAILED: memory grows in {', '.join(leaks)}"
        if leaks
        else f"leak-check: passed: {len(rows)} times {CALLS:,} calls, and memory does not grow"
    )
    return 1 if leaks else 0


if __name__ == "__main__":
    sys.exit(main())
