"""What every operator of the library must do. operators/ lists them, with what each needs.

An operator without an entry fails here. The operators' own tests go further.
"""

import inspect
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from cpu_capabilities import CAPABILITIES, run_tests_with
from device_calls import DeviceCalls
from operators import OPERATORS, Arguments, Operator, map_tensors, tensors_of
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import fedkern
from fedkern import reference

ROOT = Path(__file__).parent.parent


@pytest.fixture(params=OPERATORS.values(), ids=OPERATORS)
def operator(request: pytest.FixtureRequest) -> Operator:
    entry: Operator = request.param
    return entry


def needs(part: object) -> None:
    """Skip what an entry says does not apply."""
    if isinstance(part, str):
        pytest.skip(part)


def to(arguments: Arguments, *args: Any) -> Arguments:
    return map_tensors(lambda a: a.to(*args), arguments)


def tracked(operator: Operator, arguments: Arguments) -> Arguments:
    """With copies that require grad where there are derivatives."""
    assert not isinstance(operator.differentiable, str)
    return tuple(
        map_tensors(lambda a: a.clone().requires_grad_(), a) if i in operator.differentiable else a
        for i, a in enumerate(arguments)
    )


def said_of(arguments: Arguments) -> Any:
    return lambda message: f"{message}\n{arguments}"


def test_every_operator_has_an_entry() -> None:
    registered = {
        name.removeprefix("fedkern::").partition(".")[0]
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith("fedkern::")
    }
    assert registered == set(OPERATORS)


# ---- one stem in every layer --------------------------------------------------------------------


def test_documented(operator: Operator) -> None:
    stem = operator.stem
    header = (ROOT / f"csrc/ops/{stem}.h").read_text(encoding="utf-8")
    contract = header.split("#include")[0]
    for argument in operator.op._schema.arguments:
        if argument.name in ("calibration", "reduction", "label_smoothing", "compute_gradient"):
            continue  # the formulas' header and the public docstring have these
        assert argument.name.split("_")[0] in contract, argument.name
    if isinstance(operator.documented, str):
        assert f"{stem}.h" in operator.documented
        return
    docstring = inspect.getdoc(operator.documented) or ""
    for section in ("Args:", "Returns:", "Raises:"):
        assert section in docstring
    for name in inspect.signature(operator.documented).parameters:
        assert f"    {name}:" in docstring, name


def test_its_files_bear_its_name(operator: Operator) -> None:
    stem = operator.stem
    for file in (
        f"csrc/ops/cpu/{stem}.cpp",
        f"csrc/ops/cuda/{stem}.cpp",
        f"csrc/ops/cuda/{stem}_kernel.cu",
        f"fedkern/reference/{operator.family}.py",
        f"tests/test_{operator.family}.py",
        f"benchmarks/bench_{operator.family}.py",
    ):
        wanted = operator.cuda_kernel or not file.endswith(".cu")
        assert (ROOT / file).is_file() == wanted, file
    assert hasattr(reference, operator.family)
    documentation = (ROOT / "docs/performance.md").read_text(encoding="utf-8")
    assert f"\n## {operator.family}\n" in documentation


def test_every_backend_has_a_kernel(operator: Operator) -> None:
    keys = ["CPU", "Meta"]
    if fedkern.build_info()["cuda_architectures"]:
        keys.append("CUDA")
    if not isinstance(operator.differentiable, str):
        keys.append("AutogradCPU")
    if operator.vmap is None:
        keys.append("FuncTorchBatched")
    for key in keys:
        found = torch._C._dispatch_has_computed_kernel_for_dispatch_key(
            f"fedkern::{operator.name}", key
        )
        assert found, key


# ---- values -------------------------------------------------------------------------------------


def test_equals_its_twin(operator: Operator, device: str) -> None:
    smallest = []
    for dtype in operator.dtypes:
        for arguments in operator.samples(dtype):
            actual = operator.call(to(arguments, device))
            expected = operator.call_twin(arguments)
            for a, e in zip(actual, expected, strict=True):
                if a.is_floating_point():
                    assert a.dtype == (operator.result_dtype or dtype)
                    e = e.to(a.dtype)
                torch.testing.assert_close(a.cpu(), e, msg=said_of(arguments))
            smallest.append(min(a.numel() for a in tensors_of((*arguments, *actual))))
    assert 0 in smallest, "an empty sample is wanted"


def test_strides_do_not_matter(operator: Operator, device: str) -> None:
    needs(operator.strides)

    def every_other(t: Tensor) -> Tensor:
        return t.repeat_interleave(2, -1)[..., ::2]

    def turned(t: Tensor) -> Tensor:
        return t.movedim(0, -1).contiguous().movedim(-1, 0)

    def offset(t: Tensor) -> Tensor:
        return torch.cat([t.new_zeros(1), t.flatten()])[1:].view(t.shape)

    for arguments, change in itertools.product(
        operator.samples(operator.dtypes[0]), (every_other, turned, offset)
    ):
        expected = operator.call(to(arguments, device))
        changed = map_tensors(
            lambda a, change=change: change(a) if a.dim() else a, to(arguments, device)
        )
        for a, e in zip(operator.call(changed), expected, strict=True):
            torch.testing.assert_close(a, e)


def test_large_offsets_change_nothing(operator: Operator, device: str) -> None:
    needs(operator.offset)
    position = operator.offset
    assert isinstance(position, int)
    for arguments in operator.samples(torch.float64):
        plain = operator.call(to(arguments, device))
        for offset in (-1e8, 1e8):
            moved = to(
                tuple(a + offset if i == position else a for i, a in enumerate(arguments)), device
            )
            for a, e in zip(operator.call(moved), plain, strict=True):
                # The sum with the offset keeps half of float64's digits.
                torch.testing.assert_close(a, e, rtol=1e-6, atol=1e-6)


def test_nan_and_infinity(operator: Operator, device: str) -> None:
    needs(operator.nonfinite)
    for arguments in operator.nonfinite:
        actual = operator.call(to(arguments, device))
        expected = operator.call_twin(arguments)
        for a, e in zip(actual, expected, strict=True):
            torch.testing.assert_close(a.cpu(), e.to(a.dtype), equal_nan=True)


def test_same_bits_for_any_number_of_threads(operator: Operator) -> None:
    for dtype in operator.dtypes:
        arguments = operator.large(dtype)
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(operator.call(arguments))
        for other in results[1:]:
            assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_every_cpu_capability(capability: str) -> None:
    """The values again with each vector width this machine has, in a process made to use it."""
    chosen = "(twin or strides or offsets or infinity or threads) and not emulated"
    run_tests_with(capability, __file__, chosen)


# ---- torch's machinery --------------------------------------------------------------------------


def test_meta_tensors_have_the_results_shapes(operator: Operator) -> None:
    for dtype in operator.dtypes:
        for arguments in operator.samples(dtype):
            real = operator.call(arguments)
            meta = operator.call(to(arguments, "meta"))
            with FakeTensorMode(allow_non_fake_inputs=True) as mode:
                fake = operator.call(map_tensors(mode.from_tensor, arguments))
            for r, *others in zip(real, meta, fake, strict=True):
                for other in others:
                    assert (r.shape, r.dtype, r.stride()) == (
                        other.shape,
                        other.dtype,
                        other.stride(),
                    )


def test_opcheck(operator: Operator) -> None:
    for arguments in operator.samples(operator.dtypes[0]):
        torch.library.opcheck(operator.op, tuple(a for a in arguments))
        if not isinstance(operator.differentiable, str):
            torch.library.opcheck(operator.op, tracked(operator, arguments))


def derivatives(call: Any, operator: Operator, arguments: Arguments) -> list[Tensor]:
    """First derivatives for fixed random cotangents; theirs by the arguments and the cotangents.

    That of a linear operator depends on its cotangents alone.
    """
    assert not isinstance(operator.differentiable, str)
    arguments = tracked(operator, arguments)
    by = tensors_of([arguments[i] for i in operator.differentiable])
    generator = torch.Generator().manual_seed(7)

    def random_like(t: Tensor) -> Tensor:
        return torch.randn(t.shape, dtype=torch.float64, generator=generator)

    results = [r for r in call(arguments) if r.requires_grad]
    cotangents = [random_like(r).requires_grad_() for r in results]
    first = torch.autograd.grad(results, by, cotangents, create_graph=True)
    by += cotangents
    second = torch.autograd.grad(first, by, [random_like(f) for f in first], allow_unused=True)
    return [
        *first,
        *(torch.zeros_like(b) if s is None else s for s, b in zip(second, by, strict=True)),
    ]


def test_derivatives_equal_the_twins(operator: Operator) -> None:
    needs(operator.differentiable)
    for arguments in operator.samples(torch.float64):
        actual = derivatives(operator.call, operator, arguments)
        expected = derivatives(operator.call_twin, operator, arguments)
        for a, e in zip(actual, expected, strict=True):
            torch.testing.assert_close(a, e, msg=said_of(arguments))


def test_a_mapped_call_is_one_call(operator: Operator) -> None:
    """Under vmap, whichever arguments are mapped, along whichever dimension; nested, too."""

    def stack(a: Tensor) -> Tensor:
        return torch.stack([a, a.flip(0) if a.dim() else a], dim=-1)

    if operator.vmap:
        pytest.skip(operator.vmap)
    for arguments in operator.samples(operator.dtypes[0]):
        tensors = [i for i, a in enumerate(arguments) if tensors_of(a)]
        for mapped in itertools.chain.from_iterable(
            itertools.combinations(tensors, n) for n in range(1, len(tensors) + 1)
        ):
            stacks = tuple(
                map_tensors(stack, a) if i in mapped else a for i, a in enumerate(arguments)
            )
            in_dims = tuple(-1 if i in mapped else None for i in range(len(arguments)))
            with DeviceCalls() as calls:
                actual = torch.vmap(lambda *a: operator.call(a), in_dims=in_dims)(*stacks)
            expected = [
                operator.call(
                    tuple(
                        map_tensors(lambda s, k=k: s.select(-1, k), s) if i in mapped else s
                        for i, s in enumerate(stacks)
                    )
                )
                for k in range(2)
            ]
            for a, *e in zip(actual, *expected, strict=True):
                if a.numel() or e[0].numel():
                    torch.testing.assert_close(a, torch.stack(e), equal_nan=True)
            assert sum(calls.ours().values()) == 1, calls.ours()


# ---- bad input ----------------------------------------------------------------------------------


def test_bad_input_names_the_argument(operator: Operator) -> None:
    assert operator.bad_inputs
    for error, message, arguments in operator.bad_inputs:
        with pytest.raises(error, match=message) as raised:
            operator.op(*arguments)
        assert str(raised.value).startswith(f"{operator.stem}: ")
