"""Floco, Floco+ and Ditto against slow twins in plain PyTorch, across tau, and at their edges."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fedkern import fl, simplex
from fedkern.fl.flat import FlatModel, Layout
from fedkern.fl.methods.ditto import PERSONAL
from fedkern.fl.methods.floco import CENTER
from fedkern.nn import endpoint_parameters, simplexify, subregion
from fedkern.reference import calibrated_ce, simplex_assign_subregions

CONFIG = fl.RunConfig(
    clients=6,
    clients_per_round=3,
    rounds=3,
    local_epochs=2,
    batch_size=8,
    lr=0.1,
    momentum=0.5,
    weight_decay=0.01,
    clip=2.0,
)
UNEVEN = [10, 20, 30, 50, 60, 70]  # clients' sizes, so that weightings differ


def network(draws, num_endpoints=0, dtype=torch.float64):
    """Two layers, the last one a simplex if asked for."""
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4)).to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.5, generator=draws)
    if num_endpoints:
        simplexify(model, num_endpoints=num_endpoints, generator=draws)
    return model


def clients_of(dataset, sizes=UNEVEN):
    shuffled = torch.randperm(sum(sizes), generator=torch.Generator().manual_seed(3))
    partition = fl.Partition(list(shuffled.split(sizes)), 0)
    tests = fl.local_test_indices(partition, dataset.y_train, dataset.y_test, 0)
    return fl.make_clients(dataset, replace(partition, test_indices=tests))


@pytest.fixture
def blobs64(blobs):
    return replace(blobs, x_train=blobs.x_train.double(), x_test=blobs.x_test.double())


# ---- the twin ------------------------------------------------------------------------------------


def forward(parameters, x, alpha):
    """The network at the point alpha of its simplex; of one endpoint where alpha is None."""
    first, first_bias, *last = parameters
    weight, bias = last
    if alpha is not None:
        weight = sum(a * w for a, w in zip(alpha, weight, strict=True))
    return torch.tanh(x @ first.T + first_bias) @ weight.T + bias


def sgd(parameters, client, config, draws, loss, draw_point, pull=None, parentheses=True):
    """A client's training, a parameter after the other; returns new parameters."""
    parameters = [p.clone().requires_grad_() for p in parameters]
    velocities = [torch.zeros_like(p) for p in parameters]
    batches, x, y = draws("batches"), client.dataset.x_train, client.dataset.y_train
    for _ in range(config.local_epochs):
        order = client.indices[torch.randperm(len(client.indices), generator=batches)]
        for batch in order.split(config.batch_size):
            value = loss(forward(parameters, x[batch], draw_point()), y[batch])
            gradients = torch.autograd.grad(value, parameters)
            with torch.no_grad():
                if pull:
                    lamda, anchors = pull
                    gradients = [
                        g + (lamda * (p - a) if parentheses else lamda * p - a)
                        for g, p, a in zip(gradients, parameters, anchors, strict=True)
                    ]
                norm = math.sqrt(sum((g**2).sum().item() for g in gradients))
                shrink = min(1.0, config.clip / (norm + 1e-6))
                for p, g, v in zip(parameters, gradients, velocities, strict=True):
                    v.mul_(config.momentum).add_(shrink * g + config.weight_decay * p)
                    p -= config.lr * v
    return [p.detach() for p in parameters]


def run_twin(name, parameters, clients, config, *, tau, rho, lamda, loss, compat=None):
    """Rounds of Floco, Floco+ or Ditto; returns global and personal parameters and the centres."""
    on_simplex = name != "ditto"
    num_endpoints = len(parameters[2])
    centers, personal = {}, {}

    def points(client, draws, within_subregion=True):
        if not on_simplex:
            return lambda: None
        generator = draws("alpha")
        steps = config.local_epochs * math.ceil(len(client) / config.batch_size)
        if within_subregion and client.number in centers:
            method = "published" if compat else "exact"
            center = centers[client.number]
            drawn = simplex.sample_ball(center, rho, steps, method=method, generator=generator)
        else:
            drawn = simplex.sample(num_endpoints, [steps], generator=generator, dtype=torch.float64)
        return iter(drawn).__next__

    for number in range(1, config.rounds + 1):
        if on_simplex and number == tau:
            statistics = {}
            for client in clients:
                if len(client):
                    draws = fl.Draws(config.seed, number, client.number, "statistics")
                    draw = points(client, draws)
                    trained = sgd(parameters, client, config, draws, loss, draw)
                    change = trained[2] - parameters[2]
                    statistics[client.number] = (change if compat else -change).flatten()
            betas, _ = simplex_assign_subregions(torch.stack([*statistics.values()]), num_endpoints)
            centers = dict(zip(statistics, betas, strict=True))
        locals_, weights = [], []
        for k in fl.sample_clients(len(clients), config, number):
            client, draws = clients[k], fl.Draws(config.seed, number, k)
            if not len(client):
                continue
            if name in ("floco+", "ditto"):
                own_draws = fl.Draws(config.seed, number, k, "personal")
                personal[k] = sgd(
                    personal.get(k, parameters),
                    client,
                    config,
                    own_draws,
                    loss,
                    points(client, own_draws),
                    pull=(lamda, parameters),
                    parentheses=compat is None,
                )
            locals_.append(sgd(parameters, client, config, draws, loss, points(client, draws)))
            weights.append(len(client))
        parameters = [
            sum(w * p for w, p in zip(weights, ps, strict=True)) / sum(weights)
            for ps in zip(*locals_, strict=True)
        ]
    return parameters, personal, centers


@pytest.mark.parametrize("tau", [1, 2, 3, 4])
@pytest.mark.parametrize("loss", ["cross_entropy", "calibrated_ce"])
@pytest.mark.parametrize("compat", [None, "floco"])
@pytest.mark.parametrize("name", ["floco", "floco+", "ditto"])
def test_three_rounds_agree_with_the_slow_twin(blobs64, name, compat, loss, tau):
    if name == "ditto" and (tau > 1 or compat):
        pytest.skip("Ditto has no tau and no published faults")
    num_endpoints = 0 if name == "ditto" else 3
    model = network(torch.Generator().manual_seed(1), num_endpoints)
    options = {"tau": tau, "rho": 0.2, "lamda": 0.7, "compat": compat}
    method = fl.build_method(name, loss=loss, **options)
    clients = clients_of(blobs64)
    last = model[2]
    initial = [p.detach().clone() for p in (*model[0].parameters(), *last.parameters())]
    assert [p.dim() for p in initial] == [2, 1, 3 if num_endpoints else 2, 1]
    twin_loss = F.cross_entropy if loss == "cross_entropy" else calibrated_ce
    expected, personal, centers = run_twin(
        name, initial, clients_of(blobs64), CONFIG, loss=twin_loss, **options
    )
    assert len(list(fl.simulate(method, model, clients, CONFIG))) == 3
    torch.testing.assert_close(list(model.parameters()), expected, rtol=1e-6, atol=1e-6)
    assert {c.number for c in clients if CENTER in c.state} == set(centers)
    assert len(centers) == (6 if name != "ditto" and tau <= 3 else 0)
    for k, center in centers.items():
        torch.testing.assert_close(clients[k].state[CENTER], center, rtol=1e-6, atol=1e-6)
    assert {c.number for c in clients if PERSONAL in c.models} == set(personal)
    assert bool(personal) == (name != "floco")
    for k, parameters in personal.items():
        own = of_state(model, clients[k].models[PERSONAL])
        torch.testing.assert_close(own, parameters, rtol=1e-6, atol=1e-6)


def of_state(model, state):
    """A state's parameters, in the order of the model's."""
    views = Layout(model).parameters(state.values)
    return [views[name] for name, _ in model.named_parameters()]


# ---- the simplex ---------------------------------------------------------------------------------


def run(method, dataset, config=CONFIG, clients=None, model=None):
    clients = clients or clients_of(dataset)
    model = model or network(torch.Generator().manual_seed(1), 3, torch.float32)
    return list(fl.simulate(method, model, clients, config)), model, clients


def test_all_subregions_lie_on_the_simplex(blobs):
    _, _, clients = run(fl.Floco(tau=2), blobs)
    centers = torch.stack([client.state[CENTER] for client in clients])
    assert centers.shape == (6, 3)
    assert (centers >= 0).all()
    torch.testing.assert_close(centers.sum(1), torch.ones(6))
    assert len(centers.unique(dim=0)) > 1


def test_statistics_change_nothing_else(blobs):
    """Where the subregions are the whole simplex, training after tau is what it was without."""
    without, model_without, _ = run(fl.Floco(tau=9, rho=2.0), blobs)
    across, model, clients = run(fl.Floco(tau=2, rho=2.0), blobs)
    assert all(CENTER in client.state for client in clients)
    assert all(map(torch.equal, model.parameters(), model_without.parameters()))
    for a, b in zip(without, across, strict=True):
        assert (a.train_loss, a.evaluation, a.global_on_local) == (
            b.train_loss,
            b.evaluation,
            b.global_on_local,
        )


def test_statistics_cost_one_local_training_a_client(blobs):
    """Forward passes in training mode, round by round, of clients of ten to seventy samples."""
    model = network(torch.Generator().manual_seed(1), 3, torch.float32)
    passes = []
    model.register_forward_pre_hook(lambda module, _: passes.append(module.training))
    clients = clients_of(blobs)
    batches = [2 * math.ceil(size / 8) for size in UNEVEN]
    for round in fl.simulate(fl.FlocoPlus(tau=2), model, clients, CONFIG):
        sampled = fl.sample_clients(6, CONFIG, round.number)
        expected = 2 * sum(batches[k] for k in sampled)  # the shared and the personal model
        assert sum(passes) == expected + (sum(batches) if round.number == 2 else 0)
        passes.clear()


def test_statistics_do_not_touch_personal_models(blobs):
    seen = []

    class Spy(fl.FlocoPlus):
        def begin_round(self, server):
            before = own_models()
            super().begin_round(server)
            assert own_models().keys() == before.keys()
            assert all(map(torch.equal, own_models().values(), before.values()))
            seen.append(len(before))

    def own_models():
        own = {client.number: client.models.get(PERSONAL) for client in clients}
        return {number: model.values for number, model in own.items() if model is not None}

    clients = clients_of(blobs)
    run(Spy(tau=2), blobs, clients=clients)
    assert seen[0] == 0 < seen[1] <= seen[2]


def test_before_tau_personal_models_are_the_global_one(blobs):
    rounds, _, _ = run(fl.Floco(tau=3), blobs)
    for round in rounds[:2]:
        assert round.personal_on_local == replace(round.global_on_local, model="personal")
    assert rounds[2].personal_on_local != replace(rounds[2].global_on_local, model="personal")


def test_the_global_model_is_at_the_centre_and_clients_are_at_theirs(blobs):
    rounds, model, clients = run(fl.Floco(tau=1), blobs)
    weights = endpoint_parameters(model)[0].detach()

    def logits(x, alpha):
        parameters = [*model[0].parameters(), weights, model[2].bias]
        return forward([p.detach() for p in parameters], x, alpha)

    of_global = logits(blobs.x_test, torch.full((3,), 1 / 3))
    assert rounds[-1].evaluation.accuracy == pytest.approx(
        (of_global.argmax(1) == blobs.y_test).double().mean().item()
    )
    for client in clients:
        x, y = blobs.x_test[client.test_indices], blobs.y_test[client.test_indices]
        expected = F.cross_entropy(logits(x, client.state[CENTER]), y).item()
        own = rounds[-1].personal_on_local.cross_entropies[client.number].item()
        assert own == pytest.approx(expected, rel=1e-5)
        expected = F.cross_entropy(of_global[client.test_indices], y).item()
        own = rounds[-1].global_on_local.cross_entropies[client.number].item()
        assert own == pytest.approx(expected, rel=1e-5)


def test_the_published_code_evaluates_the_global_model_at_one_clients_centre(blobs):
    rounds, model, clients = run(fl.Floco(tau=2, compat="floco"), blobs)
    last = fl.sample_clients(6, CONFIG, CONFIG.rounds)[-1]
    with subregion(model, clients[last].state[CENTER]):
        expected = F.cross_entropy(fl.predict(model, blobs.x_test), blobs.y_test).item()
    assert rounds[-1].evaluation.cross_entropy == pytest.approx(expected, rel=1e-6)
    at_centre = F.cross_entropy(fl.predict(model, blobs.x_test), blobs.y_test).item()
    assert expected != pytest.approx(at_centre, rel=1e-4)


def test_published_points_leave_the_simplex(blobs64):
    """So that the twin's agreement is about another sampler."""
    ends = []
    for compat in ("", "floco"):
        _, model, _ = run(
            fl.Floco(tau=1, rho=0.3, compat=compat),
            blobs64,
            model=network(torch.Generator().manual_seed(1), 3),
        )
        ends.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert not torch.allclose(*ends, rtol=1e-4, atol=1e-4)


# ---- edges ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("tau", [1, 2, 4])
def test_one_endpoint_is_fedavg(blobs, tau):
    plain = network(torch.Generator().manual_seed(1), dtype=torch.float32)
    single = network(torch.Generator().manual_seed(1), dtype=torch.float32)
    weight = single[2].weight.detach().clone()
    simplexify(single, num_endpoints=1)
    with torch.no_grad():
        endpoint_parameters(single)[0].copy_(weight)
    expected, plain, _ = run(fl.FedAvg(weighting="samples"), blobs, model=plain)
    rounds, single, _ = run(fl.Floco(tau=tau), blobs, model=single)
    for a, b in zip(plain.parameters(), single.parameters(), strict=True):
        assert torch.equal(a, b.view_as(a))
    for a, b in zip(expected, rounds, strict=True):
        assert (a.train_loss, a.evaluation, a.global_on_local) == (
            b.train_loss,
            b.evaluation,
            b.global_on_local,
        )
        assert torch.equal(b.personal_on_local.accuracies, b.global_on_local.accuracies)
        # From tau on in batches of a client's size, whose logits round differently.
        assert b.personal_on_local.cross_entropy == pytest.approx(b.global_on_local.cross_entropy)


@pytest.mark.parametrize("name", ["floco", "floco+"])
def test_two_endpoints(blobs, name):
    model = network(torch.Generator().manual_seed(1), 2, torch.float32)
    method = fl.build_method(name, tau=2)
    rounds, _, clients = run(method, blobs, replace(CONFIG, rounds=10), model=model)
    assert rounds[-1].evaluation.accuracy > 0.8
    assert all(client.state[CENTER].shape == (2,) for client in clients)


def test_the_last_layer_of_a_plain_model_becomes_the_simplex(blobs):
    model = network(torch.Generator().manual_seed(1), dtype=torch.float32)
    _, model, _ = run(fl.Floco(endpoints=4, tau=2), blobs, model=model)
    assert [tuple(e.shape) for e in endpoint_parameters(model)] == [(4, 4, 5)]
    assert len(list(model.parameters())) == 4  # two layers of endpoints or weight, and bias


def test_fewer_clients_than_endpoints_is_an_error_before_training(blobs):
    for method, sizes, message in (
        (fl.Floco(endpoints=7), UNEVEN, "at least 7 with data, to place .* 7 endpoints, got 6$"),
        (fl.Floco(endpoints=3), [120, 0, 120, 0], "at least 3 with data, .* got 2$"),
        (fl.Floco(endpoints=1), [240], "at least 2 with data, .* got 1$"),
    ):
        model = network(torch.Generator().manual_seed(1), dtype=torch.float32)
        before = [p.detach().clone() for p in model[0].parameters()]
        rounds = fl.simulate(method, model, clients_of(blobs, sizes), CONFIG)
        with pytest.raises(fl.ConfigError, match=f"^clients: wanted {message}"):
            next(rounds)
        assert all(map(torch.equal, before, model[0].parameters()))


def test_a_client_that_failed_or_came_late_has_the_whole_simplex(blobs):
    clients = clients_of(blobs, [60, 60, 0, 60, 60])
    empty = clients[2]
    failing = clients[4]

    class Failing(fl.Floco):
        def pseudo_gradient(self, client, *states):
            gradient = super().pseudo_gradient(client, *states)
            return gradient * math.nan if client is failing else gradient

    config = replace(CONFIG, clients=5, clients_per_round=5)
    method = Failing(tau=1, rho=0.0)
    rounds, model, _ = run(method, blobs, config, clients)
    assert [CENTER in client.state for client in clients] == [True, True, False, True, False]
    # Both look at the simplex centre, and train on all of it.
    for client in (empty, failing):
        assert method.personal_model(model, client) is None
        assert method.local_work(client)[0].center is None
    assert len(rounds) == 3


def test_a_client_that_joins_after_tau_takes_part(blobs):
    everyone = clients_of(blobs, [50, 50, 50, 50, 40])
    clients, late = everyone[:4], everyone[4]
    config = replace(CONFIG, clients=5, clients_per_round=5)
    method = fl.Floco(tau=2)
    seen, rounds = [], []

    class Spy(fl.Floco):
        def begin_round(self, server):
            rounds.append(server.number)
            super().begin_round(server)

        def local_work(self, client):
            seen.append((rounds[-1], client.number, "center" in client.state))
            return super().local_work(client)

    model = network(torch.Generator().manual_seed(1), 3, torch.float32)
    for round in fl.simulate(Spy(tau=2), model, clients, config):
        if round.number == 2:
            clients.append(late)
    assert sorted(seen)[-5:] == [
        (3, 0, True),
        (3, 1, True),
        (3, 2, True),
        (3, 3, True),
        (3, 4, False),
    ]
    assert method.personal_model(model, late) is None


def test_too_few_answers_at_tau_end_the_run_with_a_reason(blobs):
    class Failing(fl.Floco):
        def pseudo_gradient(self, client, *states):
            gradient = super().pseudo_gradient(client, *states)
            return gradient * (math.nan if client.number > 1 else 1)

    model = network(torch.Generator().manual_seed(1), 3, torch.float32)
    rounds = fl.simulate(Failing(tau=2), model, clients_of(blobs), CONFIG)
    assert next(rounds).number == 1
    with pytest.raises(fl.RunError, match=r"^round 2: wanted .* at least 3 clients .* got 2;"):
        next(rounds)


def test_ditto_without_pull_is_local_training_and_with_much_the_global_model(blobs):
    def distance(lamda):
        model = network(torch.Generator().manual_seed(1), dtype=torch.float32)
        config = replace(CONFIG, momentum=0.0, lr=0.05, clip=math.inf)
        _, model, clients = run(fl.Ditto(lamda=lamda), blobs, config, model=model)
        last = fl.sample_clients(6, config, 3)
        received = FlatModel(model).values
        distances = (clients[k].models[PERSONAL].values - received for k in last)
        return sum(d.square().sum().item() for d in distances)

    assert distance(0.0) > distance(1.0) > distance(10.0) > 0


def test_personal_models_leave_the_global_one_alone(blobs):
    ends = []
    for method in (fl.FedAvg(weighting="samples"), fl.Ditto()):
        model = network(torch.Generator().manual_seed(1), dtype=torch.float32)
        run(method, blobs, model=model)
        ends.append(list(model.parameters()))
    assert all(map(torch.equal, *ends))
    ends = []
    for method in (fl.Floco(tau=2), fl.FlocoPlus(tau=2)):
        ends.append(list(run(method, blobs)[1].parameters()))
    assert all(map(torch.equal, *ends))


def test_a_personal_model_is_evaluated_where_it_was_trained(blobs):
    rounds, _, clients = run(fl.FlocoPlus(tau=2), blobs)
    client = next(c for c in clients if PERSONAL in c.models)
    own = network(torch.Generator().manual_seed(5), 3, torch.float32)
    FlatModel(own).load(client.models[PERSONAL])
    with subregion(own.eval(), client.state[CENTER]), torch.no_grad():
        logits = own(blobs.x_test[client.test_indices])
    expected = F.cross_entropy(logits, blobs.y_test[client.test_indices]).item()
    seen = rounds[-1].personal_on_local.cross_entropies[client.number].item()
    assert seen == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("floco", {"endpoints": 0}, "endpoints: wanted an integer >= 1, got 0"),
        ("floco", {"tau": 0}, "tau: wanted an integer >= 1, got 0"),
        ("floco", {"rho": -0.1}, "rho: wanted a finite number >= 0, got -0.1"),
        ("floco+", {"lamda": -1.0}, "lamda: wanted a finite number >= 0, got -1.0"),
        ("ditto", {"lamda": math.nan}, "lamda: wanted a finite number >= 0, got nan"),
    ],
)
def test_bad_options(name, options, message):
    with pytest.raises(fl.ConfigError, match=f"^{message}$"):
        fl.build_method(name, **options)


def test_published_defaults():
    assert vars(fl.Floco()) == {
        "weighting": "samples",
        "loss": fl.CrossEntropy(),
        "endpoints": 10,
        "tau": 250,
        "rho": 0.1,
        "aggregation": fl.Mean(),
        "server_optimizer": fl.ServerAverage(),
        "compat": "",
    }
    assert fl.FlocoPlus().lamda == fl.Ditto().lamda == 1.0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", ["floco", "floco+", "ditto"])
def test_a_gpu_gives_what_the_cpu_gives(blobs64, name):
    """The draws are the same, so in float64 the runs differ by rounding alone."""
    ends = []
    for device in ("cpu", "cuda"):
        model = network(torch.Generator().manual_seed(1), 3).to(device)
        rounds, model, clients = run(fl.build_method(name, tau=2), blobs64.to(device), model=model)
        own = torch.stack([client.state.get(CENTER, torch.ones(3)).cpu() for client in clients])
        ends.append(([p.detach().cpu() for p in model.parameters()], own.double()))
        assert rounds[-1].personal_on_local is not None
    torch.testing.assert_close(*ends, rtol=1e-6, atol=1e-6)
