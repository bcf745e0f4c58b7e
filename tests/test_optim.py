"""fedkern.optim.FlatSGD in the place of torch.optim.SGD, and the FlatParameters that it makes."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from operators._entry import randn
from torch import Tensor, nn

from fedkern.flat import FlatParameters
from fedkern.optim import FlatSGD

# max_norm, momentum, weight_decay: the norms here are about 1.
OPTIONS = [(None, 0.0, 0.0), (0.3, 0.0, 0.0), (0.3, 0.9, 0.01), (1e3, 0.5, 0.0)]


def make_model() -> nn.Module:
    """A convolution in channels_last, a frozen layer, and one that comes out of it."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last),
            nn.Flatten(),
            nn.Linear(4 * 2 * 2, 5),
            nn.Tanh(),
            nn.Linear(5, 2),
        ).double()
    model[2].requires_grad_(False)
    return model


def loss_of(model: nn.Module, step: int) -> Tensor:
    inputs, targets = randn(6, 3, 4, 4, seed=step), torch.arange(6) % 2
    return F.cross_entropy(model(inputs), targets)


def trainable(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    max_norm: float | None = None,
    steps: range = range(10),
    after_backward: Callable[[], object] = lambda: None,
) -> None:
    for step in steps:
        optimizer.zero_grad()
        torch.autograd.backward(loss_of(model, step))
        after_backward()
        if max_norm is not None:
            nn.utils.clip_grad_norm_(trainable(model), max_norm)
        optimizer.step()


def assert_same(model: nn.Module, other: nn.Module) -> None:
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-12)


# ---- in the place of torch.optim.SGD ------------------------------------------------------------


@pytest.mark.parametrize(("max_norm", "momentum", "weight_decay"), OPTIONS)
def test_trains_as_torchs_sgd_does(
    max_norm: float | None, momentum: float, weight_decay: float, device: str
) -> None:
    ours, theirs = make_model().to(device), make_model()
    options = {"momentum": momentum, "weight_decay": weight_decay}
    optimizers = (
        FlatSGD(ours.parameters(), 0.1, max_norm=max_norm, **options),
        torch.optim.SGD(theirs.parameters(), 0.1, **options),
    )
    schedulers = [torch.optim.lr_scheduler.StepLR(o, 2, gamma=0.5) for o in optimizers]
    for step in range(10):
        if device == "cuda":
            optimizers[0].zero_grad()
            inputs, targets = randn(6, 3, 4, 4, seed=step).to(device), torch.arange(6) % 2
            torch.autograd.backward(F.cross_entropy(ours(inputs), targets.to(device)))
            optimizers[0].step()
        else:
            train(ours, optimizers[0], steps=range(step, step + 1))
        train(theirs, optimizers[1], max_norm, range(step, step + 1))
        for scheduler in schedulers:
            scheduler.step()
    assert_same(ours.cpu(), theirs)


def test_the_pull_is_that_of_a_proximal_term() -> None:
    """FedProx's: mu / 2 times the squared distance from what `hold` has held, in the loss."""
    ours, theirs = make_model(), make_model()
    optimizer = FlatSGD(ours.parameters(), 0.1, pull=0.4, max_norm=0.3)
    reference = torch.optim.SGD(theirs.parameters(), 0.1)
    for round in range(3):
        optimizer.hold()
        anchors = [p.detach().clone() for p in trainable(theirs)]
        for step in range(4 * round, 4 * round + 4):
            train(ours, optimizer, steps=range(step, step + 1))
            reference.zero_grad()
            distance = sum(
                ((p - a) ** 2).sum() for p, a in zip(trainable(theirs), anchors, strict=True)
            )
            torch.autograd.backward(loss_of(theirs, step) + 0.4 / 2 * distance)
            nn.utils.clip_grad_norm_(trainable(theirs), 0.3)
            reference.step()
    assert_same(ours, theirs)


def test_without_hold_the_anchor_is_where_the_first_step_began() -> None:
    models = make_model(), make_model()
    for model, hold in zip(models, (False, True), strict=True):
        optimizer = FlatSGD(model.parameters(), 0.1, pull=0.4)
        with torch.no_grad():
            model[0].weight.mul_(2)
        if hold:
            optimizer.hold()
        train(model, optimizer)
    assert_same(*models)


def test_a_closure_is_evaluated_with_gradients() -> None:
    ours, theirs = make_model(), make_model()
    optimizers = FlatSGD(ours.parameters(), 0.1), torch.optim.SGD(theirs.parameters(), 0.1)

    def closure() -> Tensor:
        optimizers[0].zero_grad()
        loss = loss_of(ours, 0)
        torch.autograd.backward(loss)
        return loss

    with torch.no_grad():
        loss = optimizers[0].step(closure)
    train(theirs, optimizers[1], steps=range(1))
    torch.testing.assert_close(loss, loss_of(make_model(), 0))
    assert_same(ours, theirs)


# ---- its state ----------------------------------------------------------------------------------


def test_training_goes_on_from_a_state_dict() -> None:
    models = make_model(), make_model()
    options: dict[str, Any] = {"momentum": 0.9, "pull": 0.2, "max_norm": 0.3}
    optimizer = FlatSGD(models[0].parameters(), 0.1, **options)
    train(models[0], optimizer, steps=range(5))
    state = copy.deepcopy((models[0].state_dict(), optimizer.state_dict()))
    train(models[0], optimizer, steps=range(5, 10))

    resumed = FlatSGD(models[1].parameters(), 0.5)
    models[1].load_state_dict(state[0])
    resumed.load_state_dict(state[1])
    train(models[1], resumed, steps=range(5, 10))
    assert_same(*models)


def test_torchs_state_can_be_loaded() -> None:
    """Its momentum goes on; what it does not say stays; what we cannot do is refused."""
    options = {"momentum": 0.9, "weight_decay": 0.01}
    uninterrupted, model = make_model(), make_model()
    train(uninterrupted, torch.optim.SGD(trainable(uninterrupted), 0.1, **options))
    before = torch.optim.SGD(trainable(model), 0.1, **options)
    train(model, before, steps=range(5))
    after = FlatSGD(model.parameters(), 0.5, max_norm=1e3)
    after.load_state_dict(before.state_dict())
    assert after.param_groups[0]["max_norm"] == 1e3
    train(model, after, steps=range(5, 10))
    assert_same(model, uninterrupted)
    nesterov = torch.optim.SGD(trainable(model), 0.1, momentum=0.9, nesterov=True)
    with pytest.raises(ValueError, match="option nesterov cannot be loaded"):
        after.load_state_dict(nesterov.state_dict())


def test_a_state_without_momentum_replaces_one_with() -> None:
    model = make_model()
    optimizer = FlatSGD(model.parameters(), 0.1, momentum=0.9)
    fresh = copy.deepcopy(optimizer.state_dict())
    train(model, optimizer)
    assert optimizer.state_dict()["state"]
    optimizer.load_state_dict(fresh)
    assert not optimizer.state_dict()["state"]


# ---- gradients that are not where they should be ------------------------------------------------


@pytest.mark.filterwarnings("ignore:Using backward:UserWarning")
@pytest.mark.parametrize("change", ["none", "replaced", "create_graph", "module"])
def test_gradients_that_were_replaced_are_found(change: str) -> None:
    ours, theirs = make_model(), make_model()
    optimizers = FlatSGD(ours.parameters(), 0.1), torch.optim.SGD(theirs.parameters(), 0.1)
    for step in range(3):
        for model, optimizer in zip((ours, theirs), optimizers, strict=True):
            if change == "module":
                model.zero_grad()  # makes them None
            else:
                optimizer.zero_grad()
            torch.autograd.backward(loss_of(model, step), create_graph=change == "create_graph")
            weight = model[0].weight
            if change == "none":
                weight.grad = None
            elif change == "replaced":
                weight.grad = torch.ones_like(weight).contiguous()
            optimizer.step()
        for p in trainable(ours):
            assert p.grad is not None
            assert (
                p.grad.untyped_storage().data_ptr()
                == optimizers[0].flat.gradients.untyped_storage().data_ptr()
            )
    assert_same(ours, theirs)


def test_zero_grad_keeps_the_gradients_in_place() -> None:
    model = make_model()
    optimizer = FlatSGD(model.parameters(), 0.1)
    grads = [p.grad for p in trainable(model)]
    train(model, optimizer, steps=range(1))
    model[0].weight.grad = None
    optimizer.zero_grad(set_to_none=True)
    assert all(p.grad is g for p, g in zip(trainable(model), grads, strict=True))
    assert not optimizer.flat.gradients.any()


def test_a_moved_model_is_noticed() -> None:
    model = make_model()
    optimizer = FlatSGD(model.parameters(), 0.1)
    model.float()
    with pytest.raises(RuntimeError, match=r"no longer in the flat tensor.*Module.to"):
        optimizer.step()


# ---- flat parameters ----------------------------------------------------------------------------


def test_parameters_stay_what_they_are() -> None:
    model, same = make_model(), make_model()
    parameters = list(model.parameters())
    model[0].weight.grad = torch.ones_like(model[0].weight)
    flat = FlatParameters(parameters)
    assert all(p is q for p, q in zip(model.parameters(), parameters, strict=True))
    assert len(flat.parameters) == len(parameters) - 2
    assert all(p is q for p, q in zip(flat.parameters, trainable(model), strict=True))
    for p, q in zip(parameters, same.parameters(), strict=True):
        assert torch.equal(p, q)
        assert (p.stride(), p.requires_grad) == (q.stride(), q.requires_grad)
    assert model[0].weight.is_contiguous(memory_format=torch.channels_last)
    size = sum(p.numel() for p in flat.parameters)
    assert flat.values.shape == flat.gradients.shape == (size,)
    assert flat.gradients.sum() == model[0].weight.numel()
    flat.values.fill_(3)
    flat.gradients.fill_(4)
    assert all((p == 3).all() and (p.grad == 4).all() for p in flat.parameters)
    flat.zero_gradients()
    assert not any(p.grad.any() for p in flat.parameters if p.grad is not None)


def test_flat_parameters_can_be_flattened_anew() -> None:
    """As a new optimizer of the same model does; the old one notices."""
    model, same = make_model(), make_model()
    old = FlatSGD(model.parameters(), 0.1)
    FlatSGD(model.parameters(), 0.1)
    assert_same(model, same)
    with pytest.raises(RuntimeError, match="no longer in the flat tensor"):
        old.step()


def parameter(*shape: int, dtype: torch.dtype = torch.float32) -> nn.Parameter:
    return nn.Parameter(torch.zeros(shape, dtype=dtype))


TWICE, MEMORY = parameter(3), torch.zeros(3)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ([], "wanted a parameter that requires grad"),
        ([nn.Parameter(torch.zeros(3), requires_grad=False)], "wanted a parameter"),
        ([TWICE, TWICE], r"shape \[3\] is given twice"),
        ([nn.Parameter(MEMORY), nn.Parameter(MEMORY)], "shares its memory"),
        ([parameter(3), parameter(3, dtype=torch.float64)], "one dtype and device"),
        ([nn.Parameter(torch.zeros(3).expand(2, 3))], "must be dense"),
        ([nn.Parameter(torch.zeros(3, 4)[:, ::2])], "must be dense"),
        ([nn.Parameter(torch.zeros(3).to_sparse())], "must be dense"),
    ],
)
def test_bad_parameters_are_refused(parameters: list[nn.Parameter], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FlatParameters(parameters)


def test_there_is_one_group() -> None:
    with pytest.raises(TypeError, match="one group"):
        FlatSGD([{"params": [parameter(3)]}], 0.1)  # type: ignore[list-item]
    optimizer = FlatSGD([parameter(3)], 0.1)
    with pytest.raises(ValueError, match="one group"):
        optimizer.add_param_group({"params": [parameter(2)]})


def test_bad_options_are_named() -> None:
    optimizer = FlatSGD([parameter(3)], -1.0)
    with pytest.raises(ValueError, match="lr must be finite and not negative, got -1"):
        optimizer.step()
