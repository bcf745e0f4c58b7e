"""The CUDA emulator: right kernels run; the faults planted in wrong ones (planted.cu) are found."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import sanitize
import torch
from cuda_emulator import build
from torch import Tensor

import fedkern

TESTS = Path(__file__).resolve().parents[1]
# What shared memory holds at first, as a float.
POISON = {
    "forward": torch.nan,
    "reverse": float(torch.tensor(0x7F7F7F7F, dtype=torch.int32).view(torch.float32)),
}


@pytest.fixture(params=["forward", "reverse"])
def order(request: pytest.FixtureRequest, emulator_module: ModuleType) -> Iterator[str]:
    emulator_module.set_order(request.param)
    yield str(request.param)
    emulator_module.set_order(os.environ.get("FEDKERN_EMULATOR_ORDER", "forward"))


@pytest.fixture(autouse=True)
def _no_errors(emulator_module: ModuleType) -> Iterator[None]:
    emulator_module.reset()
    yield
    emulator_module.reset()


Size = tuple[int, int, int]


class Planted:
    """Launches planted.cu's kernels on tensors."""

    def __init__(self, module: ModuleType) -> None:
        self.module = module

    def launch(
        self,
        kernel: str,
        grid: int | Size = 1,
        block: int | Size = 32,
        *,
        shared_bytes: int = 0,
        input: Tensor | None = None,
        output: Tensor | None = None,
        size: int = 32,
    ) -> str:
        """What cudaGetLastError says after the launch."""
        input = torch.zeros(1024) if input is None else input
        output = torch.zeros(1024) if output is None else output
        full = [x if isinstance(x, tuple) else (x, 1, 1) for x in (grid, block)]
        return str(
            self.module.planted.launch(
                kernel, *full, shared_bytes, input.data_ptr(), output.data_ptr(), size
            )
        )

    def runs(
        self, kernel: str, grid: int | Size = 1, block: int | Size = 32, **more: object
    ) -> None:
        error = self.launch(kernel, grid, block, **more)  # type: ignore[arg-type]
        assert error == "no error", self.module.last_message()


@pytest.fixture
def planted(emulator_module: ModuleType) -> Planted:
    return Planted(emulator_module)


# ---- right kernels ------------------------------------------------------------------------------


@pytest.mark.parametrize("blocks", [1, 3, 50])
def test_grid_stride_loop_and_block_reduction(planted: Planted, order: str, blocks: int) -> None:
    values = torch.arange(1000.0)
    output = torch.zeros(blocks)
    planted.runs("block_sums", blocks, 128, input=values, output=output, size=1000)
    of_block = torch.arange(1000) // 128 % blocks
    assert output.tolist() == [float(values[of_block == b].sum()) for b in range(blocks)]


@pytest.mark.parametrize(
    ("grid", "block"), [((2, 3, 4), (5, 6, 7)), ((7, 1, 1), (33, 1, 1)), ((1, 1, 2), (1, 1, 64))]
)
def test_each_thread_of_each_block_runs_once(
    planted: Planted, order: str, grid: Size, block: Size
) -> None:
    output = torch.zeros(torch.Size(grid).numel() * torch.Size(block).numel(), dtype=torch.int32)
    planted.runs("positions", grid, block, output=output)
    assert bool((output == 1).all())


def test_warp_and_block_collectives(planted: Planted, order: str) -> None:
    values = torch.randperm(32, generator=torch.Generator().manual_seed(0)).int()
    v = values.tolist()
    output = torch.full((18, 32), -1, dtype=torch.int32)
    planted.runs("warp_collectives", input=values, output=output)
    odd_lanes = sum(1 << i for i in range(32) if v[i] % 2)
    lanes = range(32)
    expected = [
        [v[5]] * 32,
        [v[i // 8 * 8 + (i + 1) % 8] for i in lanes],
        [v[i - 3] if i >= 3 else v[i] for i in lanes],
        [v[i - 3] if i % 8 >= 3 else v[i] for i in lanes],
        [v[i + 3] if i < 29 else v[i] for i in lanes],
        [v[i + 3] if i % 8 < 5 else v[i] for i in lanes],
        [v[i ^ 5] for i in lanes],
        # With a width of 8, the lanes 0 to 7 have nothing above them, 8 to 15 read 0 to 7, ...
        [v[i ^ 8] if i & 8 else v[i] for i in lanes],
        [odd_lanes] * 32,
        [1] * 32,
        [1] * 32,
        [31 * 32 // 2] * 32,
        [31] * 32,
        [sum(1 << j for j in lanes if v[j] % 4 == v[i] % 4) for i in lanes],
        [16] * 32,
        [1] * 32,
        [1] * 32,
        [v[i ^ 1] if i < 16 else sum(v[16:]) for i in lanes],
    ]
    as_int32 = torch.tensor(expected).to(torch.int32)  # ballots wrap around
    for row, (actual, wanted) in enumerate(zip(output, as_int32, strict=True)):
        assert torch.equal(actual, wanted), f"operation {row}"


def test_shuffles_of_64_and_16_bits(planted: Planted, order: str) -> None:
    values = torch.randn(32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    output = torch.zeros_like(values)
    planted.runs("shuffled_types", input=values, output=output)
    partner = values[torch.arange(32) ^ 1]
    # in CUDA's double, then float, arithmetic
    expected = partner + partner.half().double() + partner.float().bfloat16().double()
    assert torch.equal(output, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_dynamic_shared_memory(planted: Planted, order: str, dtype: torch.dtype) -> None:
    values = torch.arange(100, dtype=dtype)
    output = torch.zeros_like(values)
    name = {torch.float32: "float", torch.float64: "double"}[dtype]
    planted.runs(
        f"reversed_in_shared<{name}>",
        1,
        100,
        shared_bytes=100 * values.element_size(),
        input=values,
        output=output,
        size=100,
    )
    assert torch.equal(output, values.flip(0))


def test_atomics(planted: Planted, order: str) -> None:
    values = torch.randint(-100, 100, (1000,), generator=torch.Generator().manual_seed(0)).int()
    output = torch.zeros(8, dtype=torch.int32)
    planted.runs("atomics", 3, 64, input=values, output=output, size=1000)
    xor = 0
    for value in values.tolist():
        xor ^= value
    expected = [int(values.sum()), int(values.max()), int(values.min()), xor, 1, 1, 1000 % 10]
    assert output[:7].tolist() == expected
    assert output.view(torch.float32)[7] == 500


HALVES = {"__half": torch.float16, "__nv_bfloat16": torch.bfloat16}


@pytest.mark.parametrize("name", HALVES)
def test_every_half_becomes_the_same_float(planted: Planted, name: str) -> None:
    bits = torch.arange(2**16).to(torch.int32).to(torch.int16)
    values, output = bits.view(HALVES[name]), torch.zeros(2**16)
    planted.runs(f"(convert<{name}, float>)", 4, 256, input=bits, output=output, size=2**16)
    torch.testing.assert_close(output, values.float(), rtol=0, atol=0, equal_nan=True)
    assert torch.equal(output.signbit()[~output.isnan()], values.signbit()[~values.isnan()])


@pytest.mark.parametrize("source", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", HALVES)
def test_rounding_to_half(planted: Planted, name: str, source: torch.dtype) -> None:
    """Random bits, and each half's midpoint to the next with its neighbours on both sides."""
    dtype = HALVES[name]
    halves = torch.arange(2**16).to(torch.int32).to(torch.int16).view(dtype)
    next_up = (torch.arange(2**16) + 1).to(torch.int32).to(torch.int16).view(dtype)
    midpoints = ((halves.double() + next_up.double()) / 2).to(source)
    infinity = torch.tensor(torch.inf, dtype=source)
    random = torch.randint(-(2**31), 2**31, (10**5,), generator=torch.Generator().manual_seed(0))
    values = torch.cat(
        [
            halves.to(source),
            midpoints,
            midpoints.nextafter(infinity),
            midpoints.nextafter(-infinity),
            random.to(torch.int32).view(torch.float32).to(source),
            torch.tensor([65519.99, 65520, 3.39e38, 3.4028235e38, 1e-45, -0.0], dtype=source),
        ]
    )
    output = torch.zeros(len(values), dtype=torch.int16)
    kernel = f"(convert<{'float' if source == torch.float32 else 'double'}, {name}>)"
    planted.runs(kernel, 4, 256, input=values, output=output, size=len(values))
    actual = output.view(dtype)
    if source == torch.float64:
        # torch rounds twice, by way of float; CUDA once. Half a step is then never exceeded.
        finite = actual.isfinite() & values.isfinite()
        for neighbour in (output[finite] + 1, output[finite] - 1):
            closer = (neighbour.view(dtype).double() - values[finite]).abs()
            error = (actual[finite].double() - values[finite]).abs()
            assert not bool((closer < error).any())
    else:
        torch.testing.assert_close(actual, values.to(dtype), rtol=0, atol=0, equal_nan=True)
        assert torch.equal(actual.signbit()[~actual.isnan()], values.signbit()[~values.isnan()])


def test_launches_are_told(planted: Planted) -> None:
    planted.runs("vector_copy")
    planted.runs("reversed_in_shared<float>", shared_bytes=128)
    assert planted.module.launches() == ["vector_copy", "reversed_in_shared<float>"]
    planted.module.reset()
    assert planted.module.launches() == []


# ---- faults that end the launch -----------------------------------------------------------------

FAULTS = {
    "barrier_of_some": r"divergent barrier: thread .* waits at __syncthreads \(.*\), but .* exited",
    "barriers_of_two_branches": r"divergent barriers: .* __syncthreads .* __syncthreads",
    "barrier_meets_shuffle": r"__shfl_xor_sync .* but lane 0 waits at __syncthreads",
    "shuffle_without_some": r"__shfl_down_sync .* mask 0xffffffff, but lane 16 exited",
    "shuffle_meets_ballot": r"(__shfl_xor_sync .* __ballot_sync|__ballot_sync .* __shfl_xor_sync)",
    "shuffles_of_two_branches": r"__shfl_sync .* but lane \d+ waits at __shfl_sync",
    "masks_differ": r"0x7fffffff, but lane 1 waits at __shfl_xor_sync .* mask 0xffffffff",
    "caller_not_in_mask": r"the mask 0x0000ffff does not name the calling lane, (16|31)",
    "width_of_three": r"width must be 1, 2, 4, 8, 16 or 32, got 3",
    "traps": r"__trap\(\)",
}


@pytest.mark.parametrize("kernel", FAULTS)
def test_fault_is_found_and_stays_until_reset(planted: Planted, order: str, kernel: str) -> None:
    module = planted.module
    assert planted.launch(kernel, 1, 64, size=16) == "unspecified launch failure"
    assert re.search(
        rf"^{kernel}, block \(0, 0, 0\), thread .*{FAULTS[kernel]}", module.last_message()
    )
    # as after any failed kernel, nothing runs any more
    output = torch.zeros(32)
    again = planted.launch("vector_copy", input=torch.ones(32), output=output, size=8)
    assert again == "unspecified launch failure"
    assert not output.any()
    module.reset()
    planted.runs("vector_copy", input=torch.ones(32), output=output, size=8)
    assert output.all()


def test_mask_with_lanes_that_the_block_does_not_have(planted: Planted) -> None:
    assert planted.launch("shuffle_without_some", 1, 20) == "unspecified launch failure"
    assert "lane 20 is not in the block" in planted.module.last_message()


def test_failed_assert_tells_its_expression(planted: Planted, order: str) -> None:
    values = torch.zeros(32)
    values[5] = -1
    assert planted.launch("asserts", input=values) == "device-side assert triggered"
    assert planted.module.planted.last_error() == "device-side assert triggered"
    message = planted.module.last_message()
    assert "thread (5, 0, 0)" in message
    assert "input must not be negative" in message
    planted.module.reset()
    planted.runs("asserts", input=values.abs())


@pytest.mark.parametrize(("input_offset", "output_offset"), [(1, 0), (0, 2)])
def test_misaligned_vector_access(planted: Planted, input_offset: int, output_offset: int) -> None:
    values, output = torch.zeros(64), torch.zeros(64)
    assert values.data_ptr() % 16 == output.data_ptr() % 16 == 0
    error = planted.launch(
        "vector_copy", input=values[input_offset:], output=output[output_offset:], size=8
    )
    assert error == "misaligned address"
    assert "an access of 16 bytes is misaligned" in planted.module.last_message()


@pytest.mark.parametrize("size", [1, -1])
def test_write_out_of_dynamic_shared_memory(planted: Planted, order: str, size: int) -> None:
    planted.runs("past_dynamic_shared", shared_bytes=128, size=0)
    error = planted.launch("past_dynamic_shared", shared_bytes=128, size=size)
    assert error == "an illegal memory access was encountered"
    assert "its 128 bytes of dynamic shared memory" in planted.module.last_message()


# ---- faults that show in the result -------------------------------------------------------------


@pytest.mark.parametrize("kernel", ["missing_barrier", "missing_second_barrier"])
def test_missing_barrier_shows_in_one_order(emulator_module: ModuleType, kernel: str) -> None:
    """What a thread reads is not there yet, or no longer."""
    planted = Planted(emulator_module)
    values, results = torch.arange(1.0, 65), []
    for order in ("forward", "reverse"):
        emulator_module.set_order(order)
        results.append(torch.zeros(64))
        planted.runs(kernel, 1, 64, shared_bytes=256, input=values, output=results[-1], size=64)
    emulator_module.set_order(os.environ.get("FEDKERN_EMULATOR_ORDER", "forward"))
    assert not torch.equal(*results)


@pytest.mark.parametrize("kernel", ["uninitialised_static", "uninitialised_dynamic"])
def test_uninitialised_shared_memory_shows(planted: Planted, order: str, kernel: str) -> None:
    """In each block anew: the one before must not have left its values."""
    output = torch.zeros(32)
    for _ in range(2):
        planted.runs(kernel, 3, shared_bytes=128, output=output)
        expected = torch.ones(32)
        expected[1::2] = POISON[order]
        torch.testing.assert_close(output, expected, rtol=0, atol=0, equal_nan=True)


# ---- launches that a GPU refuses ----------------------------------------------------------------

REFUSED = [
    ((0, 1, 1), 32),
    ((1, 0, 1), 32),
    ((1, 1, 0), 32),
    ((2**31, 1, 1), 32),
    ((1, 65536, 1), 32),
    ((1, 1, 65536), 32),
    (1, (0, 1, 1)),
    (1, (1025, 1, 1)),
    (1, (1, 1025, 1)),
    (1, (1, 1, 65)),
    (1, (32, 33, 1)),
    # the product wraps around to 0 in 32 bits
    (1, (65536, 65536, 1)),
]


@pytest.mark.parametrize(("grid", "block"), REFUSED, ids=str)
def test_refused_launch_is_told_once(planted: Planted, grid: int | Size, block: int | Size) -> None:
    output = torch.zeros(1024, dtype=torch.int32)
    assert (
        planted.launch("positions", grid, block, output=output) == "invalid configuration argument"
    )
    assert not output.any()
    assert planted.module.launches() == []
    assert planted.module.planted.last_error() == "no error"
    planted.runs("positions", 1, (32, 32, 1), output=output)
    assert output.all()


def test_dynamic_shared_memory_must_be_asked_for(planted: Planted) -> None:
    module = planted.module.planted
    kernel, other = "reversed_in_shared<float>", "reversed_in_shared<double>"
    planted.runs(kernel, shared_bytes=48 * 1024)
    assert planted.launch(kernel, shared_bytes=48 * 1024 + 1) == "invalid argument"
    assert "cudaFuncSetAttribute can allow more" in planted.module.last_message()
    assert module.allow_shared_bytes(kernel, 227 * 1024 + 1) == "invalid argument"
    assert module.last_error() == "invalid argument"
    assert module.allow_shared_bytes(kernel, 227 * 1024) == "no error"
    planted.runs(kernel, shared_bytes=227 * 1024)
    assert planted.launch(kernel, shared_bytes=227 * 1024 + 1) == "invalid argument"
    assert planted.launch(other, shared_bytes=48 * 1024 + 1) == "invalid argument"


# ---- sanitizers ---------------------------------------------------------------------------------


@pytest.fixture
def sanitized_environment(emulator_module: ModuleType) -> dict[str, str]:
    if len(sanitize.libraries()) < 2:
        pytest.skip("g++ has no sanitizers here")
    return build.sanitized_environment()


# A child process, which the sanitizer ends.
LAUNCH_SANITIZED = """
import sys, torch
from cuda_emulator import build
output = torch.zeros(256)
kernel, shared_bytes, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
grid, block, planted = (1, 1, 1), (32, 1, 1), build.load(sanitize=True).planted
for s in (0, size):
    error = planted.launch(kernel, grid, block, shared_bytes, 0, output.data_ptr(), s)
    print(error, flush=True)
"""
SANITIZED = [
    ("unchecked_vector_load", 128, 1, "access within misaligned address"),
    ("past_dynamic_shared", 128, 1, "use-after-poison"),
    ("past_dynamic_shared", 128, -1, "use-after-poison"),
    ("past_static_shared<32>", 0, 1, "global-buffer-overflow"),
    ("past_global_memory", 0, 256, "heap-buffer-overflow"),
    ("past_local_array", 0, 4, "stack-buffer-overflow"),
]


@pytest.mark.parametrize(("kernel", "shared_bytes", "size", "report"), SANITIZED)
def test_sanitizers_find(
    sanitized_environment: dict[str, str], kernel: str, shared_bytes: int, size: int, report: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LAUNCH_SANITIZED, kernel, str(shared_bytes), str(size)],
        env={**sanitized_environment, "PYTHONPATH": f"{TESTS}:{os.environ.get('PYTHONPATH', '')}"},
        capture_output=True,
        text=True,
    )
    assert done.stdout.splitlines() == ["no error"], done.stdout + done.stderr  # in bounds
    assert report in done.stderr, done.stderr


# ---- the operators, emulated --------------------------------------------------------------------


def test_enabled_device_runs_the_cuda_kernels(emulated: ModuleType) -> None:
    labels = torch.arange(10) % 3
    assert fedkern.class_counts(labels, 3).tolist() == [4, 3, 3]
    launches = len(emulated.launches())
    assert launches >= 1
    emulated.disable()
    assert fedkern.class_counts(labels, 3).tolist() == [4, 3, 3]
    assert len(emulated.launches()) == launches


def test_failed_kernel_raises_in_python(emulated: ModuleType) -> None:
    with pytest.raises(
        RuntimeError, match=r"CUDA error: device-side assert triggered\n.*Assertion"
    ):
        fedkern.class_counts(torch.tensor([0, 7]), 3)
    with pytest.raises(RuntimeError, match="device-side assert triggered"):
        fedkern.class_counts(torch.tensor([0, 1]), 3)
    emulated.reset()
    assert fedkern.class_counts(torch.tensor([0, 1]), 3).tolist() == [1, 1, 0]


OPERATORS_TESTS = [
    "test_operator_contract.py",
    "test_calibrated_ce.py",
    "test_class_counts.py",
    "test_logit_adjusted_ce.py",
]


def run_operators_tests(environment: dict[str, str]) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, "-k", "emulated", *OPERATORS_TESTS],
        env=environment,
        cwd=TESTS,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout, done.stdout


def test_operators_in_reverse_order(emulator_module: ModuleType) -> None:
    run_operators_tests({**os.environ, "FEDKERN_EMULATOR_ORDER": "reverse"})


def test_operators_under_sanitizers(sanitized_environment: dict[str, str]) -> None:
    run_operators_tests(sanitized_environment)
