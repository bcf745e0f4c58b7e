"""fedkern.simplex.interpolate against its slow twin, and under torch's machinery."""

import math
from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from accuracy import DTYPES, assert_as_accurate
from cpu_capabilities import CAPABILITIES, expected_capability, run_tests_with
from device_calls import DeviceCalls
from hypothesis import given, settings
from hypothesis import strategies as st
from operators._entry import randn
from torch import Tensor
from torch.func import functional_call, grad, jvp, vmap

import fedkern
from fedkern import reference
from fedkern.simplex import interpolate

# A scalar; a vector's tail; one more than the widest tile of registers; a convolution; one more
# than a piece of a CPU's row (2048) or of a GPU's (512 to 2048); than a piece of a GPU's backward
# (2048 to 8192).
SHAPES = [(), (7,), (257,), (4, 3, 5, 5), (2049,), (8193,)]
# One; two; the published number; more than any tile of endpoints.
ENDPOINTS = [1, 2, 10, 64]
# A point; less and more than tiles of 4 points; more than a slice of 16.
POINTS = [None, 3, 17]


def make_endpoints(
    num_endpoints: int, dtype: torch.dtype = torch.float64, shapes: list[tuple[int, ...]] = SHAPES
) -> list[Tensor]:
    return [randn(num_endpoints, *s, dtype=dtype, seed=i) for i, s in enumerate(shapes)]


def make_alpha(num_points: int | None, num_endpoints: int) -> Tensor:
    shape = (num_endpoints,) if num_points is None else (num_points, num_endpoints)
    return randn(*shape, seed=99).softmax(-1)


Interpolate = Callable[[list[Tensor], Tensor], list[Tensor]]


def values_and_gradients(
    function: Interpolate, endpoints: list[Tensor], alpha: Tensor
) -> tuple[list[Tensor], list[Tensor]]:
    """The results, and the gradients by endpoints and alpha for fixed upstream gradients.

    These are numbers of 8 bits, which every dtype holds.
    """
    arguments = [t.detach().requires_grad_() for t in (*endpoints, alpha)]
    results = function(arguments[:-1], arguments[-1])
    upstream = [
        randn(*r.shape, dtype=torch.bfloat16, seed=7 + i).to(r) for i, r in enumerate(results)
    ]
    gradients = torch.autograd.grad(results, arguments, upstream)
    return [r.detach() for r in results], list(gradients)


def flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([t.flatten() for t in tensors]).cpu()


# ---- values -------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_points", POINTS)
@pytest.mark.parametrize("num_endpoints", ENDPOINTS)
@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_accuracy_is_that_of_the_plain_formula(
    num_points: int | None, num_endpoints: int, dtype: torch.dtype, device: str
) -> None:
    endpoints = [t.to(device) for t in make_endpoints(num_endpoints, dtype)]
    alpha = make_alpha(num_points, num_endpoints).float().to(device)
    kernel = values_and_gradients(interpolate, endpoints, alpha)
    naive = values_and_gradients(reference.simplex_interpolate, endpoints, alpha)
    truth = values_and_gradients(
        reference.simplex_interpolate, [t.double() for t in endpoints], alpha.double()
    )
    for k, n, t, what in (
        (kernel[0], naive[0], truth[0], "results"),
        (kernel[1][:-1], naive[1][:-1], truth[1][:-1], "gradients by endpoints"),
        (kernel[1][-1:], naive[1][-1:], truth[1][-1:], "gradient by alpha"),
    ):
        assert [x.shape for x in k] == [x.shape for x in t]
        assert_as_accurate(flat(k), flat(n), flat(t), what)


@pytest.mark.parametrize("num_points", POINTS)
@pytest.mark.parametrize("num_endpoints", ENDPOINTS)
def test_equals_einsum(num_points: int | None, num_endpoints: int, device: str) -> None:
    def einsum(endpoints: list[Tensor], alpha: Tensor) -> list[Tensor]:
        formula = "m,m...->..." if alpha.dim() == 1 else "gm,m...->g..."
        return [torch.einsum(formula, alpha, tensor) for tensor in endpoints]

    endpoints = [t.to(device) for t in make_endpoints(num_endpoints)]
    alpha = make_alpha(num_points, num_endpoints).to(device)
    actual = values_and_gradients(interpolate, endpoints, alpha)
    torch.testing.assert_close(actual, values_and_gradients(einsum, endpoints, alpha))


def test_a_tensor_for_a_tensor_a_list_for_a_list(device: str) -> None:
    endpoints, alpha = randn(3, 4, 5).to(device), make_alpha(2, 3).to(device)
    tensor = interpolate(endpoints, alpha)
    assert isinstance(tensor, Tensor)
    for sequence in ([endpoints], (endpoints,)):
        (only,) = results = interpolate(sequence, alpha)
        assert isinstance(results, list)
        assert torch.equal(only, tensor)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_other_tensors_of_a_list_do_not_matter(dtype: torch.dtype, device: str) -> None:
    """Not even where they are more than a launch takes (48), or begin at any address."""
    sizes = [*range(40), 2049, *range(40, 0, -1)]
    buffer = randn(3, sum(sizes), dtype=dtype).to(device)
    endpoints = list(buffer.split(sizes, dim=1))
    for alpha in (make_alpha(None, 3).to(device), make_alpha(2, 3).to(device)):
        results, gradients = values_and_gradients(interpolate, endpoints, alpha)
        for tensor, result in zip(endpoints, results, strict=True):
            assert torch.equal(interpolate(tensor.contiguous(), alpha), result)
        expected = values_and_gradients(
            reference.simplex_interpolate, [t.double() for t in endpoints], alpha
        )
        for actual, truth in zip(gradients, expected[1], strict=True):
            torch.testing.assert_close(actual, truth.to(actual.dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_large_inner_products_are_rounded_once(dtype: torch.dtype) -> None:
    """A million products that nearly cancel: what is left is right to the last place."""
    size = 1_000_000
    theta = randn(2, size, dtype=dtype)
    upstream = randn(size, dtype=dtype, seed=1)
    alpha = torch.ones(2, requires_grad=True)  # float32: rounding is to this dtype
    interpolate(theta, alpha).backward(upstream)
    products = theta.double() * upstream.double()
    assert alpha.grad is not None
    for m in range(2):
        truth = math.fsum(products[m].tolist())
        # float64 sums of up to 64 partial ones err by the last, at most, of 2^20 terms each
        summed = torch.finfo(torch.float64).eps * size * float(products[m].abs().max())
        rounded = torch.finfo(torch.float32).eps / 2 * abs(truth)
        assert abs(float(alpha.grad[m]) - truth) <= rounded + summed


@pytest.mark.parametrize("alpha_dtype", DTYPES, ids=str)
def test_alpha_keeps_its_dtype(alpha_dtype: torch.dtype, device: str) -> None:
    endpoints = [t.to(device) for t in make_endpoints(3, torch.float32)]
    alpha = make_alpha(None, 3).to(device, alpha_dtype)
    results, gradients = values_and_gradients(interpolate, endpoints, alpha)
    assert gradients[-1].dtype == alpha_dtype
    assert {t.dtype for t in (*results, *gradients[:-1])} == {torch.float32}
    expected = values_and_gradients(interpolate, endpoints, alpha.float())
    torch.testing.assert_close(results, expected[0])
    torch.testing.assert_close(gradients[-1], expected[1][-1].to(alpha_dtype))


@settings(deadline=None)
@given(st.integers(1, 20), st.integers(0, 300), st.integers(0, 2**32), st.sampled_from(DTYPES))
def test_points_lie_between_the_endpoints(
    num_endpoints: int, size: int, seed: int, dtype: torch.dtype
) -> None:
    endpoints = randn(num_endpoints, size, dtype=dtype, seed=seed)
    vertices = interpolate(endpoints, torch.eye(num_endpoints))
    assert torch.equal(vertices, endpoints)
    inside = interpolate(endpoints, randn(num_endpoints, seed=seed).softmax(0)).double()
    # the weights' sum and each of the M additions err by half an ulp
    slack = (num_endpoints + 2) * torch.finfo(dtype).eps * endpoints.double().abs().amax(0)
    assert bool((inside <= endpoints.double().amax(0) + slack).all())
    assert bool((inside >= endpoints.double().amin(0) - slack).all())


# ---- where tensors lie --------------------------------------------------------------------------


def allocated_by(call: Callable[[], object]) -> int:
    with torch.autograd.profiler.profile(profile_memory=True) as profile:
        call()
    return sum(max(0, event.self_cpu_memory_usage) for event in profile.function_events)


def test_views_of_a_flat_buffer_are_not_copied() -> None:
    sizes = [math.prod(shape) for shape in SHAPES]
    buffer = randn(10, sum(sizes) + 5, dtype=torch.float32)[:, 5:]
    views = [
        part.unflatten(1, shape) if shape else part.squeeze(1)
        for part, shape in zip(buffer.split(sizes, dim=1), SHAPES, strict=True)
    ]
    alpha = make_alpha(None, 10).float()
    interpolate(views, alpha)  # what is loaded once does not count
    allocated = allocated_by(lambda: interpolate(views, alpha))
    assert allocated <= 4 * sum(sizes) + 64 * len(sizes)
    torch.testing.assert_close(
        interpolate(views, alpha), reference.simplex_interpolate(views, alpha)
    )


def test_backward_allocates_gradients_alone() -> None:
    """And, for alpha's, 8 bytes a pair for every 2048 elements."""
    endpoints, alpha = randn(10, 20_000, dtype=torch.float32), make_alpha(None, 10).float()
    upstream = randn(20_000, dtype=torch.float32)
    leaves = [endpoints.requires_grad_(), alpha.requires_grad_()]
    result = interpolate(endpoints, alpha)
    gradients = allocated_by(
        lambda: torch.autograd.grad(result, leaves[:1], upstream, retain_graph=True)
    )
    assert endpoints.nbytes <= gradients <= endpoints.nbytes + 1024
    gradients = allocated_by(lambda: torch.autograd.grad(result, leaves[1:], upstream))
    assert gradients <= 10 * 10 * 8 + 1024


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_any_strides_give_what_contiguous_endpoints_give(dtype: torch.dtype, device: str) -> None:
    base = randn(4, 6, 8, 10, dtype=dtype).to(device)
    views = [
        base.contiguous(memory_format=torch.channels_last),
        base.transpose(2, 3),
        base.movedim(0, -1).contiguous().movedim(-1, 0),
        base[:, ::2, :, ::3],
        base[:, 1:],
        base[:1].expand(4, -1, -1, -1),
        base[:, :1, :1].expand(-1, 3, 2, -1),
        base[:, 0, 0, 0],
        base.flip(0),
    ]
    for alpha in (make_alpha(None, 4).to(device), make_alpha(17, 4).to(device)):
        actual = values_and_gradients(interpolate, views, alpha)
        expected = values_and_gradients(interpolate, [v.contiguous() for v in views], alpha)
        for a, e in zip((*actual[0], *actual[1]), (*expected[0], *expected[1]), strict=True):
            assert torch.equal(a, e)
        assert all(result.is_contiguous() for result in actual[0])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_any_alignment(dtype: torch.dtype, device: str) -> None:
    """Rows that begin at, or between, 16-byte boundaries, together and each in its own way."""
    for size in (64, 65):
        for offset in range(9):
            flat_endpoints = randn(offset + 5 * size, dtype=dtype).to(device)
            endpoints = flat_endpoints[offset:].view(5, size)
            for alpha in (make_alpha(None, 5).to(device), make_alpha(6, 5).to(device)):
                actual = values_and_gradients(interpolate, [endpoints], alpha)
                expected = values_and_gradients(
                    reference.simplex_interpolate, [endpoints.double()], alpha
                )
                for a, e in zip(
                    (*actual[0], *actual[1]), (*expected[0], *expected[1]), strict=True
                ):
                    torch.testing.assert_close(a, e.to(a.dtype))


def test_expanded_upstream_gradients(device: str) -> None:
    """Those of a sum have stride 0."""
    endpoints, alpha = randn(3, 40).to(device).requires_grad_(), make_alpha(2, 3).to(device)
    interpolate(endpoints, alpha).sum().backward()
    torch.testing.assert_close(endpoints.grad, alpha.sum(0)[:, None].expand(3, 40))


def test_offsets_beyond_32_bits(device: str) -> None:
    """Endpoints that lie so far apart; what lies between them is never touched."""
    if device == "cuda":
        pytest.skip("a GPU has no memory that nothing is written to")
    stride, size = 2**31 + 8, 20
    try:
        buffer = torch.empty(stride + size, dtype=torch.bfloat16)
    except RuntimeError:
        pytest.skip("needs 4 GB of address space")
    endpoints = buffer.as_strided((2, size), (stride, 1))
    endpoints.copy_(randn(2, size))
    alpha = make_alpha(None, 2)
    actual = values_and_gradients(interpolate, [endpoints], alpha)
    expected = values_and_gradients(interpolate, [endpoints.contiguous()], alpha)
    for a, e in zip((*actual[0], *actual[1]), (*expected[0], *expected[1]), strict=True):
        assert torch.equal(a, e)


def test_the_order_of_a_gpus_threads_does_not_matter(emulated: ModuleType) -> None:
    endpoints, alpha = make_endpoints(10, torch.float32), make_alpha(3, 10)
    runs = []
    try:
        for order in ("forward", "reverse"):
            emulated.set_order(order)
            results, gradients = values_and_gradients(interpolate, endpoints, alpha)
            runs.append([*results, *gradients])
    finally:
        emulated.set_order("forward")
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


# ---- derivatives --------------------------------------------------------------------------------


@pytest.mark.parametrize("num_points", [None, 2])
@pytest.mark.parametrize("which", ["both", "endpoints", "alpha", "one tensor"])
def test_gradcheck(num_points: int | None, which: str, device: str) -> None:
    endpoints = [t.to(device) for t in make_endpoints(3, shapes=[(2, 2), (), (3,)])]
    alpha = make_alpha(num_points, 3).to(device)
    tracked = {
        "both": [*endpoints, alpha],
        "endpoints": endpoints,
        "alpha": [alpha],
        "one tensor": endpoints[1:2],
    }[which]
    for tensor in tracked:
        tensor.requires_grad_()

    def function(*arguments: Tensor) -> list[Tensor]:
        return [r for r in interpolate(arguments[:-1], arguments[-1]) if r.requires_grad]

    assert torch.autograd.gradcheck(function, (*endpoints, alpha))
    assert torch.autograd.gradgradcheck(function, (*endpoints, alpha))


@pytest.mark.parametrize("num_points", [None, 3])
def test_third_derivatives_equal_the_twins(num_points: int | None) -> None:
    def third(function: Interpolate) -> tuple[Tensor, ...]:
        endpoints = [t.requires_grad_() for t in make_endpoints(4, shapes=[(5,), (2, 3)])]
        alpha = make_alpha(num_points, 4).requires_grad_()
        leaves = [*endpoints, alpha]
        value = sum((r**3).sum() for r in function(endpoints, alpha))
        for order in range(3):
            gradients = torch.autograd.grad(value, leaves, create_graph=order < 2)
            value = sum((g**2).sum() for g in gradients)
        return gradients

    torch.testing.assert_close(third(interpolate), third(reference.simplex_interpolate))


def test_results_that_nobody_uses(device: str) -> None:
    """Their endpoints get no gradient, and alpha's is that of the others."""
    endpoints = [t.to(device).requires_grad_() for t in make_endpoints(3)]
    alpha = make_alpha(None, 3).to(device).requires_grad_()
    used = interpolate(endpoints, alpha)[2]
    *by_endpoints, by_alpha = torch.autograd.grad(
        used.sum(), [*endpoints, alpha], allow_unused=True
    )
    assert [g is not None for g in by_endpoints] == [i == 2 for i in range(len(endpoints))]
    torch.testing.assert_close(by_alpha, endpoints[2].detach().sum(1))


def test_endpoints_may_be_overwritten_where_alpha_is_constant() -> None:
    """An optimiser's step between forward and backward: their gradient does not look at them."""
    leaf, alpha = randn(3, 5).requires_grad_(), make_alpha(None, 3)
    endpoints = leaf * 1
    result = interpolate(endpoints, alpha)
    endpoints.detach().zero_()
    result.sum().backward()
    torch.testing.assert_close(leaf.grad, alpha[:, None].expand(3, 5))


def test_overwritten_endpoints_are_noticed() -> None:
    endpoints, alpha = randn(3, 5), make_alpha(None, 3).requires_grad_()
    result = interpolate(endpoints, alpha)
    endpoints.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        result.sum().backward()


def test_backward_twice() -> None:
    endpoints, alpha = randn(3, 5).requires_grad_(), make_alpha(None, 3).requires_grad_()
    total = interpolate(endpoints, alpha).sum()
    first = torch.autograd.grad(total, (endpoints, alpha), retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(total, (endpoints, alpha)), first)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(total, (endpoints, alpha))


def test_forward_mode_is_refused() -> None:
    endpoints, alpha = randn(3, 5), make_alpha(None, 3)
    for primals, function in (
        (alpha, lambda a: interpolate(endpoints, a)),
        (endpoints, lambda e: interpolate(e, alpha)),
    ):
        with pytest.raises(NotImplementedError, match="simplex_interpolate: forward-mode"):
            jvp(function, (primals,), (torch.ones_like(primals),))


# ---- torch.func ---------------------------------------------------------------------------------


Model = dict[str, Tensor]

# Clients (the outer map) and draws of alpha (the inner one): which of endpoints' two tensors and
# alpha each maps.
NESTED = {
    "clients' endpoints, their alphas": ((0, 0, 0), (None, None, 0)),
    "shared endpoints": ((None, None, 0), (None, None, 0)),
    "clients' endpoints, shared alphas": ((0, 0, None), (None, None, 0)),
    "endpoints twice": ((0, 0, None), (0, 0, None)),
    "everything twice": ((0, 0, 0), (0, 0, 0)),
    "alpha, then endpoints": ((None, None, 0), (0, 0, None)),
    "one tensor of the list": ((0, None, None), (None, 1, 0)),
}


@pytest.mark.parametrize("num_points", [None, 2])
@pytest.mark.parametrize("name", NESTED)
def test_nested_vmaps_are_one_call(name: str, num_points: int | None, device: str) -> None:
    outer, inner = NESTED[name]

    def stacked(shape: tuple[int, ...], place: int) -> Tensor:
        """With the inner map's dimension, then the outer one's in front."""
        if inner[place] is not None:
            shape = (*shape[: inner[place]], 4, *shape[inner[place] :])
        if outer[place] is not None:
            shape = (2, *shape)
        return randn(*shape, seed=place).to(device)

    alpha_shape = (3,) if num_points is None else (num_points, 3)
    arguments = (stacked((3, 2, 5), 0), stacked((3,), 1), stacked(alpha_shape, 2))

    def with_(function: Interpolate) -> Callable[..., list[Tensor]]:
        return vmap(vmap(lambda a, b, alpha: function([a, b], alpha), in_dims=inner), in_dims=outer)

    with DeviceCalls() as calls:
        actual = with_(interpolate)(*arguments)
    torch.testing.assert_close(actual, with_(reference.simplex_interpolate)(*arguments))
    assert calls.ours() == {"simplex_interpolate": 1}

    def total(function: Interpolate) -> Callable[..., Tensor]:
        return lambda a, b, alpha: sum((r**2).sum() for r in function([a, b], alpha))

    def gradients(function: Interpolate) -> Callable[..., tuple[Tensor, ...]]:
        return vmap(vmap(grad(total(function), argnums=(0, 1, 2)), in_dims=inner), in_dims=outer)

    with DeviceCalls() as calls:
        actual = gradients(interpolate)(*arguments)
    torch.testing.assert_close(actual, gradients(reference.simplex_interpolate)(*arguments))
    assert sum(calls.ours().values()) == 3  # forward, endpoints' gradient, alpha's gradient


def test_gradients_of_a_batch_of_models() -> None:
    """A model's parameters interpolated for each sample of a batch, then called."""
    model = torch.nn.Linear(4, 2).double()
    endpoints = {k: randn(3, *p.shape, seed=i) for i, (k, p) in enumerate(model.named_parameters())}
    alphas, inputs = make_alpha(5, 3), randn(5, 4)

    def loss(function: Interpolate) -> Callable[[Model, Tensor, Tensor], Tensor]:
        def of_sample(endpoints: Model, alpha: Tensor, x: Tensor) -> Tensor:
            parameters = dict(zip(endpoints, function([*endpoints.values()], alpha), strict=True))
            return functional_call(model, parameters, (x,)).square().sum()

        return of_sample

    actual, expected = (
        vmap(grad(loss(function)), in_dims=(None, 0, 0))(endpoints, alphas, inputs)
        for function in (interpolate, reference.simplex_interpolate)
    )
    torch.testing.assert_close(actual, expected)


# ---- compilers ----------------------------------------------------------------------------------


@pytest.mark.parametrize("num_points", [None, 2])
def test_compiles_without_a_graph_break(num_points: int | None) -> None:
    def step(a: Tensor, b: Tensor, alpha: Tensor) -> Tensor:
        first, second = interpolate([a, b], alpha)
        return first.square().sum() + second.sum() + interpolate(a, alpha).sum()

    torch.compiler.reset()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager", dynamic=True)
    for num_endpoints, size in ((3, 5), (4, 40), (10, 7)):
        arguments = (
            randn(num_endpoints, size, 2).requires_grad_(),
            randn(num_endpoints, size).requires_grad_(),
            make_alpha(num_points, num_endpoints).requires_grad_(),
        )
        actual, expected = (
            torch.autograd.grad(call(*arguments), arguments) for call in (compiled, step)
        )
        torch.testing.assert_close(actual, expected)


# ---- capabilities -------------------------------------------------------------------------------


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_every_cpu_capability(capability: str) -> None:
    """The kernels for each vector width this machine has, in a process that is made to use them."""
    chosen = (
        "(accuracy or einsum or other_tensors or rounded or strides or forced) and not emulated"
    )
    run_tests_with(capability, __file__, chosen)


def test_the_forced_capability_is_in_use() -> None:
    assert fedkern.build_info()["cpu_capability"] == expected_capability()


# ---- bad input ----------------------------------------------------------------------------------


def test_bad_input_names_the_tensor() -> None:
    endpoints, alpha = make_endpoints(3), make_alpha(None, 3)
    with pytest.raises(ValueError, match=r"endpoints\[2\] must hold as many endpoints .* 3, got"):
        interpolate([*endpoints[:2], endpoints[2][:2]], alpha)
    with pytest.raises(TypeError, match=r"endpoints\[1\] must have endpoints\[0\]'s dtype"):
        interpolate([endpoints[0], endpoints[1].float()], alpha)
    with pytest.raises(ValueError, match="at least one tensor"):
        interpolate([], alpha)
