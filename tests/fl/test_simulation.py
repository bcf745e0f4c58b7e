import inspect
import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from fedkern import fl

CONFIG = fl.RunConfig(clients=8, clients_per_round=3, rounds=6, batch_size=16, alpha=0.3)


def simulate(dataset, config, method=None, partition=None):
    """All rounds, without their times, and the final parameters."""
    partition = partition or fl.dirichlet(
        dataset.y_train, config.clients, config.alpha, config.seed
    )
    model = fl.build_model("mlp", dataset, fl.generator(config.seed, "model"))
    rounds = fl.simulate(method or fl.FedGA(), model, fl.make_clients(dataset, partition), config)
    return [replace(round, seconds=0.0) for round in rounds], list(model.parameters())


def test_same_seed_same_bits(blobs):
    rounds, parameters = simulate(blobs, CONFIG)
    again, parameters_again = simulate(blobs, CONFIG)
    assert rounds == again
    assert all(map(torch.equal, parameters, parameters_again))
    assert [round.number for round in rounds] == [1, 2, 3, 4, 5, 6]


def test_other_seed_other_run(blobs):
    partition = fl.iid(blobs.y_train, CONFIG.clients, 0)
    rounds, _ = simulate(blobs, CONFIG, partition=partition)
    other, _ = simulate(blobs, replace(CONFIG, seed=1), partition=partition)
    assert all(a.train_loss != b.train_loss for a, b in zip(rounds, other, strict=True))


def test_global_random_state_is_neither_used_nor_changed(blobs):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        before = torch.random.get_rng_state()
        rounds, _ = simulate(blobs, CONFIG)
        assert torch.equal(before, torch.random.get_rng_state())
        torch.manual_seed(2)
        assert simulate(blobs, CONFIG)[0] == rounds


def test_it_learns(blobs):
    rounds, _ = simulate(blobs, replace(CONFIG, rounds=15, alpha=10.0))
    assert rounds[-1].evaluation.accuracy > 0.9
    assert rounds[-1].train_loss < 0.5 * rounds[0].train_loss


def test_evaluation_is_due_every_so_often_and_at_the_end(blobs):
    rounds, _ = simulate(blobs, replace(CONFIG, eval_every=4))
    assert [round.number for round in rounds if round.evaluation] == [4, 6]


def test_model_holds_the_evaluated_global_model_at_every_yield(blobs):
    partition = fl.iid(blobs.y_train, CONFIG.clients, 0)
    model = fl.build_model("mlp", blobs, fl.generator(0, "model"))
    for round in fl.simulate(fl.FedAvg(), model, fl.make_clients(blobs, partition), CONFIG):
        assert fl.evaluate(model, blobs.x_test, blobs.y_test, 4) == round.evaluation


def test_sampled_clients():
    draws = [fl.sample_clients(8, CONFIG, number) for number in range(1, 201)]
    assert all(len(set(clients)) == 3 for clients in draws)
    assert draws == [fl.sample_clients(8, CONFIG, number) for number in range(1, 201)]
    often = torch.bincount(torch.tensor(draws).flatten(), minlength=8)
    # Each client is in a round with probability 3/8: 75 of 200, deviation sqrt(200 * 3/8 * 5/8).
    assert (often - 75).abs().max() < 5 * math.sqrt(200 * 3 / 8 * 5 / 8)


def test_clients_without_data_have_weight_zero(blobs):
    half = fl.iid(blobs.y_train, 2, 0).indices
    empty = torch.tensor([], dtype=torch.int64)
    everyone = replace(CONFIG, clients=4, clients_per_round=4)
    with_empty = fl.Partition([half[0], empty, half[1], empty], 0)
    for weighting in ("uniform", "samples"):
        rounds, _ = simulate(blobs, everyone, fl.FedAvg(weighting), with_empty)
        assert all(math.isfinite(round.train_loss) for round in rounds)
    # One client with all the data: the mean is its model, so more empty clients change nothing.
    alone = fl.Partition([torch.arange(240), empty, empty, empty], 0)
    one = replace(CONFIG, clients=1, clients_per_round=1)
    _, expected = simulate(blobs, one, partition=fl.Partition([torch.arange(240)], 0))
    _, parameters = simulate(blobs, everyone, partition=alone)
    assert all(map(torch.equal, parameters, expected))


def test_a_round_of_clients_without_data_changes_nothing(blobs):
    nobody = fl.Partition([torch.tensor([], dtype=torch.int64)] * 8, 240)
    rounds, parameters = simulate(blobs, CONFIG, partition=nobody)
    initial = fl.build_model("mlp", blobs, fl.generator(0, "model"))
    assert all(map(torch.equal, parameters, initial.parameters()))
    assert all(math.isnan(round.train_loss) for round in rounds)


def test_buffers_are_averaged_too(blobs):
    torch_state = torch.random.get_rng_state()
    model = nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 4))
    torch.random.set_rng_state(torch_state)
    partition = fl.iid(blobs.y_train, 2, 0)
    config = replace(CONFIG, clients=2, clients_per_round=2, rounds=1, local_epochs=1)
    list(fl.simulate(fl.FedAvg(), model, fl.make_clients(blobs, partition), config))
    # Eight batches each of 120 samples that have mean m: running mean m (1 - 0.9^8), roughly.
    expected = blobs.x_train.mean(0) * (1 - 0.9**8)
    torch.testing.assert_close(model[0].running_mean, expected, rtol=0, atol=0.2)
    assert model[0].num_batches_tracked.item() == 8


def test_a_global_model_that_is_not_finite_stops_the_run(blobs):
    partition = fl.iid(blobs.y_train, CONFIG.clients, 0)
    model = fl.build_model("mlp", blobs, fl.generator(0, "model"))
    config = replace(CONFIG, eval_every=9)
    method = fl.FedAvg(server_optimizer=fl.ServerAverage(1e45))
    rounds = fl.simulate(method, model, fl.make_clients(blobs, partition), config)
    with pytest.raises(
        fl.NonFiniteModelError, match=r"^round \d: wanted a finite global model, got nan"
    ):
        list(rounds)


def test_the_loop_names_no_method():
    source = inspect.getsource(fl.simulation).lower()
    assert not [name for name in fl.METHODS if name in source]


@pytest.mark.parametrize("seed", [0])
def test_fedga_ends_above_fedavg_on_skewed_mnist(mnist, seed):
    """The published settings at alpha 0.1, 50 rounds; the mean of the last 10 evens out jumps."""
    config = fl.RunConfig.for_dataset("mnist", rounds=50, seed=seed)
    partition = fl.dirichlet(mnist.y_train, config.clients, config.alpha, seed)
    late = {}
    for method in (fl.FedAvg(), fl.FedGA()):
        model = fl.build_model("auto", mnist, fl.generator(seed, "model"))
        rounds = list(fl.simulate(method, model, fl.make_clients(mnist, partition), config))
        late[type(method)] = sum(r.evaluation.accuracy for r in rounds[-10:]) / 10
    assert late[fl.FedGA] > late[fl.FedAvg] > 0.8, late
