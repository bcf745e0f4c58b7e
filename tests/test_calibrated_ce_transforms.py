"""fedkern.calibrated_ce under torch's machinery: autograd, torch.func, compilers, copies."""

import copy
import io
import itertools
import pickle
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from device_calls import DeviceCalls
from loss_problems import (
    Arguments,
    every_argument,
    generator,
    make_counts,
    make_logits,
    make_target,
    make_weight,
    three_derivatives,
    value_and_gradient,
)
from torch import Tensor, nn
from torch.func import functional_call, grad, grad_and_value, hessian, jacrev, jvp, vmap
from torch.nn import functional as F

import fedkern
from fedkern import reference

# ---- backward -----------------------------------------------------------------------------------


def test_backward_twice_with_a_retained_graph(device: str) -> None:
    """The saved gradient outlives what callers do to the gradients they are handed."""
    logits, target = make_logits((6, 5)).to(device).requires_grad_(), make_target((6, 5)).to(device)
    loss = fedkern.calibrated_ce(logits, target)
    (first,) = torch.autograd.grad(loss, logits, retain_graph=True)
    expected = first.clone()
    first.mul_(100)
    (second,) = torch.autograd.grad(2 * loss, logits, retain_graph=True)
    torch.testing.assert_close(second, 2 * expected)
    second.zero_()
    (third,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(third, expected)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(loss, logits)


def test_scaled_backward_leaves_a_held_gradient_alone() -> None:
    """saved_tensors_hooks hand out the saved gradient: it is somebody else's, then."""
    held = []

    def hold(t: Tensor) -> Tensor:
        held.append((t, t.clone()))
        return t

    logits, target = make_logits((6, 5)).requires_grad_(), make_target((6, 5))
    with torch.autograd.graph.saved_tensors_hooks(hold, lambda t: t):
        loss = fedkern.calibrated_ce(logits, target)
    (3 * loss).backward()
    assert held
    assert all(torch.equal(now, then) for now, then in held)


def test_the_last_backward_gives_its_gradient_away() -> None:
    """No second tensor of the logits' size is made, whatever is upstream."""
    for factor in (1, 3):
        logits, target = make_logits((6, 5)).requires_grad_(), make_target((6, 5))
        loss = factor * fedkern.calibrated_ce(logits, target)
        with torch.autograd.profiler.profile() as profile:
            loss.backward()
        assert [event.name for event in profile.function_events if "fedkern" in event.name] == [
            "fedkern::calibrated_ce_backward_"
        ]


def test_expanded_upstream_gradient(device: str) -> None:
    for shape in ((6, 5), (2, 5, 3, 2)):
        logits, target = make_logits(shape).to(device).requires_grad_(), make_target(shape)
        target = target.to(device)
        fedkern.calibrated_ce(logits, target, reduction="none").mean().backward()
        expected = logits.grad
        logits.grad = None
        fedkern.calibrated_ce(logits, target).backward()
        torch.testing.assert_close(logits.grad, expected)


def test_any_upstream_gradient_of_rows(device: str) -> None:
    for shape in ((6, 5), (2, 5, 3, 2)):
        for arguments in every_argument(5):
            arguments = {**arguments, "reduction": "none"}
            arguments = {
                k: v.to(device) if isinstance(v, Tensor) else v for k, v in arguments.items()
            }
            logits, target = make_logits(shape).to(device), make_target(shape).to(device)
            actual = value_and_gradient(fedkern.calibrated_ce, logits, target, arguments)
            expected = value_and_gradient(reference.calibrated_ce, logits, target, arguments)
            torch.testing.assert_close(actual, expected)


def test_upstream_nan_does_not_reach_ignored_rows(device: str) -> None:
    target = torch.tensor([1, -100, 2], device=device)
    upstream = torch.tensor([1.0, torch.nan, 1.0], dtype=torch.float64, device=device)
    for retain_graph in (True, False):
        logits = make_logits((3, 5)).to(device).requires_grad_()
        loss = fedkern.calibrated_ce(logits, target, reduction="none")
        loss.backward(upstream, retain_graph=retain_graph)
        assert logits.grad is not None
        assert bool(logits.grad.isfinite().all())
        assert not logits.grad[1].any()


def test_logits_may_be_overwritten_between_forward_and_backward() -> None:
    """The first derivative does not look at them again; the second says that they changed."""
    base, target = make_logits((6, 5)), make_target((6, 5))
    expected = value_and_gradient(fedkern.calibrated_ce, base, target, {})[1]
    leaf = base.clone().requires_grad_()
    logits = leaf * 1
    loss = fedkern.calibrated_ce(logits, target)
    logits.detach().zero_()
    loss.backward(torch.randn((), dtype=torch.float64, generator=generator(4)), retain_graph=True)
    torch.testing.assert_close(leaf.grad, expected)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(loss, leaf, create_graph=True)


@pytest.mark.parametrize("name", ["weight", "class_counts"])
def test_constants_must_not_require_grad(name: str) -> None:
    constant = torch.ones(5, requires_grad=True)
    with pytest.raises(ValueError, match=f"{name} must not require grad"):
        fedkern.calibrated_ce(make_logits((3, 5)), make_target((3, 5)), **{name: constant})
    with pytest.raises(ValueError, match=f"{name} must not require grad"):
        jacrev(
            lambda c: fedkern.calibrated_ce(make_logits((3, 5)), make_target((3, 5)), **{name: c})
        )(constant.detach())


# ---- second derivatives and beyond --------------------------------------------------------------


@pytest.mark.parametrize("shape", [(5,), (6, 5), (2, 5, 3, 2)], ids=str)
def test_derivatives_up_to_the_third(shape: tuple[int, ...]) -> None:
    """By the logits and by the upstream gradient."""
    target = make_target(shape)
    for arguments in every_argument(5):
        results = [
            three_derivatives(loss_function, make_logits(shape), target, arguments)
            for loss_function in (fedkern.calibrated_ce, reference.calibrated_ce)
        ]
        if any(bool(t.isnan().any()) for t in results[1]):  # a mean over nothing
            continue
        torch.testing.assert_close(*results)


def test_gradgradcheck_with_balanced_counts(device: str) -> None:
    counts = torch.full((4,), 7, device=device)
    for shape, reduction in itertools.product([(4,), (3, 4), (2, 4, 3)], ["none", "mean", "sum"]):
        logits, target = make_logits(shape).to(device), make_target(shape).to(device)

        def loss(z: Tensor, y: Tensor = target, reduction: str = reduction) -> Tensor:
            return fedkern.calibrated_ce(
                z,
                y,
                make_weight(4).to(device),
                class_counts=counts,
                reduction=reduction,  # type: ignore[arg-type]
                label_smoothing=0.1,
            )

        assert torch.autograd.gradgradcheck(loss, (logits.requires_grad_(),))


def test_second_derivatives_of_half_logits_are_those_of_float() -> None:
    logits, target = make_logits((6, 5)), make_target((6, 5))
    results = []
    for dtype in (torch.bfloat16, torch.float64):
        z = logits.bfloat16().to(dtype).requires_grad_()
        loss = fedkern.calibrated_ce(z, target)
        (first,) = torch.autograd.grad(loss, z, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), z)
        results.append(second)
    assert results[0].dtype == torch.bfloat16
    torch.testing.assert_close(results[0].double(), results[1], rtol=0.05, atol=0.005)


def test_forward_mode_is_refused() -> None:
    logits, target = make_logits((3, 5)), make_target((3, 5))

    def loss(z: Tensor) -> Tensor:
        return fedkern.calibrated_ce(z, target)

    with pytest.raises(NotImplementedError, match="forward-mode"):
        jvp(loss, (logits,), (logits,))
    with pytest.raises(NotImplementedError, match="forward-mode"):
        hessian(loss)(logits)  # forward over reverse


# ---- torch.func ---------------------------------------------------------------------------------


FORWARD = {"calibrated_ce_forward": 1}
BOTH = {**FORWARD, "calibrated_ce_backward": 1}

CLIENTS, BATCH, CLASSES = 4, 6, 5


def clients() -> tuple[Tensor, Tensor, Tensor]:
    """Logits [K, B, C], labels [K, B] and class counts [K, C] of K clients."""
    target = torch.randint(CLASSES, (CLIENTS, BATCH), generator=generator(1))
    counts = torch.randint(1, 100, (CLIENTS, CLASSES), generator=generator(2))
    return make_logits((CLIENTS, BATCH, CLASSES)), target, counts


Loss = Callable[..., Tensor]


def loss_with(module: ModuleType, **arguments: Any) -> Loss:
    """(logits, target, class_counts) -> loss."""
    return lambda z, y, n: module.calibrated_ce(z, y, class_counts=n, **arguments)


def loop(function: Loss, in_dims: tuple[int | None, ...], *stacks: Tensor) -> Tensor:
    """What vmap means."""
    return torch.stack(
        [
            function(
                *(s if d is None else s.select(d, k) for s, d in zip(stacks, in_dims, strict=True))
            )
            for k in range(CLIENTS)
        ]
    )


def test_a_stack_of_clients_is_one_call_each_way(device: str) -> None:
    """[K, B, C] logits with [K, C] counts: one kernel call in forward, one in backward."""
    logits, target, counts = (t.to(device) for t in clients())
    with DeviceCalls() as calls:
        gradient = vmap(grad(loss_with(fedkern)))(logits, target, counts)
    assert calls.ours() == BOTH
    expected = loop(grad(loss_with(reference)), (0, 0, 0), logits, target, counts)
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize(
    "in_dims",
    [(0, 0, 0), (0, None, 0), (None, 0, None), (0, 0, None), (None, None, 0), (1, 0, 0), (2, 1, 1)],
    ids=str,
)
@pytest.mark.parametrize("calibration", ["label", "gradient"])
def test_vmap_of_whatever_is_mapped(in_dims: tuple[int | None, ...], calibration: str) -> None:
    stacks = tuple(
        s[0] if d is None else s.movedim(0, d) for s, d in zip(clients(), in_dims, strict=True)
    )
    arguments = {"calibration": calibration, "label_smoothing": 0.1, "weight": make_weight(CLASSES)}
    ours, theirs = loss_with(fedkern, **arguments), loss_with(reference, **arguments)
    with DeviceCalls() as calls:
        loss = vmap(ours, in_dims)(*stacks)
    assert calls.ours() == FORWARD
    torch.testing.assert_close(loss, loop(theirs, in_dims, *stacks))
    with DeviceCalls() as calls:
        gradient = vmap(grad(ours), in_dims)(*stacks)
    assert calls.ours() == BOTH
    torch.testing.assert_close(gradient, loop(grad(theirs), in_dims, *stacks))


def test_each_clients_histogram_is_its_own() -> None:
    logits, target, _ = clients()
    actual = vmap(grad(fedkern.calibrated_ce))(logits, target)
    expected = [grad(reference.calibrated_ce)(z, y) for z, y in zip(logits, target, strict=True)]
    torch.testing.assert_close(actual, torch.stack(expected))


def test_nested_vmap() -> None:
    logits = make_logits((3, CLIENTS, BATCH, CLASSES))
    target = torch.randint(CLASSES, (3, CLIENTS, BATCH), generator=generator(1))
    counts = clients()[2]
    function = grad(loss_with(fedkern))
    for outer, inner, n in ((None, 0, counts), (0, None, counts[:3]), (None, None, counts[0])):
        with DeviceCalls() as calls:
            actual = vmap(vmap(function, (0, 0, inner)), (0, 0, outer))(logits, target, n)
        assert calls.ours() == BOTH
        for i, k in itertools.product(range(3), range(CLIENTS)):
            of_run = n if outer is None else n[i]
            of_client = of_run if inner is None else of_run[k]
            expected = grad(loss_with(reference))(logits[i, k], target[i, k], of_client)
            torch.testing.assert_close(actual[i, k], expected)


def test_per_sample_gradients() -> None:
    """Every sample is a call of its own: counts are given, or its histogram has one label."""
    logits, target, counts = (t[0] for t in clients())
    actual = vmap(grad(loss_with(fedkern)), (0, 0, None))(logits, target, counts)
    expected = torch.func.jacrev(
        lambda z: reference.calibrated_ce(z, target, class_counts=counts, reduction="none")
    )(logits)
    torch.testing.assert_close(actual, expected.diagonal(dim1=0, dim2=1).movedim(-1, 0))
    alone = vmap(grad(fedkern.calibrated_ce))(logits, target)
    p = logits.softmax(1)
    one_hot = F.one_hot(target, CLASSES)
    p_y = p.gather(1, target[:, None])
    torch.testing.assert_close(alone, p * (1 + one_hot - p_y) - one_hot)


def test_jacrev_and_its_derivative() -> None:
    logits, target, counts = (t[0] for t in clients())

    def rows(module: ModuleType) -> Callable[[Tensor], Tensor]:
        return lambda z: module.calibrated_ce(z, target, class_counts=counts, reduction="none")

    with DeviceCalls() as calls:
        jacobian = jacrev(rows(fedkern))(logits)
    assert calls.ours() == BOTH
    torch.testing.assert_close(jacobian, jacrev(rows(reference))(logits))
    actual = jacrev(jacrev(rows(fedkern)))(logits)
    torch.testing.assert_close(actual, jacrev(jacrev(rows(reference)))(logits))
    stack = clients()[0]
    torch.testing.assert_close(
        vmap(jacrev(rows(fedkern)))(stack), vmap(jacrev(rows(reference)))(stack)
    )


def test_transforms_inside_autograd() -> None:
    """Outer derivatives go through torch.func.grad, and through vmap."""
    gradients = []
    for module in (fedkern, reference):
        logits, target, counts = clients()
        logits.requires_grad_()
        grad(loss_with(module))(logits[0], target[0], counts[0]).square().sum().backward()
        if module is fedkern:
            vmap(loss_with(module))(logits, target, counts).square().sum().backward()
        else:
            loop(loss_with(module), (0, 0, 0), logits, target, counts).square().sum().backward()
        gradients.append(logits.grad)
    torch.testing.assert_close(*gradients)


def test_batched_upstream_gradients() -> None:
    logits, target, counts = (t[0] for t in clients())
    logits.requires_grad_()
    loss = loss_with(fedkern, reduction="none")(logits, target, counts)
    identity = torch.eye(BATCH, dtype=torch.float64)
    (jacobian,) = torch.autograd.grad(loss, logits, identity, is_grads_batched=True)
    expected = jacrev(lambda z: loss_with(reference, reduction="none")(z, target, counts))(logits)
    torch.testing.assert_close(jacobian, expected)


def test_clients_train_as_one_batch() -> None:
    """A step of K models at once, as in torch.func's ensembles, is K steps one by one."""
    model = nn.Linear(3, CLASSES).double()
    inputs = torch.randn(CLIENTS, BATCH, 3, dtype=torch.float64, generator=generator(0))
    _, target, counts = clients()
    weights = {
        name: torch.stack([p.detach() + k for k in range(CLIENTS)])
        for name, p in model.named_parameters()
    }

    def objective(w: dict[str, Tensor], x: Tensor, y: Tensor, n: Tensor) -> Tensor:
        return fedkern.calibrated_ce(functional_call(model, w, (x,)), y, class_counts=n)

    gradients, losses = vmap(grad_and_value(objective))(weights, inputs, target, counts)
    for k in range(CLIENTS):
        own = {name: w[k] for name, w in weights.items()}
        gradient, loss = grad_and_value(objective)(own, inputs[k], target[k], counts[k])
        torch.testing.assert_close(losses[k], loss)
        for name, g in gradient.items():
            torch.testing.assert_close(gradients[name][k], g)


# ---- compilers ----------------------------------------------------------------------------------


def step(z: Tensor, y: Tensor, n: Tensor) -> Tensor:
    loss = fedkern.calibrated_ce(z * 1.5, y, class_counts=n, reduction="none", label_smoothing=0.1)
    return loss.square().mean()


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiles_without_a_graph_break(backend: str) -> None:
    torch.compiler.reset()
    compiled = torch.compile(step, fullgraph=True, backend=backend, dynamic=True)
    for shape in ((6, 5), (9, 4), (64, 10)):
        logits, target = make_logits(shape).requires_grad_(), make_target(shape)
        counts = make_counts(shape[1])
        step(logits, target, counts).backward()
        expected, logits.grad = logits.grad, None
        compiled(logits, target, counts).backward()
        torch.testing.assert_close(logits.grad, expected)


def test_compiles_under_transforms() -> None:
    torch.compiler.reset()
    compiled = torch.compile(vmap(grad(loss_with(fedkern))), fullgraph=True, backend="aot_eager")
    expected = vmap(grad(loss_with(fedkern)))(*clients())
    torch.testing.assert_close(compiled(*clients()), expected)


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, CLASSES)
        self.loss = fedkern.CalibratedCrossEntropyLoss(class_counts=make_counts(CLASSES))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        loss: Tensor = self.loss(self.layer(x), y)
        return loss


def test_exports() -> None:
    model = Classifier()
    batch = torch.export.Dim("batch")
    program = torch.export.export(
        model,
        (torch.randn(6, 3), torch.arange(6) % CLASSES),
        dynamic_shapes={"x": {0: batch}, "y": {0: batch}},
    )
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    x, y = torch.randn(9, 3), torch.arange(9) % CLASSES
    for exported in (program, torch.export.load(file)):
        torch.testing.assert_close(exported.module()(x, y), model(x, y))


def test_overrides_of_torch_function_see_the_call() -> None:
    """What imitates tensors gets the operator, not its arguments' insides."""
    seen = []

    class Mode(torch.overrides.TorchFunctionMode):
        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            seen.append(func)
            return func(*args, **(kwargs or {}))

    with Mode():
        fedkern.calibrated_ce(make_logits((3, 5)), make_target((3, 5)))
    assert torch.ops.fedkern.calibrated_ce.default in seen


# ---- modes --------------------------------------------------------------------------------------


def test_no_grad_and_inference_mode_give_the_same_loss() -> None:
    logits, target = make_logits((6, 5)).requires_grad_(), make_target((6, 5))
    expected = fedkern.calibrated_ce(logits, target)
    with torch.no_grad():
        assert torch.equal(fedkern.calibrated_ce(logits, target), expected)
    with torch.inference_mode():
        assert torch.equal(fedkern.calibrated_ce(logits, target), expected)
    assert expected.requires_grad


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_computes_in_float32(dtype: torch.dtype, device: str) -> None:
    logits, target = make_logits((6, 5)).to(device, dtype), make_target((6, 5)).to(device)
    expected = fedkern.calibrated_ce(logits.float(), target)
    with torch.autocast(device, dtype=dtype):
        actual = fedkern.calibrated_ce(logits, target)
    assert actual.dtype == torch.float32
    assert torch.equal(actual, expected)


def test_deterministic_algorithms(device: str) -> None:
    logits, target = make_logits((300, 7)).to(device), make_target((300, 7)).to(device)
    torch.use_deterministic_algorithms(True)
    try:
        first = value_and_gradient(fedkern.calibrated_ce, logits, target, {})
        second = value_and_gradient(fedkern.calibrated_ce, logits, target, {})
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_cuda_graph() -> None:
    """Forward and backward are captured; a replay sees new logits, labels and counts."""
    if not torch.cuda.is_available():
        pytest.skip("CUDA graphs need a GPU")
    logits = make_logits((64, 10)).float().cuda().requires_grad_()
    target = make_target((64, 10)).cuda()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        fedkern.calibrated_ce(logits, target).backward()
    torch.cuda.current_stream().wait_stream(stream)
    logits.grad = None
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = fedkern.calibrated_ce(logits, target)
        loss.backward()
    for seed in (10, 11):
        with torch.no_grad():
            logits.copy_(make_logits((64, 10), seed=seed))
            target.copy_(make_target((64, 10), seed=seed + 1))
        graph.replay()
        expected = logits.detach().clone().requires_grad_()
        expected_loss = fedkern.calibrated_ce(expected, target)
        expected_loss.backward()
        assert torch.equal(loss, expected_loss)
        assert torch.equal(logits.grad, expected.grad)  # type: ignore[arg-type]


# ---- the module ---------------------------------------------------------------------------------


def test_module_equals_function_and_keeps_its_tensors_in_the_state() -> None:
    logits, target = make_logits((6, 5)), make_target((6, 5))
    weight, counts = make_weight(5), make_counts(5)
    arguments: Arguments = {"calibration": "gradient", "reduction": "sum", "label_smoothing": 0.1}
    module = fedkern.CalibratedCrossEntropyLoss(weight, class_counts=counts, **arguments)
    expected = fedkern.calibrated_ce(logits, target, weight, class_counts=counts, **arguments)
    assert torch.equal(module(logits, target), expected)
    assert set(module.state_dict()) == {"weight", "class_counts"}
    assert not list(module.parameters())
    for copied in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(copied(logits, target), expected)
    assert module.to(torch.float32).weight.dtype == torch.float32
    assert "calibration='gradient'" in repr(module)

    plain = fedkern.CalibratedCrossEntropyLoss()
    assert torch.equal(plain(logits, target), fedkern.calibrated_ce(logits, target))
    assert not plain.state_dict()
