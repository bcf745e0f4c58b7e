"""Aggregations: against plain twins in float64, and on MNIST with clients that send garbage."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from whole_runs import SMALL, assert_same_bits, drawn, run

from fedkern import fl
from fedkern.fl import aggregation, simulation
from fedkern.fl.flat import State
from fedkern.fl.ranks import Ranks

ROBUST = [fl.Median(), fl.TrimmedMean(), fl.TrimmedMean(0.2), fl.ClippedMean(), fl.ClippedMean(0.5)]


def combined(method, rows, weights=None, before=None):
    """What comes of rows [n, P]."""
    before = torch.zeros_like(rows[0]) if before is None else before
    gathered = method.gather(State(before, []), len(rows), Ranks())
    for row, weight in zip(rows, weights or [1] * len(rows), strict=True):
        gathered.add(State(row, []), weight)
    return gathered.combined().values


# ---- twins ---------------------------------------------------------------------------------------


def twin(method, rows, weights, before):
    """The same in NumPy, in the formulas' own words."""
    n = len(rows)
    if isinstance(method, fl.Median):
        return np.median(rows, axis=0)
    if isinstance(method, fl.TrimmedMean):
        cut = math.floor(round(method.trim * n, 6))
        return np.stack([np.mean(sorted(column)[cut : n - cut]) for column in rows.T])
    updates = rows - before
    if isinstance(method, fl.ClippedMean):
        norms = np.sqrt((updates**2).sum(1))
        bound = method.clip_norm or np.median(norms)
        shrink = [bound / norm if norm > bound else 1.0 for norm in norms]
        updates = updates * np.array(shrink)[:, None]
    return before + np.average(updates, axis=0, weights=weights)


# One and two clients; odd and even numbers; more than any cut; columns below and above a block.
@pytest.mark.parametrize("n", [1, 2, 3, 5, 10, 33])
@pytest.mark.parametrize("columns", [1, 7, aggregation._COLUMNS + 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("method", [fl.Mean(), *ROBUST], ids=str)
def test_as_the_twin(n, columns, dtype, method):
    draws = torch.Generator().manual_seed(n)
    rows = torch.randn(n, columns, generator=draws, dtype=dtype)
    before = torch.randn(columns, generator=draws, dtype=dtype)
    weights = (torch.rand(n, generator=draws) + 0.5).tolist()
    got = combined(method, rows, weights, before)
    assert got.dtype == torch.float64
    expected = twin(method, rows.double().numpy(), weights, before.double().numpy())
    # Sums of n numbers below 10 in float64.
    np.testing.assert_allclose(got.numpy(), expected, rtol=0, atol=1e-14 * (n + 10))


@pytest.mark.parametrize("n", range(1, 40))
def test_rows_are_sorted(n):
    rows = torch.randint(0, 5, (n, 300), generator=torch.Generator().manual_seed(n)).float()
    assert torch.equal(torch.stack(aggregation._sorted(rows)), rows.sort(0).values)


def test_by_hand():
    rows = torch.tensor([[0.0, 9.0], [1.0, 1.0], [2.0, 2.0], [5.0, 3.0], [1e30, -1e30]])
    assert combined(fl.Median(), rows).tolist() == [2.0, 2.0]
    assert combined(fl.Median(), rows[:4]).tolist() == [1.5, 2.5]
    assert combined(fl.TrimmedMean(0.2), rows).tolist() == [8 / 3, 2.0]
    assert combined(fl.TrimmedMean(0.19), rows[:4]).tolist() == [2.0, 3.75]
    # Norms 4, 6 and 10 of updates, shortened to 6, and to 5.
    rows = torch.tensor([[5.0, 1.0], [1.0, 7.0], [7.0, 9.0]])
    before = torch.tensor([1.0, 1.0])
    expected = [1 + (4 + 0 + 3.6) / 3, 1 + (0 + 6 + 4.8) / 3]
    assert combined(fl.ClippedMean(), rows, before=before).tolist() == pytest.approx(expected)
    expected = [1 + (4 + 0 + 2 * 3) / 4, 1 + (0 + 5 + 2 * 4) / 4]
    clipped = combined(fl.ClippedMean(5.0), rows, [1, 1, 2], before)
    assert clipped.tolist() == pytest.approx(expected)
    assert combined(fl.ClippedMean(), before.expand(3, 2), before=before).tolist() == [1.0, 1.0]


def test_the_trimmed_part_is_rounded_down_to_clients():
    rows = torch.arange(100.0)[:, None] ** 2
    for trim, cut in ((0.29, 29), (0.295, 29), (0.0, 0), (0.499, 49)):
        expected = rows[cut : 100 - cut].mean().item()
        assert combined(fl.TrimmedMean(trim), rows).item() == pytest.approx(expected)


def test_buffers_are_treated_as_parameters_and_counters_are_the_largest():
    before = State(torch.zeros(2), [torch.ones(()), torch.tensor(1), torch.zeros(1, 2)])
    rows = torch.tensor([1.0, 3.0, 1e20])
    for method in (fl.Mean(), *ROBUST):
        gathered = method.gather(before, 3, Ranks())
        for count, row in enumerate(rows):
            gathered.add(
                State(row.expand(2), [row.clone(), torch.tensor(count), row.expand(1, 2)]), 1
            )
        values, (scalar, counter, matrix) = gathered.combined()
        assert (counter.dtype, counter.item()) == (torch.int64, 2)
        assert torch.equal(matrix, values.view(1, 2))
        assert scalar.shape == ()
        alone = combined(method, rows[:, None], before=torch.ones(1))
        assert scalar.item() == alone.item()


# ---- what a few clients can do -------------------------------------------------------------------

numbers = st.floats(-1e6, 1e6, width=32)
garbage_numbers = st.floats(width=32, allow_nan=False, allow_infinity=False)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_garbage_from_few_leaves_the_result_among_the_honest(data):
    n = data.draw(st.integers(1, 12), "clients")
    trim = data.draw(st.floats(0, 0.49), "trim")
    for method, bad in (
        (fl.Median(), (n - 1) // 2),
        (fl.TrimmedMean(trim), math.floor(trim * n)),
    ):
        honest = data.draw(st.lists(numbers, min_size=n - bad, max_size=n - bad))
        garbage = data.draw(st.lists(garbage_numbers, min_size=bad, max_size=bad))
        order = data.draw(st.permutations(honest + garbage))
        result = combined(method, torch.tensor(order)[:, None]).item()
        slack = 1e-12 * max(map(abs, honest))
        assert min(honest) - slack <= result <= max(honest) + slack


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 12), st.floats(1e-3, 1e3), st.integers(0, 2**32), st.floats(1, 1e30))
def test_no_update_moves_a_clipped_mean_further_than_the_bound(n, bound, seed, size):
    draws = torch.Generator().manual_seed(seed)
    rows = size * torch.randn(n, 5, generator=draws)
    before = torch.randn(5, generator=draws)
    moved = combined(fl.ClippedMean(bound), rows, before=before) - before.double()
    assert moved.norm().item() <= bound * (1 + 1e-9) + 1e-14


# ---- whole runs ----------------------------------------------------------------------------------


def norm_and_linear():
    return nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 4))


@pytest.mark.parametrize("name", fl.METHODS)
@pytest.mark.parametrize("robust", list(fl.AGGREGATIONS)[1:])
def test_every_method_takes_every_aggregation(blobs, name, robust):
    options = {"tau": 2, "endpoints": 3} if name.startswith("floco") else {}
    method = fl.build_method(name, aggregation=robust, trim=0.25, **options)  # of four clients
    assert type(method.aggregation) is fl.AGGREGATIONS[robust]

    def network():
        return drawn(nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4)))

    result = run(blobs, SMALL, method, network)
    assert_same_bits(result, run(blobs, replace(SMALL, workers=3), method, network))
    mean = run(blobs, SMALL, fl.build_method(name, **options), network)
    assert result.rounds != mean.rounds
    if method.private(fl.flat.FlatModel(network())) is None:
        assert not all(map(torch.equal, result.ends, mean.ends))


def test_nothing_trimmed_or_clipped_is_the_mean(blobs):
    mean = run(blobs, SMALL, fl.FedAvg(), norm_and_linear)
    for method in (fl.TrimmedMean(0.0), fl.ClippedMean(1e9)):
        result = run(blobs, SMALL, fl.FedAvg(aggregation=method), norm_and_linear)
        torch.testing.assert_close(result.ends, mean.ends, rtol=1e-5, atol=1e-6)


class Garbling:
    """An engine whose clients 0, 5, 10, ... send something else than what they have trained."""

    def __init__(self, engine, garble):
        self.model, self.facts = engine.model, engine.facts
        self._engine, self._garble = engine, garble

    def train(self, jobs, anchor):
        for job, trained in zip(jobs, self._engine.train(jobs, anchor), strict=True):
            if job.client.number % 5 == 0:
                self._garble(job, trained.state.values, anchor)
            yield trained


def noise(job, values, anchor):
    values += 10 * torch.randn(values.shape, generator=job.draws("garbage"))


def backwards(job, values, anchor):
    values.copy_(anchor - 10 * (values - anchor))


def test_mnist_with_a_fifth_of_the_clients_sending_garbage(mnist, monkeypatch):
    """The published settings at alpha 1, 30 rounds. Of 10 sampled clients 2 are bad on average, and
    up to 4 in nearly all rounds: so many are trimmed."""
    config = fl.RunConfig.for_dataset("mnist", rounds=30, alpha=1.0, eval_every=30, workers=1)
    partition = fl.make_partition(mnist, config)
    make_engine = simulation.make_engine

    def accuracy(method):
        model = fl.build_model("auto", mnist, fl.generator(0, "model"))
        clients = fl.make_clients(mnist, partition)
        rounds = list(fl.simulate(fl.FedAvg(aggregation=method), model, clients, config))
        return rounds[-1].evaluation.accuracy

    clean = accuracy(fl.Mean())
    assert clean > 0.88
    for garble in (noise, backwards):

        def make_garbling(*settings, garble=garble):
            return Garbling(make_engine(*settings), garble)

        monkeypatch.setattr(simulation, "make_engine", make_garbling)
        assert accuracy(fl.Mean()) < clean - 0.3
        for method in (fl.Median(), fl.TrimmedMean(), fl.ClippedMean()):
            assert accuracy(method) > clean - 0.03, (garble, method)
