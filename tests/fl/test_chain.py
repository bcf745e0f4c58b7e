"""Chains of layers against autograd, and what is not taken for a chain."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import prune
from whole_runs import assert_close, drawn, run

from fedkern import fl
from fedkern.fl import training
from fedkern.fl.chain import chain_of
from fedkern.fl.flat import FlatModel
from fedkern.fl.heads import TwoHeads
from fedkern.nn import simplexify

LAYOUTS = [torch.contiguous_format, torch.channels_last]


def compare(module, inputs, *, num_classes=4, ties=False, layers=None, dtype=torch.float64):
    """Logits and gradients of a chain and of autograd, for the same model, batch and loss.

    Twice over the same memory, for gradients are written, not added.
    """
    module = drawn(module).to(dtype)
    if layers is not None:
        simplexify(module, layers, 3, generator=torch.Generator().manual_seed(0))
    inputs = inputs.to(dtype)
    if ties:
        inputs = inputs.round()
    model = FlatModel(module)
    found = chain_of(model)
    assert found is not None
    if model.weights:
        model.stand_at(torch.tensor([0.5, 0.3, 0.2], dtype=dtype))
    targets = torch.arange(len(inputs)) % num_classes
    with model.interpolated():
        expected = module(inputs.clone())
        F.cross_entropy(expected, targets).backward()
    gradients = model.gradients.clone()
    assert gradients.abs().max() > 1e-6
    model.gradients.fill_(math.nan)
    before = inputs.clone()
    for _ in range(2):
        logits = found.forward(inputs)
        # Ties are broken in the same way only where both see the same bits.
        torch.testing.assert_close(logits, expected, rtol=1e-12, atol=1e-13)
        leaf = logits.clone().requires_grad_()
        found.backward(torch.autograd.grad(F.cross_entropy(leaf, targets), leaf)[0])
        torch.testing.assert_close(model.gradients, gradients, rtol=1e-11, atol=1e-13)
    assert torch.equal(inputs, before)
    assert not logits.requires_grad


def images(samples, channels, height, width, layout=torch.contiguous_format):
    draws = torch.Generator().manual_seed(1)
    inputs = torch.randn(samples, channels, height, width, generator=draws)
    return inputs.contiguous(memory_format=layout)


@pytest.mark.parametrize("samples", [1, 7])
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("simplex", [None, "last", "all"])
@pytest.mark.parametrize("name", ["mlp", "lenet", "cnn"])
def test_the_models_of_the_experiments(name, simplex, layout, ties, samples):
    # 17 and 19: odd sides, so that pooling leaves a row or a column out.
    build = {"mlp": lambda: fl.MLP(3 * 17 * 19, 4), "lenet": fl.LeNet, "cnn": fl.FlocoCNN}[name]
    module = build() if name == "mlp" else build(3, 17, 19, 4)
    names = [n for n, m in module.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    layers = {None: None, "last": names[-1], "all": names}[simplex]
    module = module.to(memory_format=layout)
    compare(module, images(samples, 3, 17, 19, layout), ties=ties, layers=layers)


def with_one_relu():
    """A model that has a layer twice."""
    relu = nn.ReLU()
    layers = nn.Linear(180, 6), relu, nn.Linear(6, 4)
    return nn.Sequential(nn.Conv2d(3, 5, 3), relu, nn.Flatten(), *layers)


def two_heads(bias):
    """Two classifiers of two classes each, of which the second sends no gradient back."""
    layer = nn.Linear(6, 2, bias)
    TwoHeads.become(layer)
    return layer


CHAINS = {
    "one layer": lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 4)),
    "nested": lambda: nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 5, 3), nn.Sequential(nn.ReLU(), nn.Sequential())),
        nn.Sequential(nn.MaxPool2d(2), nn.Flatten()),
        nn.Linear(45, 4),
    ),
    "an activation twice": with_one_relu,
    "before the first parameters": lambda: nn.Sequential(
        nn.ReLU(), nn.MaxPool2d(2), nn.LeakyReLU(), nn.Flatten(), nn.Linear(48, 4)
    ),
    "after the last parameters": lambda: nn.Sequential(
        nn.Conv2d(3, 4, 8), nn.LeakyReLU(), nn.MaxPool2d(1), nn.Flatten()
    ),
    "in place": lambda: nn.Sequential(
        nn.Conv2d(3, 5, 3),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.Linear(180, 6),
        nn.LeakyReLU(0.3, inplace=True),
        nn.Linear(6, 4),
    ),
    "slopes": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(192, 6), nn.LeakyReLU(0.0), nn.LeakyReLU(1.5), nn.Linear(6, 4)
    ),
    "no bias": lambda: nn.Sequential(
        nn.Conv2d(3, 5, 3, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(180, 4, bias=False)
    ),
    "linear on three dimensions": lambda: nn.Sequential(
        nn.Flatten(2), nn.Linear(64, 5), nn.ReLU(), nn.Linear(5, 2), nn.Flatten(), nn.Linear(6, 4)
    ),
    "linear on four dimensions": lambda: nn.Sequential(
        nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 2), nn.Flatten(), nn.Linear(48, 4)
    ),
    "strides, padding, dilation, groups": lambda: nn.Sequential(
        nn.Conv2d(3, 6, (3, 2), stride=(2, 1), padding=(1, 2), dilation=(1, 2), groups=3),
        nn.ReLU(),
        nn.Conv2d(6, 4, 3, padding=1, groups=2),
        nn.Flatten(),
        nn.Linear(160, 4),
    ),
    "two heads": lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 6), nn.ReLU(), two_heads(True)),
    "two heads without bias": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(192, 6), two_heads(False)
    ),
    "pooling": lambda: nn.Sequential(
        nn.Conv2d(3, 4, 1),
        nn.MaxPool2d(3, stride=2, padding=1, ceil_mode=True),
        nn.MaxPool2d(2, stride=1, dilation=2),
        nn.Flatten(),
        nn.Linear(36, 4),
    ),
}


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("build", CHAINS.values(), ids=CHAINS)
def test_chains_of_all_layers(build, layout, ties):
    compare(build().to(memory_format=layout), images(5, 3, 8, 8, layout), ties=ties)


# ---- no chains -----------------------------------------------------------------------------------


class OwnLinear(nn.Linear):
    def forward(self, inputs):
        return super().forward(inputs) + 1


class OwnSequential(nn.Sequential):
    def forward(self, inputs):
        return super().forward(inputs) + 1


class Wrapped(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = mlp()

    def forward(self, inputs):
        return self.layers(inputs)


def mlp(*between):
    return nn.Sequential(nn.Linear(6, 5), *between, nn.ReLU(), nn.Linear(5, 4))


def changed(change, module=None):
    module = module or mlp()
    change(module)
    return module


def tied(first, second):
    first.weight = second.weight
    return nn.Sequential(first, nn.ReLU(), second)


def twice(layer):
    return nn.Sequential(layer, nn.ReLU(), layer, nn.Linear(6, 4))


def square(**options):
    return nn.Sequential(nn.Conv2d(3, 4, 3, **options), nn.Flatten(), nn.Linear(4, 4))


NO_CHAINS = {
    "forward hook": lambda: changed(lambda m: m[1].register_forward_hook(lambda *_: None)),
    "forward pre hook": lambda: changed(lambda m: m.register_forward_pre_hook(lambda *_: None)),
    "backward hook": lambda: changed(lambda m: m[0].register_full_backward_hook(lambda *_: None)),
    "backward pre hook": lambda: changed(
        lambda m: m[0].register_full_backward_pre_hook(lambda *_: None)
    ),
    "hook on a parameter": lambda: changed(lambda m: m[0].bias.register_hook(lambda g: g)),
    "hook on an accumulated gradient": lambda: changed(
        lambda m: m[0].bias.register_post_accumulate_grad_hook(lambda p: None)
    ),
    "hook of a simplex model": lambda: changed(
        lambda m: simplexify(m).register_forward_hook(lambda *_: None)
    ),
    "a layer's own forward": lambda: nn.Sequential(OwnLinear(6, 4)),
    "a Sequential's own forward": lambda: OwnSequential(nn.Linear(6, 4)),
    "an object's own forward": lambda: changed(
        lambda m: setattr(m[2], "forward", lambda x: F.linear(x, m[2].weight))
    ),
    "no Sequential": Wrapped,
    "tanh": lambda: mlp(nn.Tanh()),
    "batch norm": lambda: mlp(nn.BatchNorm1d(5)),
    "dropout": lambda: mlp(nn.Dropout()),
    "a buffer": lambda: changed(lambda m: m.register_buffer("own", torch.zeros(1))),
    "frozen weight": lambda: changed(lambda m: m[0].weight.requires_grad_(False)),
    "frozen bias": lambda: changed(lambda m: m[2].bias.requires_grad_(False)),
    "tied weights": lambda: tied(nn.Linear(5, 5), nn.Linear(5, 5)),
    "a layer twice": lambda: twice(nn.Linear(6, 6)),
    "a simplex layer twice": lambda: simplexify(twice(nn.Linear(6, 6)), ["0", "3"], 2),
    "parametrized": lambda: changed(lambda m: nn.utils.parametrizations.weight_norm(m[0])),
    "pruned": lambda: changed(lambda m: prune.random_unstructured(m[0], "weight", 0.5)),
    "circular padding": lambda: square(padding=1, padding_mode="circular"),
    "padding by name": lambda: square(padding="same"),
    "indices": lambda: nn.Sequential(nn.Linear(6, 4), nn.MaxPool2d(1, return_indices=True)),
    "resnet20": lambda: fl.ResNet20(3, 8, 8, 4),
}


@pytest.mark.parametrize("build", NO_CHAINS.values(), ids=NO_CHAINS)
def test_what_is_no_chain(build):
    assert chain_of(FlatModel(build())) is None


def test_what_is_none_for_a_while():
    model = FlatModel(mlp())
    with torch.autocast("cpu", torch.bfloat16):
        assert chain_of(model) is None
    hook = nn.modules.module.register_module_forward_hook(lambda *_: None)  # of any module
    assert chain_of(model) is None
    hook.remove()
    hook = model.module[0].register_forward_hook(lambda *_: None)
    assert chain_of(model) is None
    hook.remove()
    assert chain_of(model) is not None


def test_the_hooks_of_a_simplex_do_not_count():
    assert chain_of(FlatModel(simplexify(mlp(), num_endpoints=2))) is not None


# ---- runs ----------------------------------------------------------------------------------------


@pytest.fixture
def pictures(blobs):
    """Blobs as images of 9x8 with one channel, in float64."""

    def wide(x):
        return x.double()[:, None, :, None].expand(-1, 1, -1, 8).repeat(1, 1, 2, 1)[:, :, :9]

    return replace(blobs, x_train=wide(blobs.x_train), x_test=wide(blobs.x_test))


def own_model():
    """A user's own chain."""
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2)),
        nn.Flatten(),
        nn.Linear(48, 8, bias=False),
        nn.LeakyReLU(0.2),
        nn.Linear(8, 4),
    ).double()


@pytest.mark.parametrize(
    "method", [fl.FedGA(), fl.Ditto(), fl.Floco(endpoints=3, tau=2), fl.FedNTD(), fl.FedRoD()]
)
def test_a_run_is_the_same_with_plain_layers(pictures, method, monkeypatch):
    chains = []
    monkeypatch.setattr(
        training, "chain_of", lambda model: chains.append(chain_of(model)) or chains[-1]
    )
    config = fl.RunConfig(
        clients=4,
        clients_per_round=3,
        rounds=3,
        batch_size=32,  # of 60: the last batch is smaller
        momentum=0.5,
        partition="iid",
        workers=1,
    )
    fast = run(pictures, config, method, own_model)
    plain = run(pictures, replace(config, layers="plain"), method, own_model)
    assert len(chains) == 1  # of the fast one
    assert chains[0] is not None
    # Some thirty steps in float64.
    assert_close(fast, plain, rtol=1e-9, atol=1e-11)
