import pytest
import torch
import torch.nn.functional as F

from fedkern import fl


def dataset_of(*shape, classes=10):
    inputs, labels = torch.rand(2, *shape), torch.tensor([0, classes - 1])
    return fl.Dataset("made up", inputs, labels, inputs, labels, classes)


def parameters(model):
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("name", "shape", "kind", "count"),
    [
        # (in + 1) * out, layer by layer
        ("auto", (1, 28, 28), fl.MLP, 785 * 128 + 129 * 10),
        ("auto", (1, 8, 8), fl.MLP, 65 * 128 + 129 * 10),
        ("auto", (20,), fl.MLP, 21 * 128 + 129 * 10),
        ("auto", (3, 16, 16), fl.MLP, 769 * 128 + 129 * 10),
        ("auto", (3, 32, 32), fl.LeNet, 76 * 6 + 151 * 16 + 401 * 120 + 121 * 84 + 85 * 10),
        ("auto", (3, 28, 28), fl.LeNet, 76 * 6 + 151 * 16 + 257 * 120 + 121 * 84 + 85 * 10),
        ("lenet", (1, 28, 28), fl.LeNet, 26 * 6 + 151 * 16 + 257 * 120 + 121 * 84 + 85 * 10),
        ("lenet", (1, 16, 16), fl.LeNet, 26 * 6 + 151 * 16 + 17 * 120 + 121 * 84 + 85 * 10),
        ("mlp", (3, 32, 32), fl.MLP, 3073 * 128 + 129 * 10),
    ],
)
def test_models_are_sized_by_the_data(name, shape, kind, count):
    dataset = dataset_of(*shape)
    model = fl.build_model(name, dataset, fl.generator(0, "model"))
    assert type(model) is kind
    assert parameters(model) == count
    assert model(dataset.x_train).shape == (2, 10)


def test_lenet_is_the_published_network():
    dataset = dataset_of(3, 32, 32)
    model = fl.build_model("lenet", dataset, fl.generator(0, "model"))
    w = list(model.parameters())
    x = F.max_pool2d(F.relu(F.conv2d(dataset.x_train, w[0], w[1])), 2)
    x = F.max_pool2d(F.relu(F.conv2d(x, w[2], w[3])), 2).flatten(1)
    x = F.linear(F.relu(F.linear(F.relu(F.linear(x, w[4], w[5])), w[6], w[7])), w[8], w[9])
    torch.testing.assert_close(model(dataset.x_train), x)


def test_initial_parameters_come_from_the_generator_alone():
    dataset = dataset_of(3, 32, 32)
    before = torch.random.get_rng_state()
    first, again = (fl.build_model("lenet", dataset, fl.generator(0, "model")) for _ in range(2))
    other = fl.build_model("lenet", dataset, fl.generator(1, "model"))
    assert torch.equal(before, torch.random.get_rng_state())
    for a, b, c in zip(first.parameters(), again.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
        assert not torch.equal(a, c)


def test_initial_parameters_are_spread_as_pytorch_spreads_them():
    own = fl.build_model("lenet", dataset_of(3, 32, 32), fl.generator(0, "model"))
    with torch.random.fork_rng():
        theirs = fl.LeNet(3, 32, 32, 10)
    for a, b in zip(own.parameters(), theirs.parameters(), strict=True):
        # Both uniform with one bound, so their largest of n draws agree to a few parts in n.
        assert a.abs().max().item() == pytest.approx(b.abs().max().item(), rel=20 / a.numel())
        if a.numel() > 1000:
            assert a.std().item() == pytest.approx(b.std().item(), rel=0.1)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("lenet", (1, 8, 8), "^model: wanted images of at least 16x16 for 'lenet', got 8x8"),
        ("lenet", (3, 32, 15), "^model: wanted images of at least 16x16 for 'lenet', got 32x15"),
        ("lenet", (20,), "^model: wanted image data for 'lenet', got 'made up' .* shape \\(20,\\)"),
        ("lennet", (3, 32, 32), "^model: wanted one of .* got 'lennet' .did you mean 'lenet'?"),
    ],
)
def test_models_that_do_not_fit(name, shape, message):
    with pytest.raises(fl.ConfigError, match=message):
        fl.build_model(name, dataset_of(*shape), fl.generator(0, "model"))
