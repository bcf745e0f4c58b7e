"""The methods against slow twins in plain PyTorch, and their options."""

import copy
import math
import re
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from whole_runs import Alone

import fedkern
from fedkern import fl
from fedkern.fl.flat import State

CONFIG = fl.RunConfig(
    clients=6, clients_per_round=4, rounds=1, local_epochs=2, batch_size=8, lr=0.3, clip=0.5
)


def in_float64(dataset):
    return replace(dataset, x_train=dataset.x_train.double(), x_test=dataset.x_test.double())


def calibrated_twin(logits, labels, counts=None):
    """FedGA's loss as its paper writes it; counts of the batch if not given."""
    n = torch.bincount(labels, minlength=logits.shape[1]).double() if counts is None else counts
    log_p = logits.log_softmax(1)
    calibration = 1 - n / n[labels].unsqueeze(1)
    label = F.one_hot(labels, logits.shape[1]) + log_p.detach().exp() * calibration
    return -(label * log_p).sum(1).mean()


def round_twin(model, dataset, partition, config, loss_of_client, by_samples):
    """One round, a client, a batch, a parameter after the other; returns state and mean loss."""
    states, weights, losses = [], [], []
    order = torch.randperm(config.clients, generator=fl.generator(config.seed, "clients", 1))
    for k in order[: config.clients_per_round].tolist():
        indices = partition.indices[k]
        local, loss = copy.deepcopy(model), loss_of_client(indices)
        draws = fl.generator(config.seed, "batches", 1, k)
        momentum = [torch.zeros_like(p) for p in local.parameters()]
        for _ in range(config.local_epochs):
            shuffled = indices[torch.randperm(len(indices), generator=draws)]
            for batch in shuffled.split(config.batch_size):
                x, y = dataset.x_train[batch], dataset.y_train[batch]
                parameters = list(local.parameters())
                gradients = torch.autograd.grad(loss(local(x), y), parameters)
                norm = sum((g**2).sum() for g in gradients).sqrt()
                shrink = min(1.0, config.clip / (norm.item() + 1e-6))
                losses += F.cross_entropy(local(x), y, reduction="none").tolist()
                with torch.no_grad():
                    for p, g, m in zip(parameters, gradients, momentum, strict=True):
                        m.mul_(config.momentum).add_(g * shrink + config.weight_decay * p)
                        p -= config.lr * m
        states.append([p.detach() for p in local.parameters()])
        weights.append(len(indices) if by_samples else 1)
    mean = [
        sum(w * tensor for w, tensor in zip(weights, tensors, strict=True)) / sum(weights)
        for tensors in zip(*states, strict=True)
    ]
    return mean, sum(losses) / len(losses)


@pytest.mark.parametrize("weighting", ["uniform", "samples"])
@pytest.mark.parametrize("method", ["fedavg", "fedga", "fedga-client"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_round_agrees_with_its_slow_twin(blobs, method, weighting, momentum):
    blobs = in_float64(blobs)
    config = replace(CONFIG, momentum=momentum, weight_decay=0.01)
    # Uneven clients, so that the weightings differ.
    partition = fl.Partition(list(torch.arange(240).split([10, 20, 30, 50, 60, 70])), 0)
    model = fl.build_model("mlp", blobs, fl.generator(0, "model")).double()

    def loss_of_client(indices):
        if method == "fedavg":
            return F.cross_entropy
        labels = blobs.y_train[indices]
        counts = torch.bincount(labels, minlength=4).double() if method != "fedga" else None
        return partial(calibrated_twin, counts=counts)

    expected, expected_loss = round_twin(
        model, blobs, partition, config, loss_of_client, by_samples=weighting == "samples"
    )
    options = {"counts": "client"} if method == "fedga-client" else {}
    built = fl.build_method(method.removesuffix("-client"), weighting=weighting, **options)
    (only,) = fl.simulate(built, model, fl.make_clients(blobs, partition), config)
    # 60 or so steps in float64: rounding grows with them, a wrong term shows at 1e-3.
    torch.testing.assert_close(list(model.parameters()), expected, rtol=1e-9, atol=1e-11)
    assert only.train_loss == pytest.approx(expected_loss, rel=1e-9)


def test_the_methods_differ(blobs):
    partition = fl.dirichlet(blobs.y_train, CONFIG.clients, 0.5, seed=0)
    methods = [
        fl.FedAvg(),
        fl.FedGA(),
        fl.FedGA(loss=fl.CalibratedCE(counts="client")),
        fl.FedGA(loss=fl.CalibratedCE(calibration="gradient")),
    ]
    ends = set()
    for method in methods:
        model = fl.build_model("mlp", blobs, fl.generator(0, "model"))
        list(fl.simulate(method, model, fl.make_clients(blobs, partition), CONFIG))
        ends.add(model[1].weight.sum().item())
    assert len(ends) == len(methods)


def test_balanced_counts_make_fedga_fedavg(blobs):
    blobs = in_float64(blobs)
    partition = fl.Partition(list(torch.arange(240).split(40)), 0)  # 10 of each class a client
    ends = []
    for method in (fl.FedAvg(), fl.FedGA(loss=fl.CalibratedCE(counts="client"))):
        model = fl.build_model("mlp", blobs, fl.generator(0, "model")).double()
        list(fl.simulate(method, model, fl.make_clients(blobs, partition), CONFIG))
        ends.append(list(model.parameters()))
    torch.testing.assert_close(*ends, rtol=1e-9, atol=1e-11)


def test_fedga_passes_its_options_to_the_loss(blobs):
    client = fl.Client(0, blobs, torch.tensor([0, 1, 2, 4, 8]), torch.tensor([]))
    logits = torch.randn(5, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    labels = blobs.y_train[client.indices]
    for calibration in ("label", "gradient"):
        for counts, given in (("batch", None), ("client", torch.tensor([3, 1, 1, 0]))):
            method = fl.build_method("fedga", calibration=calibration, counts=counts)
            constants = method.loss.constants(client)
            # A batch that is not the whole client, so that its counts are others.
            ours = torch.autograd.grad(method.loss(logits[1:], labels[1:], *constants), logits)
            direct = fedkern.calibrated_ce(
                logits[1:], labels[1:], class_counts=given, calibration=calibration
            )
            assert torch.equal(ours[0], torch.autograd.grad(direct, logits)[0])


def updates(dtype):
    yield fl.Update(State(torch.tensor([1.0, 2.0], dtype=dtype), []), 1, torch.tensor(4.0))
    yield fl.Update(State(torch.tensor([4.0, 8.0], dtype=dtype), []), 3, torch.tensor(8.0))


def test_aggregate_by_hand():
    before = State(torch.zeros(2), [])
    uniform = fl.FedAvg().aggregate(updates(torch.float32), before, Alone(2))
    assert uniform.state.values.tolist() == [2.5, 5.0]
    by_samples = fl.FedAvg(weighting="samples").aggregate(updates(torch.float32), before, Alone(2))
    assert by_samples.state.values.tolist() == [3.25, 6.5]
    for update in (uniform, by_samples):
        assert update.num_samples == 4
        assert update.train_loss.item() == 7.0  # over samples, however the models are weighted


@pytest.mark.parametrize("aggregation", [kind() for kind in fl.AGGREGATIONS.values()])
def test_aggregate_takes_each_update_before_the_next_changes_it(aggregation):
    model = torch.zeros(3)

    def live():
        for value in (1.0, 5.0):
            model.fill_(value)
            yield fl.Update(State(model, []), 1, torch.tensor(0.0))

    method, before = fl.FedAvg(aggregation=aggregation), State(torch.full((3,), 3.0), [])
    assert method.aggregate(live(), before, Alone(2)).state.values.tolist() == [3.0, 3.0, 3.0]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "fedgaa",
            {},
            "method: wanted one of balanced_softmax, climb, ditto, fedavg, fedga, fedlc, fedntd, "
            "fedper, fedprox, fedrl, fedrod, floco, floco+, got 'fedgaa' (did you mean 'fedga'?)",
        ),
        ("fedavg", {"weighting": "sample"}, "weighting: wanted one of samples, uniform, got"),
        ("fedga", {"calibration": "labels"}, "calibration: wanted one of gradient, label, got"),
        ("fedga", {"counts": "round"}, "counts: wanted one of batch, client, got 'round'"),
        ("fedprox", {"mu": -1.0}, "mu: wanted a finite number >= 0, got -1.0"),
        ("climb", {"dual_lr": math.nan}, "dual_lr: wanted a finite number >= 0, got nan"),
        ("climb", {"tolerance": math.inf}, "tolerance: wanted a finite number >= 0, got inf"),
        ("climb", {"dual_clients": "al"}, "dual_clients: wanted one of active, all, got 'al'"),
        ("fedntd", {"ntd_beta": -0.1}, "ntd_beta: wanted a finite number >= 0, got -0.1"),
        ("fedntd", {"ntd_tau": 0.0}, "ntd_tau: wanted a number from 1e-30 to 1e30, got 0.0"),
        ("fedrl", {"ratio_beta": -1.0}, "ratio_beta: wanted a finite number >= 0, got -1.0"),
        (
            "fedrl",
            {"ratio_alpha": 0.0, "ratio_beta": 0.0},
            "ratio_alpha: wanted a number > 0 where ratio_beta is 0, got 0",
        ),
        (
            "fedrl",
            {"loss": "fedlc"},
            "loss: wanted cross_entropy for fedrl, which has class weights",
        ),
        ("fedlc", {"lc_tau": -1.0}, "lc_tau: wanted a finite number >= 0, got -1.0"),
        ("ditto", {"lamda": -1.0}, "lamda: wanted a finite number >= 0, got -1.0"),
        (
            "fedavg",
            {"server_optimizer": "sgd"},
            "server_optimizer: wanted one of adam, avg, avgm, yogi, got 'sgd'",
        ),
        ("fedavg", {"server_lr": 0.0}, "server_lr: wanted a finite number > 0, got 0.0"),
        (
            "fedga",
            {"server_optimizer": "avgm", "server_momentum": 1.0},
            "server_momentum: wanted a number in [0, 1), got 1.0",
        ),
        (
            "floco",
            {"server_optimizer": "adam", "server_beta2": -0.5},
            "server_beta2: wanted a number in [0, 1), got -0.5",
        ),
        (
            "fedavg",
            {"server_optimizer": "yogi", "server_tau": 0.0},
            "server_tau: wanted a finite number > 0, got 0.0",
        ),
    ],
)
def test_bad_options(name, options, message):
    with pytest.raises(fl.ConfigError, match="^" + re.escape(message)):
        fl.build_method(name, **options)


def test_options_of_no_chosen_method_are_refused():
    chosen = fl.build_methods(["fedavg", "fedga"], counts="client", weighting="samples")
    assert chosen["fedga"].loss == fl.CalibratedCE(counts="client")
    assert chosen["fedavg"].loss == fl.CrossEntropy()
    assert chosen["fedavg"].weighting == chosen["fedga"].weighting == "samples"
    fl.build_methods(["fedavg"], counts=None)
    with pytest.raises(
        fl.ConfigError, match=r"^counts: wanted only with --loss calibrated_ce, got it with fedavg$"
    ):
        fl.build_methods(["fedavg"], counts="client")


def test_any_method_takes_any_loss():
    for name in set(fl.METHODS) - {"fedrl"}:
        for loss, kind in fl.LOSSES.items():
            assert type(fl.build_method(name, loss=loss).loss) is kind
    assert fl.build_method("fedavg", loss="calibrated_ce").loss == fl.FedGA().loss
    with pytest.raises(fl.ConfigError, match=r"^loss: wanted one of .* got 'ce'"):
        fl.build_method("fedavg", loss="ce")


def test_any_method_takes_any_server_optimizer():
    for name in fl.METHODS:
        for optimizer, kind in fl.SERVER_OPTIMIZERS.items():
            assert type(fl.build_method(name, server_optimizer=optimizer).server_optimizer) is kind
    built = fl.build_methods(["fedavg", "fedga --server-optimizer yogi"], server_lr=0.5)
    assert built["fedavg"].server_optimizer == fl.ServerAverage(0.5)
    assert built["fedga --server-optimizer yogi"].server_optimizer == fl.ServerYogi(0.5)
    message = "server_tau: wanted only with --server-optimizer adam or --server-optimizer yogi, got"
    with pytest.raises(fl.ConfigError, match=f"^{re.escape(message)}"):
        fl.build_methods(["fedavg"], server_tau=0.1)


def test_published_defaults():
    settings = {name: vars(kind()) for name, kind in fl.METHODS.items()}
    assert settings["fedprox"]["mu"] == 0.001
    assert (settings["fedntd"]["ntd_beta"], settings["fedntd"]["ntd_tau"]) == (1.0, 1.0)
    assert (settings["fedrl"]["ratio_alpha"], settings["fedrl"]["ratio_beta"]) == (1.0, 0.1)
    assert settings["ditto"]["lamda"] == 1.0
    assert vars(fl.ServerAdam()) == vars(fl.ServerYogi())
    adam = fl.ServerAdam()
    assert (adam.server_momentum, adam.server_beta2, adam.server_tau) == (0.9, 0.99, 1e-3)
    for kind in fl.METHODS.values():
        assert kind.paper


def test_a_variant_has_options_of_its_own():
    texts = ["floco", "floco --loss calibrated_ce", "floco   --rho=0.3 --loss calibrated_ce"]
    methods = fl.build_methods(texts, tau=7, rho=0.2)
    assert list(methods) == [*texts[:2], "floco --rho=0.3 --loss calibrated_ce"]
    assert [method.rho for method in methods.values()] == [0.2, 0.2, 0.3]
    assert [method.tau for method in methods.values()] == [7] * 3
    assert [type(method.loss) for method in methods.values()] == [
        fl.CrossEntropy,
        fl.CalibratedCE,
        fl.CalibratedCE,
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "method: wanted a name and options, got ''"),
        ("floco 'x", "method: wanted a name and options, got"),
        ("floco tau 3", "method: wanted a name and options of methods (--option value), got"),
        ("floco --tau", "method: wanted a name and options of methods (--option value), got"),
        ("floco --seed 3", "method: wanted a name and options of methods (--option value), got"),
        ("floco --tau 3.5", "tau: wanted int, got '3.5' in 'floco --tau 3.5'"),
        ("fedavg --tau 3", "tau: wanted only with floco or floco+, got it with fedavg"),
        ("fedavg --mu 3", "mu: wanted only with fedprox, got it with fedavg"),
        ("fedga --lc-tau 3", "lc_tau: wanted only with --loss fedlc, got it with fedga"),
    ],
)
def test_bad_variants(text, message):
    with pytest.raises(fl.ConfigError, match="^" + re.escape(message)):
        fl.build_methods([text])


def test_integers_are_not_averaged():
    def updates():
        for count in (3, 5):
            yield fl.Update(State(torch.tensor([1.0]), [torch.tensor(count)]), 1, torch.tensor(0.0))

    before = State(torch.tensor([0.0]), [torch.tensor(2)])
    weight, (counter,) = fl.FedAvg().aggregate(updates(), before, Alone(2)).state
    assert (counter.dtype, counter.item()) == (torch.int64, 5)
    assert weight.tolist() == [1.0]
