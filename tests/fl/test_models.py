import pytest
import torch
import torch.nn.functional as F

from fedkern import fl
from fedkern.fl.models import FlocoCNN, ResNet20

# Convolutions k * k * in * out without bias, two numbers a channel for batch norm, and the last
# layer, for one input channel and ten classes (arXiv 1512.03385, section 4.2).
RESNET20_GREY = (
    9 * (1 * 16 + 6 * 16 * 16 + 16 * 32 + 5 * 32 * 32 + 32 * 64 + 5 * 64 * 64)
    + 2 * (7 * 16 + 6 * 32 + 6 * 64)
    + 65 * 10
)


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
        # 32 -> 28 -> 14 -> 12 -> 6 -> 6 -> 3; 28 -> 24 -> 12 -> 10 -> 5 -> 5 -> 2; 16 ends at 1
        ("cnn", (3, 32, 32), FlocoCNN, 76 * 16 + 401 * 32 + 289 * 64 + 577 * 128 + 129 * 10),
        ("cnn", (1, 28, 28), FlocoCNN, 26 * 16 + 401 * 32 + 289 * 64 + 257 * 128 + 129 * 10),
        ("cnn", (1, 16, 16), FlocoCNN, 26 * 16 + 401 * 32 + 289 * 64 + 65 * 128 + 129 * 10),
        ("resnet20", (3, 32, 32), ResNet20, RESNET20_GREY + 2 * 9 * 16),
        ("resnet20", (1, 28, 28), ResNet20, RESNET20_GREY),
        ("resnet20", (1, 5, 5), ResNet20, RESNET20_GREY),
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


def test_floco_cnn_is_the_published_network():
    dataset = dataset_of(3, 32, 32)
    model = fl.build_model("cnn", dataset, fl.generator(0, "model"))
    w = list(model.parameters())
    x = F.max_pool2d(F.leaky_relu(F.conv2d(dataset.x_train, w[0], w[1])), 2)
    x = F.max_pool2d(F.leaky_relu(F.conv2d(x, w[2], w[3], padding=1)), 2)
    x = F.max_pool2d(F.leaky_relu(F.conv2d(x, w[4], w[5], padding=1)), 2).flatten(1)
    x = F.linear(F.leaky_relu(F.linear(x, w[6], w[7])), w[8], w[9])
    torch.testing.assert_close(model(dataset.x_train), x)


@pytest.mark.parametrize("side", [32, 15])  # 15 -> 8 -> 4: strides of odd sides
def test_resnet20_is_the_published_network(side):
    dataset = dataset_of(3, side, side)
    model = fl.build_model("resnet20", dataset, fl.generator(0, "model"))
    weights = [w for w in model.parameters() if w.ndim == 4]

    def conv_norm(x, stride=1):
        """Batch norm's initial scale is 1, its shift 0."""
        x = F.conv2d(x, weights.pop(0), stride=stride, padding=1)
        return F.batch_norm(x, None, None, training=True)

    x = F.relu(conv_norm(dataset.x_train))
    for block in range(9):
        stride = 2 if block in (3, 6) else 1
        shortcut = x[:, :, ::stride, ::stride]
        if stride == 2:
            shortcut = torch.cat([shortcut, torch.zeros_like(shortcut)], 1)
        x = F.relu(conv_norm(F.relu(conv_norm(x, stride))) + shortcut)
    x = F.linear(x.mean((2, 3)), *list(model.parameters())[-2:])
    assert not weights
    # Twenty layers, each normalised anew: rounding of 1e-7 grows to some 1e-5.
    torch.testing.assert_close(model(dataset.x_train), x, rtol=1e-4, atol=1e-4)


def test_resnet20_trains_on_a_single_smallest_image():
    dataset = dataset_of(1, 5, 5)
    model = fl.build_model("resnet20", dataset, fl.generator(0, "model"))
    model(dataset.x_train[:1]).sum().backward()
    assert all(w.grad.isfinite().all() for w in model.parameters())


def test_batch_norm_starts_at_its_standard_values():
    model = fl.build_model("resnet20", dataset_of(3, 32, 32), fl.generator(0, "model"))
    norms = [layer for layer in model.modules() if isinstance(layer, torch.nn.BatchNorm2d)]
    assert len(norms) == 19
    for norm in norms:
        for key, value in norm.state_dict().items():
            expected = 1 if key in ("weight", "running_var") else 0
            assert torch.equal(value, torch.full_like(value, expected)), key


@pytest.mark.parametrize("name", ["lenet", "cnn", "resnet20"])
def test_initial_parameters_come_from_the_generator_alone(name):
    dataset = dataset_of(3, 32, 32)
    before = torch.random.get_rng_state()
    first, again = (fl.build_model(name, dataset, fl.generator(0, "model")) for _ in range(2))
    other = fl.build_model(name, dataset, fl.generator(1, "model"))
    assert torch.equal(before, torch.random.get_rng_state())
    layers = zip(first.modules(), again.modules(), other.modules(), strict=True)
    for layer, same, different in layers:
        if isinstance(layer, torch.nn.BatchNorm2d):
            continue  # ones and zeros
        for key, parameter in layer.named_parameters(recurse=False):
            assert torch.equal(parameter, getattr(same, key))
            assert not torch.equal(parameter, getattr(different, key))


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
        ("cnn", (3, 15, 32), "^model: wanted images of at least 16x16 for 'cnn', got 15x32"),
        ("cnn", (20,), "^model: wanted image data for 'cnn', got 'made up' .* shape \\(20,\\)"),
        ("resnet20", (1, 4, 9), "^model: wanted images of at least 5x5 for 'resnet20', got 4x9"),
        ("lennet", (3, 32, 32), "^model: wanted one of .* got 'lennet' .did you mean 'lenet'?"),
    ],
)
def test_models_that_do_not_fit(name, shape, message):
    with pytest.raises(fl.ConfigError, match=message):
        fl.build_model(name, dataset_of(*shape), fl.generator(0, "model"))
