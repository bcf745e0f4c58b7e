"""Models in flat memory: where parameters and gradients lie, and that nothing else changes."""

import copy
import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fedkern import fl
from fedkern.fl.flat import FlatModel, Layout, State
from fedkern.nn import SimplexLinear, endpoint_parameters, simplexify, subregion


def convolutional():
    """Four-dimensional weights channels last, one of them a 1x1 kernel; a buffer; no bias."""
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 2, 1),
        nn.Flatten(),
        nn.Linear(8, 5),
    )
    return model.to(memory_format=torch.channels_last)


def dense():
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4, bias=False))


def on_simplex(layers, num_endpoints):
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))
    return simplexify(model, layers, num_endpoints, generator=torch.Generator().manual_seed(0))


SIMPLICES = [
    ("4", 3),  # the last layer
    (["2", "4"], 3),  # two layers: their weights are next to each other in each endpoint
    (["0", "4"], 2),  # one before the plain layer
    (["0", "2", "4"], 2),  # no plain weight, only biases
    ("4", 1),  # one endpoint: a plain model
]


def addresses(tensor):
    """Where its elements lie, in order of the elements."""
    places = torch.arange(tensor.untyped_storage().nbytes() // tensor.element_size())
    return places.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset()).flatten()


@pytest.mark.parametrize("build", [convolutional, dense])
def test_parameters_and_gradients_lie_in_one_buffer_each(build):
    module = build()
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    parameters = list(module.parameters())
    model = FlatModel(module)
    assert all(a is b for a, b in zip(parameters, module.parameters(), strict=True))
    size = sum(p.numel() for p in parameters)
    assert (len(model.values), len(model.gradients)) == (size, size)
    for name, p in module.named_parameters():
        assert torch.equal(p, before[name])
        assert p.stride() == p.grad.stride() == before[name].stride()
        assert p.untyped_storage().data_ptr() == model.values.untyped_storage().data_ptr()
        assert p.grad.untyped_storage().data_ptr() == model.gradients.untyped_storage().data_ptr()
        assert p.is_leaf
        assert p.requires_grad
    places = torch.cat([addresses(p) for p in parameters])
    assert torch.equal(places.sort().values, torch.arange(size))  # no gap, nothing twice
    assert torch.equal(torch.cat([addresses(p.grad) for p in parameters]), places)


def test_a_backward_pass_adds_to_the_gradients():
    module = convolutional()
    twin = copy.deepcopy(module)
    model = FlatModel(module)
    inputs = torch.randn(2, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    for times in (1, 2):
        module(inputs).square().sum().backward()
        expected = torch.autograd.grad(twin(inputs).square().sum(), list(twin.parameters()))
        views = model.layout.plain(model.gradients)
        for (name, p), gradient in zip(module.named_parameters(), expected, strict=True):
            torch.testing.assert_close(views[name], times * gradient)
            assert p.grad.data_ptr() == views[name].data_ptr()
    model.gradients.zero_()
    assert all(not p.grad.any() for p in module.parameters())


def test_what_changes_the_values_changes_the_parameters():
    module = dense()
    model = FlatModel(module)
    model.values.fill_(2.0)
    assert all((p == 2).all() for p in module.parameters())
    with torch.no_grad():
        module[0].bias.zero_()
    assert (model.values == 0).sum() == 5


# ---- states --------------------------------------------------------------------------------------


def test_states_are_loaded_and_copied():
    module = convolutional()
    model = FlatModel(module)
    copied, live = model.state.copy(), model.state
    assert live.values is model.values
    model.values.add_(1)
    module[1].running_mean.fill_(3.0)
    module[1].num_batches_tracked.fill_(7)
    assert torch.equal(live.values, copied.values + 1)
    assert not copied.buffers[0].any()
    changed = model.state.copy()
    places = [tensor.data_ptr() for tensor in (model.values, *model.buffers)]
    model.load(copied)
    assert torch.equal(model.values, copied.values)
    assert module[1].num_batches_tracked == 0
    model.load(changed)
    assert torch.equal(model.values, changed.values)
    assert module[1].num_batches_tracked == 7
    # Values were copied: later changes of the model leave the state that it was given alone.
    assert places == [tensor.data_ptr() for tensor in (model.values, *model.buffers)]
    with pytest.raises(ValueError, match="zip"):
        model.load(State(changed.values, changed.buffers[:1]))


def test_another_state_is_held_for_a_while():
    module = convolutional()
    model = FlatModel(module)
    before = model.state.copy()
    other = State(before.values + 1, [buffer + 2 for buffer in before.buffers])
    kept = other.copy()
    with model.holding(other):
        assert torch.equal(module[0].weight, model.layout.plain(other.values)["0.weight"])
        assert module[1].num_batches_tracked == 2
        model.values.zero_()
    assert torch.equal(model.values, before.values)
    with pytest.raises(KeyError), model.holding(other):
        raise KeyError
    assert torch.equal(model.values, before.values)
    assert all(map(torch.equal, model.buffers, before.buffers))
    assert torch.equal(other.values, kept.values)  # what was done to the model stayed in it


def test_rows_of_values_have_their_own_parameters():
    model = FlatModel(on_simplex(["2", "4"], 3))
    rows = torch.stack([model.values, model.values + 1])
    for name, view in model.layout.parameters(rows).items():
        expected = model.module.get_parameter(name)
        assert torch.equal(view, torch.stack([expected, expected + 1]))
    endpoints = model.layout.endpoints(rows)
    assert torch.equal(endpoints, torch.stack([model.endpoints, model.endpoints + 1]))


# ---- simplex -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("layers", "num_endpoints"), SIMPLICES)
def test_endpoints_come_last_each_as_one_row(layers, num_endpoints):
    module = on_simplex(layers, num_endpoints)
    thetas = [theta.detach().clone() for theta in endpoint_parameters(module)]
    plain = sum(p.numel() for p in module.parameters()) - sum(t.numel() for t in thetas)
    model = FlatModel(module)
    expected = torch.cat([theta.flatten(1) for theta in thetas], 1)
    assert torch.equal(model.endpoints, expected)
    assert (model.layout.num_plain, model.layout.num_endpoints) == (plain, num_endpoints)
    assert torch.equal(model.values[plain:].view(num_endpoints, -1), expected)
    assert len(model.gradients) == plain + expected.shape[1]
    assert all(theta.grad is None for theta in endpoint_parameters(module))
    assert all(map(torch.equal, endpoint_parameters(module), thetas))


@pytest.mark.parametrize(("layers", "num_endpoints"), SIMPLICES)
def test_gradients_at_a_point_are_those_of_the_module(layers, num_endpoints):
    """alpha_m times that of the interpolated weights is endpoint m's, as autograd has it."""
    module = on_simplex(layers, num_endpoints).double()
    twin = copy.deepcopy(module)
    alpha = torch.arange(1.0, num_endpoints + 1, dtype=torch.float64)
    alpha /= alpha.sum()
    draws = torch.Generator().manual_seed(0)
    inputs = torch.randn(7, 6, generator=draws, dtype=torch.float64)
    targets = torch.randint(3, (7,), generator=draws)
    with subregion(twin, alpha):  # of radius 0
        F.cross_entropy(twin(inputs), targets).backward()

    model = FlatModel(module)
    model.stand_at(alpha)
    with model.interpolated():
        F.cross_entropy(module(inputs), targets).backward()
    for weight, theta in zip(model.weights, endpoint_parameters(twin), strict=True):
        expected = torch.einsum("m,m...->...", alpha, theta.detach())
        torch.testing.assert_close(weight.detach(), expected)
    for name, gradient in model.layout.plain(model.gradients).items():
        torch.testing.assert_close(gradient, twin.get_parameter(name).grad)
    shared = model.layout.weights(model.gradients[model.layout.num_plain :])
    for gradient, theta in zip(shared, endpoint_parameters(twin), strict=True):
        expected = torch.stack([a * gradient for a in alpha])
        torch.testing.assert_close(theta.grad, expected)


def test_a_model_stands_somewhere_only_for_a_while():
    module = on_simplex("4", 2).eval()
    model = FlatModel(module)
    inputs = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))
    at_center = module(inputs)
    model.stand_at(torch.tensor([1.0, 0.0]))
    with model.interpolated():
        assert not torch.allclose(module(inputs), at_center)
    assert torch.equal(module(inputs), at_center)


# ---- which parameters ----------------------------------------------------------------------------


def test_frozen_parameters_stay_where_they_are():
    module = dense()
    frozen = module[0].weight.requires_grad_(False)
    place = frozen.data_ptr()
    model = FlatModel(module)
    assert len(model.values) == 5 + 20
    assert frozen.data_ptr() == place
    assert frozen.grad is None
    assert set(model.layout.parameters(model.values)) == {"0.bias", "2.weight"}


def test_tied_parameters_have_one_place():
    module = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    module[2].weight = module[0].weight
    twin = copy.deepcopy(module)
    model = FlatModel(module)
    assert len(model.values) == 16 + 4 + 4
    assert module[0].weight is module[2].weight
    inputs = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    module(inputs).square().sum().backward()
    twin(inputs).square().sum().backward()
    torch.testing.assert_close(module[0].weight.grad, twin[0].weight.grad)


def test_a_copy_of_a_flattened_model_is_independent():
    module = on_simplex("4", 2)
    model = FlatModel(module)
    copied = FlatModel(copy.deepcopy(module))
    assert torch.equal(model.values, copied.values)
    before = model.values.clone()
    copied.values.zero_()
    copied.gradients.fill_(1.0)
    copied.stand_at(torch.tensor([1.0, 0.0]))
    assert torch.equal(model.values, before)
    assert not model.gradients.any()
    assert not any(weight.any() for weight in model.weights)


def test_flattening_twice_takes_the_new_memory():
    module = dense()
    first = FlatModel(module)
    second = FlatModel(module)
    assert torch.equal(first.values, second.values)
    second.values.zero_()
    assert not module[0].weight.any()
    assert first.values.any()


def frozen(model, *names):
    for name in names:
        model.get_parameter(name).requires_grad_(False)
    return model


ONE_KIND = "trainable parameters of one dtype on one device, got "
REFUSED = {
    "none": (nn.Flatten, ONE_KIND + "no trainable parameters"),
    "all frozen": (
        lambda: frozen(nn.Linear(2, 2), "weight", "bias"),
        ONE_KIND + "no trainable parameters",
    ),
    "dtypes": (
        lambda: nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).double()),
        ONE_KIND + "torch.float32 on cpu, torch.float64 on cpu",
    ),
    "devices": (
        lambda: nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, device="meta")),
        ONE_KIND + "torch.float32 on cpu, torch.float32 on meta",
    ),
    "frozen endpoints": (
        lambda: frozen(on_simplex("4", 2), "4.endpoints"),
        "endpoints that are trained, got frozen ones",
    ),
    "two simplices": (
        lambda: nn.Sequential(SimplexLinear(2, 2, 3), SimplexLinear(2, 2, 4)),
        "as many endpoints in all simplex layers, got 3, 4",
    ),
}


@pytest.mark.parametrize(("build", "message"), REFUSED.values(), ids=REFUSED)
def test_models_that_cannot_be_flattened(build, message):
    with pytest.raises(fl.ConfigError, match="^model: wanted " + re.escape(message) + "$"):
        Layout(build())


def test_a_frozen_parameter_may_be_of_another_dtype():
    module = nn.Sequential(nn.Linear(2, 2), frozen(nn.Linear(2, 2).half(), "weight", "bias"))
    assert len(FlatModel(module).values) == 6
