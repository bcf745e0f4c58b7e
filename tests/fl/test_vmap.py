"""The vmap engine against the serial one, in float64: the same but for rounding."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from whole_runs import SMALL, assert_close, drawn, run

from fedkern import fl
from fedkern.fl import vmap
from fedkern.fl.flat import FlatModel
from fedkern.fl.training import Job, LocalWork
from fedkern.fl.vmap import VmapEngine
from fedkern.nn import simplexify

CONFIG = replace(SMALL, lr=0.2)
# Clients with a sample, with fewer than a batch of 16, with a whole batch, and with a last batch
# of 1; and one without any data.
UNEVEN = [1, 10, 16, 0, 49, 164]
CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")


@pytest.fixture
def blobs64(blobs):
    return in_float64(blobs)


def in_float64(dataset):
    return replace(dataset, x_train=dataset.x_train.double(), x_test=dataset.x_test.double())


def images(dataset, channels, side):
    """Blobs as images: three of their values as brightness and textures."""

    def shown(x):
        texture = torch.linspace(-2, 2, channels * side * side).view(channels, side, side).sin()
        return (
            x[:, :1, None, None]
            + x[:, 1:2, None, None] * texture
            + texture.abs() * x[:, 2].view(-1, 1, 1, 1)
        )

    return replace(dataset, x_train=shown(dataset.x_train), x_test=shown(dataset.x_test))


def uneven(dataset):
    order = torch.randperm(240, generator=torch.Generator().manual_seed(3))
    partition = fl.Partition(list(order.split(UNEVEN)), 0)
    tests = fl.local_test_indices(partition, dataset.y_train, dataset.y_test, 0)
    return replace(partition, test_indices=tests)


def small():
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4)).double()


def assert_engines_agree(dataset, config, method=None, build=small, partition=None, rtol=1e-9):
    method = method or fl.FedAvg()
    serial = run(dataset, config, method, build, partition)
    batched = run(dataset, replace(config, engine="vmap"), method, build, partition)
    # A few hundred steps in float64: rounding grows with them, a wrong term shows at 1e-3.
    assert_close(batched, serial, rtol=rtol, atol=rtol / 100)
    assert batched.facts == {"engine": "vmap"}
    for a, b in zip(batched.rounds, serial.rounds, strict=True):
        assert a.evaluation.cross_entropy == pytest.approx(b.evaluation.cross_entropy, rel=1e-5)


METHODS = {
    "fedavg": fl.FedAvg(),
    "fedavg by samples": fl.FedAvg("samples"),
    "counts of the batch": fl.FedGA(),
    "counts of the client": fl.FedGA(loss=fl.CalibratedCE(counts="client")),
    "calibrated gradient": fl.FedGA(loss=fl.CalibratedCE("gradient")),
    "ditto": fl.Ditto(lamda=0.3),
    "ditto, calibrated": fl.Ditto(loss=fl.CalibratedCE(counts="client")),
    "floco before tau": fl.Floco(endpoints=3, tau=9),
    "floco across tau": fl.Floco(endpoints=3, tau=2, rho=0.4),
    "floco at centres": fl.Floco(endpoints=3, tau=1, rho=0.0),
    "floco of one endpoint": fl.Floco(endpoints=1, tau=2),
    "floco+ across tau": fl.FlocoPlus(endpoints=3, tau=2, lamda=0.3),
    "floco+, published faults": fl.FlocoPlus(endpoints=3, tau=2, lamda=0.3, compat="floco"),
    "fedntd": fl.FedNTD(),
    "fedrod": fl.FedRoD(),
    "climb": fl.Climb(dual_lr=9.0),
    "fedrl": fl.FedRL(ratio_beta=0.5),
}
SETTINGS = {
    "one epoch": {"local_epochs": 1},
    "three epochs": {"local_epochs": 3},
    "momentum and decay": {"momentum": 0.9, "weight_decay": 0.01, "lr": 0.05},
    "clipped": {"clip": 0.3},
    "not clipped": {"clip": math.inf},
    "batches of one": {"batch_size": 1, "local_epochs": 1, "rounds": 1},
    "batches of all": {"batch_size": 500},
}


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_all_methods(blobs64, method):
    config = replace(CONFIG, momentum=0.5, weight_decay=0.01, clip=0.5)
    assert_engines_agree(blobs64, config, method, partition=uneven(blobs64))


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_all_settings(blobs64, settings):
    method = fl.FlocoPlus(endpoints=2, tau=2)
    config = replace(CONFIG, **settings)
    assert_engines_agree(blobs64, config, method, partition=uneven(blobs64))


# ---- models and data -----------------------------------------------------------------------------


class Residual(nn.Module):
    """No Sequential; a layer twice, tied weights, a constant buffer, frozen and unused weights."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(6, 6)
        self.norm = nn.LayerNorm(6)
        self.frozen = nn.Linear(6, 6).requires_grad_(False)
        self.unused = nn.Parameter(torch.ones(3))
        self.again = nn.Linear(6, 6, bias=False)
        self.again.weight = self.inner.weight
        self.last = nn.Linear(6, 4)
        self.register_buffer("shift", torch.full((6,), 0.1))
        self.double()

    def forward(self, inputs):
        x = self.norm(inputs + torch.relu(self.inner(inputs) + self.shift))
        x = x + self.frozen(self.inner(x)) + self.again(x.square())
        return self.last(x)


@pytest.mark.parametrize("method", [fl.FedAvg(), fl.Floco(endpoints=2, tau=2), fl.FedNTD()])
def test_a_users_own_model(blobs64, method):
    config = replace(CONFIG, momentum=0.5, weight_decay=0.01)
    assert_engines_agree(blobs64, config, method, Residual, uneven(blobs64))


def test_a_teacher_on_a_simplex(blobs64):
    """A user's own simplex model: the teacher is at its centre."""

    def build():
        return simplexify(small(), num_endpoints=2, generator=torch.Generator().manual_seed(0))

    assert_engines_agree(blobs64, CONFIG, fl.FedNTD(), build, uneven(blobs64))


@pytest.mark.parametrize("method", [fl.FedAvg(), fl.FedNTD()])
@pytest.mark.parametrize("augment", ["", "crop", "flip", "crop,flip"])
def test_images(blobs64, augment, method):
    def build():
        return nn.Sequential(
            nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(108, 4)
        ).double()

    dataset = images(blobs64, 2, 8)
    config = replace(CONFIG, augment=augment)
    assert_engines_agree(dataset, config, method, build, uneven(dataset), rtol=1e-8)


@pytest.mark.parametrize("network", [fl.LeNet, fl.FlocoCNN])
def test_the_networks_of_the_experiments(blobs64, network):
    dataset = images(blobs64, 3, 16)
    config = replace(CONFIG, rounds=1, local_epochs=1, clients_per_round=3, partition="iid")

    def build():
        module = network(3, 16, 16, 4).double()
        return module.to(memory_format=torch.channels_last)

    assert_engines_agree(dataset, config, fl.FedGA(), build)


class InFloat64(nn.Sequential):
    """Batches of uint8 data are float32."""

    def forward(self, inputs):
        return super().forward(inputs.double())


def test_uint8_data(blobs):
    dataset = images(blobs, 2, 8)
    stored = {
        name: (getattr(dataset, name) * 20 + 128).clamp(0, 255).to(torch.uint8)
        for name in ("x_train", "x_test")
    }
    dataset = replace(dataset, **stored)

    def build():
        return InFloat64(nn.Flatten(), nn.Linear(128, 4)).double()

    config = replace(CONFIG, augment="crop,flip")
    assert_engines_agree(dataset, config, build=build, partition=uneven(dataset))


def test_float32_as_far_as_it_goes(blobs):
    def build():
        return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4))

    method = fl.FlocoPlus(endpoints=3, tau=2)
    assert_engines_agree(blobs, CONFIG, method, build, uneven(blobs), rtol=1e-3)


# ---- batch norm ----------------------------------------------------------------------------------


def normed():
    return nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 4)).double()


@pytest.mark.parametrize("buffers", ["aggregate", "local"])
def test_batch_norm_would_see_what_fills_up_batches(blobs64, buffers):
    config = replace(CONFIG, engine="vmap", buffers=buffers)
    message = r"^engine: wanted serial .or buffers=frozen. for a model with batch norm, got vmap"
    with pytest.raises(fl.ConfigError, match=message):
        run(blobs64, config, fl.FedAvg(), normed)


class Counting(nn.Linear):
    """Changes a buffer in training."""

    def __init__(self):
        super().__init__(6, 4, dtype=torch.float64)
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))

    def forward(self, inputs):
        if self.training:
            self.batches += 1
        return super().forward(inputs)


def test_buffers_that_change_are_one_for_all_clients(blobs64):
    message = r"^engine: wanted serial .or buffers=frozen. for a model that changes its buffers, "
    with pytest.raises(fl.ConfigError, match=message):
        run(blobs64, replace(CONFIG, engine="vmap"), fl.FedAvg(), Counting)
    assert_engines_agree(blobs64, replace(CONFIG, buffers="frozen"), build=Counting)


def test_frozen_batch_norm(blobs64):
    for method in (fl.FedAvg(), fl.Ditto()):
        assert_engines_agree(blobs64, replace(CONFIG, buffers="frozen"), method, normed)


# ---- the stack -----------------------------------------------------------------------------------


@pytest.fixture
def built(monkeypatch):
    """The numbers of clients for which stacks were built."""
    sizes = []
    init = vmap._Stack.__init__

    def spy(self, model, dataset, config, jobs, plan):
        sizes.append(len(jobs))
        init(self, model, dataset, config, jobs, plan)

    monkeypatch.setattr(vmap._Stack, "__init__", spy)
    return sizes


def test_rounds_with_other_numbers_of_clients(blobs64, built):
    """Sampled clients without data take no part."""
    config = replace(CONFIG, clients_per_round=3, rounds=6)
    empty = torch.tensor([], dtype=torch.int64)
    partition = fl.Partition([*torch.arange(240).split(80), empty, empty, empty], 0)
    active = [sum(k < 3 for k in fl.sample_clients(6, config, n)) for n in range(1, 7)]
    assert {1, 2} <= set(active)
    assert_engines_agree(blobs64, config, partition=partition)
    changes = [k for k, before in zip(active, [0, *active], strict=False) if k not in (0, before)]
    assert len(built) <= len(changes)
    assert set(built) == set(active) - {0}


def test_rounds_alike_share_a_stack(blobs64, built):
    assert_engines_agree(blobs64, replace(CONFIG, partition="iid", rounds=4))
    assert built == [4]


def test_shared_and_personal_models_have_a_stack_each(blobs64, built):
    assert_engines_agree(blobs64, replace(CONFIG, partition="iid", rounds=4), fl.Ditto())
    assert built == [4, 4]


def test_statistics_of_all_clients_are_taken_a_rounds_size_at_a_time(blobs64, built):
    config = replace(CONFIG, partition="iid", rounds=2)
    assert_engines_agree(blobs64, config, fl.Floco(endpoints=2, tau=2))
    assert max(built) == config.clients_per_round


def jobs_of(engine, dataset, sizes, work=None):
    places = torch.arange(len(dataset.y_train), device=dataset.y_train.device)
    return [
        Job(
            fl.Client(k, dataset, part, torch.arange(0)),
            work or LocalWork(fl.CrossEntropy()),
            engine.model.state.copy(),
            fl.Draws(0, 1, k),
        )
        for k, part in enumerate(places.split(sizes))
    ]


def trained(engine, jobs):
    results = engine.train(jobs, jobs[0].start.values)
    return [(result.state.values.clone(), result.train_loss.item()) for result in results]


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=CUDA)])
def test_a_stack_remembers_nothing(blobs64, device):
    """Shorter rounds and longer ones, other pulls and losses: each as in an engine of its own."""
    blobs64 = blobs64.to(device)
    config = replace(CONFIG, momentum=0.5)
    engine = VmapEngine(FlatModel(drawn(small()).to(device)), blobs64, config)
    plain, pulled = LocalWork(fl.CrossEntropy()), LocalWork(fl.CrossEntropy(), pull=0.5)
    calibrated = LocalWork(fl.CalibratedCE(counts="client"))
    rounds = [([120, 120], plain), ([40, 200], plain), ([120, 120], plain), ([239, 1], plain)]
    rounds += [([120, 120], pulled), ([120, 120], calibrated), ([80, 80, 80], plain)]
    for sizes, work in rounds:
        jobs = jobs_of(engine, blobs64, sizes, work)
        fresh = VmapEngine(FlatModel(drawn(small()).to(device)), blobs64, config)
        for (values, loss), (expected, expected_loss) in zip(
            trained(engine, jobs), trained(fresh, jobs), strict=True
        ):
            torch.testing.assert_close(values, expected)
            assert loss == pytest.approx(expected_loss)


def test_frozen_parameters_and_buffers_are_the_starts_own(blobs64):
    engine = VmapEngine(FlatModel(drawn(Residual())), blobs64, CONFIG)
    jobs = jobs_of(engine, blobs64, [120, 120])
    before = engine.model.values.clone()
    for job, result in zip(jobs, engine.train(jobs, before), strict=True):
        assert result.state.buffers is job.start.buffers
    assert torch.equal(engine.model.values, before)  # training was in the stack


# ---- CUDA ----------------------------------------------------------------------------------------


@CUDA
@pytest.mark.parametrize("engine", ["serial", "vmap"])
@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_cuda_as_the_cpu(blobs64, method, engine):
    config = replace(CONFIG, momentum=0.5, weight_decay=0.01, clip=0.5)
    partition = uneven(blobs64)
    expected = run(blobs64, config, method, small, partition)
    config = replace(config, engine=engine, device="cuda")
    found = run(blobs64.to("cuda"), config, method, small, partition)
    assert_close(found, expected, rtol=1e-9, atol=1e-11)


@CUDA
@pytest.mark.parametrize("augment", ["", "crop,flip"])
def test_cuda_images(blobs, augment):
    """In float32, uint8 stored; convolutions may round to TF32 unless they are told not to."""
    dataset = images(blobs, 3, 16)
    stored = (dataset.x_train * 20 + 128).clamp(0, 255).to(torch.uint8)
    dataset = replace(dataset, x_train=stored, x_test=stored[:60])
    config = replace(CONFIG, rounds=1, local_epochs=1, augment=augment)

    def build():
        return fl.LeNet(3, 16, 16, 4)

    with torch.backends.cudnn.flags(allow_tf32=False, deterministic=True):
        expected = run(dataset, config, fl.FedGA(), build)
        config = replace(config, engine="vmap", device="cuda")
        found = run(dataset.to("cuda"), config, fl.FedGA(), build)
    assert_close(found, expected, rtol=1e-3, atol=1e-4)


@CUDA
@pytest.mark.parametrize("augment", ["", "crop,flip"])
@pytest.mark.parametrize("on_simplex", [False, True])
def test_cuda_replays_a_graph_and_waits_for_nothing(blobs, augment, on_simplex):
    dataset = images(blobs, 3, 16).to("cuda")
    module, center = drawn(fl.LeNet(3, 16, 16, 4)).cuda(), None
    if on_simplex:
        simplexify(module, num_endpoints=2, generator=torch.Generator().manual_seed(0))
        center = torch.tensor([0.7, 0.3], device="cuda")
    config = replace(CONFIG, augment=augment, momentum=0.5)
    engine = VmapEngine(FlatModel(module), dataset, config)
    work = LocalWork(fl.CrossEntropy(), pull=0.1, center=center, radius=0.2)
    jobs = jobs_of(engine, dataset, [100, 90, 50], work)
    anchor = engine.model.values.clone()
    first = [result.state.values.clone() for result in engine.train(jobs, anchor)]
    (stack,) = engine._stacks
    assert stack._graph is not None
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        second = [result.state.values.clone() for result in engine.train(jobs, anchor)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert engine._stacks == [stack]
    assert not torch.equal(first[0], jobs[0].start.values)
    torch.testing.assert_close(first, second)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=CUDA)])
def test_each_step_of_each_client_has_its_own_dropout(blobs, device):
    dataset = blobs.to(device)
    module = drawn(nn.Sequential(nn.Dropout(), nn.Linear(6, 4))).to(device)
    config = replace(CONFIG, batch_size=240, local_epochs=1)  # a step
    engine = VmapEngine(FlatModel(module), dataset, config)
    jobs = jobs_of(engine, dataset, [120, 120])
    first = jobs[0]
    jobs = [first, first._replace(client=replace(first.client, number=1))]
    ends = [values for _ in range(3) for values, _ in trained(engine, jobs)]
    # The same data in the same order: without dropout they would differ by rounding at most.
    for k, values in enumerate(ends):
        assert all((values - other).abs().max() > 1e-3 for other in ends[:k])
    assert device == "cpu" or engine._stacks[0]._graph is not None
