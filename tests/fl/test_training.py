"""Local training: what its options do."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fedkern import fl
from fedkern.fl.flat import FlatModel
from fedkern.fl.training import Job, LocalWork, Trainer

CONFIG = fl.RunConfig(local_epochs=2, batch_size=30, lr=0.1, clip=math.inf)
DRAWS = fl.Draws(0, 1, 0)


def client_of(dataset):
    everything = torch.arange(len(dataset.y_train))
    return fl.Client(0, dataset, everything, torch.arange(0))


def trained(module, dataset, config=CONFIG, draws=DRAWS, pull=0.0, anchors=None):
    """The parameters after a job; anchors as the parameters."""
    model = FlatModel(module)
    work = LocalWork(fl.CrossEntropy(), pull=pull)
    anchor = torch.zeros(0) if anchors is None else torch.cat([a.flatten() for a in anchors])
    job = Job(client_of(dataset), work, model.state.copy(), draws)
    Trainer(model, dataset, config).train(job, anchor)
    return [p.detach().clone() for p in module.parameters()]


def linear(dataset):
    return fl.build_model("mlp", dataset, fl.generator(0, "model"))


def test_training_depends_on_draws_alone(blobs):
    first, again = trained(linear(blobs), blobs), trained(linear(blobs), blobs)
    other = trained(linear(blobs), blobs, draws=replace(DRAWS, work="personal"))
    assert all(map(torch.equal, first, again))
    assert not torch.equal(first[0], other[0])


def test_pull_by_hand(blobs):
    """One batch, one epoch, a linear model: p - lr (gradient + strength (p - anchor))."""
    model = nn.Linear(6, 4)
    config = replace(CONFIG, local_epochs=1, batch_size=240)
    anchors = [torch.randn_like(p) for p in model.parameters()]
    start = [p.detach().clone() for p in model.parameters()]
    gradients = torch.autograd.grad(
        F.cross_entropy(model(blobs.x_train), blobs.y_train), list(model.parameters())
    )
    ends = trained(model, blobs, config, pull=0.5, anchors=anchors)
    for p, g, a, end in zip(start, gradients, anchors, ends, strict=True):
        torch.testing.assert_close(end, p - 0.1 * (g + 0.5 * (p - a)))


def test_clipping_holds_for_the_pulled_gradient(blobs):
    model = nn.Linear(6, 4)
    start = [p.detach().clone() for p in model.parameters()]
    anchors = [p + 100 for p in start]
    config = replace(CONFIG, local_epochs=1, batch_size=240, clip=0.5)
    ends = trained(model, blobs, config, pull=1.0, anchors=anchors)
    moved = sum((a - b).pow(2).sum() for a, b in zip(start, ends, strict=True)).sqrt().item()
    assert moved == pytest.approx(0.1 * 0.5, rel=1e-4)


@pytest.fixture
def images(blobs):
    """Blobs as images of one channel."""
    return replace(
        blobs,
        x_train=blobs.x_train[:, None, :, None].expand(-1, -1, -1, 6).contiguous(),
        x_test=blobs.x_test[:, None, :, None].expand(-1, -1, -1, 6).contiguous(),
    )


def test_augmentation_shows_other_images(images):
    seen = []

    class Spy(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(36, 4)

        def forward(self, inputs):
            seen.append(inputs.clone())
            return self.layer(inputs.flatten(1))

    config = replace(CONFIG, local_epochs=1)
    trained(Spy(), images, config)
    trained(Spy(), images, replace(config, augment="crop,flip"))
    plain, augmented = torch.cat(seen[:8]), torch.cat(seen[8:])
    assert plain.shape == augmented.shape
    draws = DRAWS("augment")
    windows = fl.draw_windows(len(plain), ("crop", "flip"), draws)
    expected = fl.through_windows(plain, windows)
    assert torch.equal(augmented, expected)  # the same order of samples, then varied
    assert not torch.equal(augmented, plain)


def test_uint8_data_train_as_their_floats(images):
    stored = (images.x_train * 30 + 100).clamp(0, 255).to(torch.uint8)
    bytes_, floats = (replace(images, x_train=x) for x in (stored, fl.scaled(stored)))
    config = replace(CONFIG, augment="crop,flip")
    ends = [trained(linear(x), x, config) for x in (bytes_, floats)]
    assert all(map(torch.equal, *ends))


# ---- buffers -------------------------------------------------------------------------------------


def normed():
    model = nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 4))
    with torch.no_grad():
        model[1].weight.normal_(generator=torch.Generator().manual_seed(0))
        model[1].bias.zero_()
        model[0].running_mean.fill_(0.25)
    return model


@pytest.mark.parametrize("buffers", ["aggregate", "local"])
def test_statistics_follow_the_data_unless_they_are_frozen(blobs, buffers):
    model = normed()
    trained(model, blobs, replace(CONFIG, buffers=buffers))
    assert model[0].num_batches_tracked == 16
    assert not torch.allclose(model[0].running_mean, torch.full((6,), 0.25), atol=0.05)


def test_frozen_statistics_are_used_as_they_are(blobs):
    model = normed()
    inputs = []
    model[1].register_forward_pre_hook(lambda _, args: inputs.append(args[0].detach()))
    config = replace(CONFIG, buffers="frozen", local_epochs=1, batch_size=240, lr=1e-3)
    trained(model, blobs, config)
    assert model[0].num_batches_tracked == 0
    assert torch.equal(model[0].running_mean, torch.full((6,), 0.25))
    shifted = blobs.x_train[torch.randperm(240, generator=DRAWS("batches"))] - 0.25
    torch.testing.assert_close(inputs[0], shifted / math.sqrt(1 + 1e-5))
    assert model[1].training  # only what keeps statistics is in eval mode


def run(dataset, buffers, method=None, rounds=2):
    config = replace(CONFIG, clients=3, clients_per_round=2, rounds=rounds, buffers=buffers)
    partition = fl.make_partition(dataset, replace(config, partition="shards"))
    clients = fl.make_clients(dataset, partition)
    model = normed()
    rounds = list(fl.simulate(method or fl.FedAvg(), model, clients, config))
    return rounds, model, clients


def test_aggregated_buffers_are_averaged_and_counters_are_not(blobs):
    _, model, clients = run(blobs, "aggregate")
    assert all(client.state == {} and not client.models for client in clients)
    # Two rounds of two epochs of three batches (80 samples by 30), starting at the global count.
    assert model[0].num_batches_tracked.dtype == torch.int64
    assert model[0].num_batches_tracked == 12


def test_local_buffers_stay_with_their_clients(blobs):
    rounds, model, clients = run(blobs, "local", rounds=4)
    took_part = {
        k
        for n in range(1, 5)
        for k in fl.sample_clients(3, replace(CONFIG, clients=3, clients_per_round=2), n)
    }
    assert {client.number for client in clients if "buffers" in client.models} == took_part
    means = [
        client.models["buffers"].buffers[0] for client in clients if client.number in took_part
    ]
    assert not torch.allclose(means[0], means[1])
    # FedAvg has personal figures now: the global weights with each client's own statistics.
    last = rounds[-1]
    for client in clients:
        x, y = blobs.x_test[client.test_indices], blobs.y_test[client.test_indices]
        own = normed()
        own.load_state_dict(model.state_dict())
        if "buffers" in client.models:
            for buffer, value in zip(own.buffers(), client.models["buffers"].buffers, strict=True):
                buffer.copy_(value)
        with torch.no_grad():
            expected = F.cross_entropy(own.eval()(x), y).item()
        seen = last.personal_on_local.cross_entropies[client.number].item()
        assert seen == pytest.approx(expected, rel=1e-5)
    assert last.personal_on_local.cross_entropy != last.global_on_local.cross_entropy


def test_local_buffers_count_a_clients_own_rounds(blobs):
    _, _, clients = run(blobs, "local", rounds=4)
    config = replace(CONFIG, clients=3, clients_per_round=2)
    sampled = [k for n in range(1, 5) for k in fl.sample_clients(3, config, n)]
    first = {
        k: next(n for n in range(1, 5) if k in fl.sample_clients(3, config, n)) for k in sampled
    }
    for client in clients:
        if "buffers" in client.models:
            # Before its first round it has the global counter, the largest so far.
            counter = client.models["buffers"].buffers[2].item()
            assert counter >= 6 * sampled.count(client.number)
            if first[client.number] == 1:
                assert counter == 6 * sampled.count(client.number)


def test_frozen_buffers_never_change(blobs):
    rounds, model, _ = run(blobs, "frozen")
    assert torch.equal(model[0].running_mean, torch.full((6,), 0.25))
    assert model[0].num_batches_tracked == 0
    assert rounds[-1].personal_on_local is None


def test_statistics_at_tau_leave_buffers_alone(blobs):
    seen = []

    class Spy(fl.Floco):
        def begin_round(self, server):
            before = [b.clone() for b in server.model.buffers]
            super().begin_round(server)
            seen.append(all(map(torch.equal, before, server.model.buffers)))

    for buffers in ("aggregate", "local"):
        run(blobs, buffers, Spy(endpoints=2, tau=2))
    assert seen == [True] * 4


def test_resnet20_trains_with_any_buffers(images):
    wide = replace(
        images,
        x_train=F.interpolate(images.x_train, size=(8, 8))[:48],
        y_train=images.y_train[:48],
        x_test=F.interpolate(images.x_test, size=(8, 8)),
    )
    for buffers in ("aggregate", "local", "frozen"):
        config = fl.RunConfig(
            model="resnet20",
            clients=2,
            clients_per_round=2,
            rounds=1,
            local_epochs=1,
            buffers=buffers,
            partition="iid",
        )
        model = fl.build_model("resnet20", wide, fl.generator(0, "model"))
        clients = fl.make_clients(wide, fl.make_partition(wide, config))
        (only,) = fl.simulate(fl.FedAvg(), model, clients, config)
        assert math.isfinite(only.train_loss)
        assert only.evaluation.samples == 60
