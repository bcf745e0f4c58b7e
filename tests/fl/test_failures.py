"""Clients that fail: what counts as a failure, that it costs one client, what a run makes of it."""

import math
import os
import re
import signal
from collections import Counter
from dataclasses import dataclass, field, replace

import pytest
import torch
from torch import nn
from whole_runs import SMALL, assert_close, assert_same_bits, drawn, jobs_of, run

from fedkern import fl
from fedkern.fl import simulation
from fedkern.fl.engine import make_engine
from fedkern.fl.failures import check_finite
from fedkern.fl.flat import State
from fedkern.fl.training import LocalWork, Trained

CONFIG = replace(SMALL, momentum=0.5)

# Settings under which clients are trained one after the other, by two threads, by two processes,
# and as a batch.
KINDS = {
    "serial": {"workers": 1},
    "threads": {"workers": 2, "layers": "plain"},
    "processes": {"workers": 2},
    "vmap": {"engine": "vmap"},
}


@dataclass(frozen=True)
class Failing(fl.CrossEntropy):
    """A loss with which some clients fail, each in its own way: pairs of number and way."""

    ways: tuple[tuple[int, str], ...]

    def constants(self, client):
        way = dict(self.ways).get(client.number)
        if way == "error":
            raise ArithmeticError("too much\nand more")
        if way == "memory of torch":
            torch.empty(2**60)
        if way == "memory of Python":
            raise MemoryError
        if way == "memory of CUDA":
            raise torch.OutOfMemoryError("CUDA out of memory")
        if way == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if way == "exits":
            os._exit(3)
        if way == "settings":
            raise fl.ConfigError("loss: wanted another one")
        if way == "the run's end":
            raise fl.RunError("the server is on fire")
        if way == "interrupted":
            raise KeyboardInterrupt
        scale = {"nan": math.nan, "inf": math.inf}.get(way, 1.0)
        return (*super().constants(client), torch.tensor(scale))

    def __call__(self, logits, targets, *constants):
        return super().__call__(logits, targets, constants[0]) * constants[1]

    def gradient(self, logits, targets, *constants):
        return super().gradient(logits, targets, constants[0]) * constants[1]


CAUSES = {
    "error": ("error", r"ArithmeticError: too much \(test_failures.py:\d+\)$"),
    "nan": ("not finite", "wanted finite parameters, buffers and training loss, got nan"),
    "inf": ("not finite", "wanted finite parameters, buffers and training loss, got nan"),
    "memory of torch": ("out of memory", ".*can't allocate memory"),
    "memory of Python": ("out of memory", "MemoryError$"),
    "memory of CUDA": ("out of memory", "CUDA out of memory$"),
}


def linear():
    return drawn(nn.Linear(6, 4))


def engine_of(kind, dataset):
    return make_engine(linear(), dataset, replace(CONFIG, **KINDS[kind]))


def failing(jobs, ways):
    return [job._replace(work=LocalWork(Failing(tuple(ways.items())))) for job in jobs]


def results_of(engine, jobs):
    """Failures, and copies of the parameters that others end with."""
    results = engine.train(jobs, jobs[0].start.values)
    return [r if isinstance(r, fl.Failure) else r.state.values.clone() for r in results]


def check(results, expected, ways, rtol=0.0):
    """That those fail who should, and that the others' parameters are as expected."""
    for number, (result, values) in enumerate(zip(results, expected, strict=True)):
        if number in ways:
            cause, message = CAUSES[ways[number]]
            assert (result.client, result.cause) == (number, cause)
            assert cause in fl.CAUSES
            assert re.match(message, result.message), result.message
            assert "\n" not in str(result)
        else:
            torch.testing.assert_close(result, values, rtol=rtol, atol=rtol)


# ---- engines -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "ways",
    [
        *({bad: "error"} for bad in range(6)),
        *({3: way} for way in CAUSES if way != "error"),
        {0: "nan", 1: "error", 2: "memory of torch", 5: "inf"},
        dict.fromkeys(range(6), "error"),
        dict.fromkeys(range(6), "nan"),
    ],
    ids=str,
)
def test_a_failure_costs_one_client(blobs, kind, ways):
    engine = engine_of(kind, blobs)
    jobs = jobs_of(engine.model, blobs)
    expected = results_of(engine, jobs)
    rtol = 1e-5 if kind == "vmap" else 0.0  # batches of other sizes
    for _ in range(2):  # all is there again
        check(results_of(engine, failing(jobs, ways)), expected, ways, rtol)
        check(results_of(engine, jobs), expected, {})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("way", "error"), [("settings", fl.ConfigError), ("the run's end", fl.RunError)]
)
def test_faults_that_are_no_clients_go_through(blobs, kind, way, error):
    engine = engine_of(kind, blobs)
    jobs = jobs_of(engine.model, blobs)
    expected = results_of(engine, jobs)
    with pytest.raises(error, match=r"wanted another one|is on fire"):
        results_of(engine, failing(jobs, {3: way}))
    check(results_of(engine, jobs), expected, {})


@pytest.mark.parametrize("kind", ["serial", "threads", "vmap"])
def test_interrupts_go_through(blobs, kind):
    engine = engine_of(kind, blobs)
    jobs = failing(jobs_of(engine.model, blobs), {3: "interrupted"})
    with pytest.raises(KeyboardInterrupt):
        results_of(engine, jobs)


def test_the_failure_says_which_work_it_was(blobs):
    engine = engine_of("serial", blobs)
    jobs = failing(jobs_of(engine.model, blobs), {1: "error"})
    jobs = [job._replace(draws=replace(job.draws, work="personal")) for job in jobs]
    failure = results_of(engine, jobs)[1]
    assert str(failure).startswith(
        "client 1 was left out: error: personal: ArithmeticError: too much (test_failures.py:"
    )


def test_what_is_finite():
    values, loss = torch.ones(5), torch.tensor(0.5)
    counter = torch.tensor(2)

    def checked(values=values, buffers=(), loss=loss):
        return check_finite(Trained(State(values, [counter, *buffers]), loss))

    checked(buffers=[torch.zeros(0), torch.ones(2, 2)])
    checked(torch.tensor([3e38, 3e38]), [torch.tensor(-3e38)])  # their sum is not
    for bad in (math.nan, math.inf, -math.inf):
        broken = torch.tensor([1.0, bad])
        for arguments in ({"values": broken}, {"buffers": [broken]}, {"loss": broken[1]}):
            with pytest.raises(FloatingPointError, match="got nan or infinity"):
                checked(**arguments)
    with pytest.raises(FloatingPointError):  # whose sum would be nan for want of a sign, too
        checked(torch.tensor([math.inf, -math.inf]))


# ---- processes that die --------------------------------------------------------------------------


@pytest.mark.parametrize("clients", [6, 24])
@pytest.mark.parametrize(
    ("way", "cause", "message"),
    [
        ("killed", "out of memory", "its process was killed, exit code -9"),
        ("exits", "error", "its process ended, exit code 3"),
    ],
)
@pytest.mark.parametrize("bad", [(0,), (3,), (5,), (1, 2, 3), (0, 4), range(6)])
def test_a_process_that_dies_costs_the_client_it_was_at(blobs, clients, way, cause, message, bad):
    engine = engine_of("processes", blobs)
    jobs = jobs_of(engine.model, blobs, clients)
    expected = results_of(engine, jobs)
    for _ in range(2):
        results = results_of(engine, failing(jobs, dict.fromkeys(bad, way)))
        for number, (result, values) in enumerate(zip(results, expected, strict=True)):
            if number in bad:
                assert result == (number, cause, message)
            else:
                assert torch.equal(result, values)
    check(results_of(engine, jobs), expected, {})


def test_processes_that_die_between_rounds_cost_nobody(blobs):
    engine = engine_of("processes", blobs)
    jobs = jobs_of(engine.model, blobs)
    expected = results_of(engine, jobs)
    first = [worker._process for worker in engine._workers._all]
    for process in first:
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    check(results_of(engine, jobs), expected, {})
    new = [worker._process for worker in engine._workers._all]
    check(results_of(engine, jobs), expected, {})
    assert [worker._process for worker in engine._workers._all] == new
    del engine
    for process in new:
        process.join(10)
        assert process.exitcode == 0


def test_a_process_that_dies_with_results_that_no_one_asks_for(blobs):
    engine = engine_of("processes", blobs)
    jobs = jobs_of(engine.model, blobs)
    expected = results_of(engine, jobs)
    results = engine.train(failing(jobs, {1: "killed"}), jobs[0].start.values)
    next(results)
    results.close()
    check(results_of(engine, jobs), expected, {})


# ---- rounds --------------------------------------------------------------------------------------

METHODS = {
    "fedavg": lambda loss: fl.FedAvg("samples", loss),
    "a server optimizer": lambda loss: fl.FedAvg(loss=loss, server_optimizer=fl.ServerYogi()),
    "weights of the active clients": lambda loss: fl.Climb(loss=loss, dual_clients="active"),
    "personal models": lambda loss: fl.Ditto(loss=loss),
    "a private layer": lambda loss: fl.FedPer(loss=loss),
    "the median": lambda loss: fl.FedAvg(loss=loss, aggregation=fl.Median()),
}


def without_failures(result):
    """A run as if nobody had failed."""
    rounds = [replace(round, failed=0, failures=[]) for round in result.rounds]
    return result._replace(rounds=rounds)


def never_sampled(monkeypatch, bad):
    """Takes clients out of every sample."""
    sample = simulation.sample_clients
    monkeypatch.setattr(
        simulation, "sample_clients", lambda *of: [k for k in sample(*of) if k not in bad]
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("build", METHODS.values(), ids=METHODS)
def test_a_failing_client_is_as_one_that_is_never_sampled(blobs, monkeypatch, kind, build):
    config = replace(CONFIG, **KINDS[kind])
    ways = {1: "error", 4: "nan"}
    failed = run(blobs, config, build(Failing(tuple(ways.items()))), lambda: nn.Linear(6, 4))
    for round in failed.rounds:
        sampled = fl.sample_clients(6, config, round.number)
        assert round.clients == sum(k not in ways for k in sampled)
        assert round.failed == sum(k in ways for k in sampled)
        left_out = [(failure.client, failure.cause) for failure in round.failures]
        assert left_out == [(k, CAUSES[ways[k]][0]) for k in sampled if k in ways]
    assert any(round.failed for round in failed.rounds)
    never_sampled(monkeypatch, ways)
    expected = run(blobs, config, build(Failing(())), lambda: nn.Linear(6, 4))
    assert all(round.failed == 0 for round in expected.rounds)
    if kind == "vmap":
        assert_close(failed, expected, rtol=1e-5, atol=1e-6)
    else:
        assert_same_bits(without_failures(failed), expected)


@dataclass(frozen=True)
class TwoLosses(fl.Ditto):
    """Ditto, with a loss of its own for the personal models."""

    personal: fl.CrossEntropy = field(default_factory=fl.CrossEntropy)

    def local_work(self, client):
        personal, shared = super().local_work(client)
        return [replace(personal, loss=self.personal), shared]


def test_personal_models_that_were_trained_before_the_failure_stay(blobs):
    loss = Failing(((1, "error"), (5, "nan")))
    for method, kept in ((TwoLosses(loss=loss), True), (TwoLosses(personal=loss), False)):
        clients = fl.make_clients(blobs, fl.make_partition(blobs, CONFIG))
        rounds = list(fl.simulate(method, linear(), clients, CONFIG))
        trained = {k for r in rounds for k in fl.sample_clients(6, CONFIG, r.number)}
        assert trained >= {1, 5}
        for k in trained:
            assert ("personal" in clients[k].models) == (kept or k not in (1, 5))
        causes = Counter(failure.cause for round in rounds for failure in round.failures)
        assert causes.keys() == {"error", "not finite"}
        assert all(round.failed == len(round.failures) for round in rounds)


def test_clients_without_data_are_counted(blobs):
    parts = [*torch.arange(240).chunk(3), *[torch.arange(0)] * 3]
    result = run(blobs, CONFIG, fl.FedAvg(), lambda: nn.Linear(6, 4), fl.Partition(parts, 0))
    for round in result.rounds:
        without = [k for k in fl.sample_clients(6, CONFIG, round.number) if k > 2]
        assert round.failures == [(k, "no data", "it has no training samples") for k in without]
        assert (round.clients, round.failed) == (4 - len(without), len(without))


def test_a_client_with_broken_data_does_not_spoil_the_others_weights(blobs):
    """CLIMB takes all clients' losses, of which one is nan."""
    blobs.x_train[:40] = math.nan
    partition = fl.Partition(list(torch.arange(240).chunk(6)), 0)
    clients = fl.make_clients(blobs, partition)
    rounds = list(fl.simulate(fl.Climb(), linear(), clients, CONFIG))
    assert all({f.client for f in round.failures} <= {0} for round in rounds)
    assert all(math.isfinite(client.state["weight"]) for client in clients)


def test_statistics_that_fail_leave_a_client_the_whole_simplex(blobs):
    method = fl.Floco(loss=Failing(((1, "error"), (4, "nan"))), endpoints=3, tau=2)
    clients = fl.make_clients(blobs, fl.make_partition(blobs, CONFIG))
    rounds = list(fl.simulate(method, linear(), clients, CONFIG))
    assert ["center" in client.state for client in clients] == [k not in (1, 4) for k in range(6)]
    assert {failure.client for failure in rounds[1].failures} == {1, 4}
    assert all(f.message.startswith("statistics: ") for f in rounds[1].failures)
    sampled = fl.sample_clients(6, CONFIG, 2)
    assert rounds[1].failed == sum(k in sampled for k in (1, 4))


# ---- injected failures ---------------------------------------------------------------------------


def test_injected_failures_are_as_many_as_asked_for_and_the_same_for_all_methods(blobs):
    config = replace(CONFIG, clients_per_round=6, rounds=100, fail_rate=0.2, local_epochs=1)
    by_method = []
    for method in (fl.FedAvg(), fl.Ditto(), fl.Floco(endpoints=2, tau=900)):
        rounds = run(blobs, config, method, lambda: nn.Linear(6, 4)).rounds
        by_method.append([[f.client for f in round.failures] for round in rounds])
        assert all(f[1:] == ("injected", "by a fail_rate of 0.2") for f in rounds[0].failures)
    assert by_method[0] == by_method[1] == by_method[2]
    # Of 600 draws 120, deviation sqrt(600 * 0.2 * 0.8): within 4 of them.
    assert abs(sum(map(len, by_method[0])) - 120) < 4 * math.sqrt(600 * 0.16)
    other = run(blobs, replace(config, seed=2), fl.FedAvg(), lambda: nn.Linear(6, 4)).rounds
    assert [[f.client for f in round.failures] for round in other] != by_method[0]


def test_injected_failures_change_nothing_for_the_others(blobs, monkeypatch):
    config = replace(CONFIG, fail_rate=0.4)
    failed = run(blobs, config, fl.FedAvg(), lambda: nn.Linear(6, 4))
    out = {(r.number, f.client) for r in failed.rounds for f in r.failures}
    assert out
    sample = simulation.sample_clients

    def others(clients, config, number):
        return [k for k in sample(clients, config, number) if (number, k) not in out]

    monkeypatch.setattr(simulation, "sample_clients", others)
    expected = run(blobs, CONFIG, fl.FedAvg(), lambda: nn.Linear(6, 4))
    assert_same_bits(without_failures(failed), expected)


def test_clients_that_are_made_to_fail_give_no_statistics(blobs):
    config = replace(CONFIG, fail_rate=0.3, seed=2)
    clients = fl.make_clients(blobs, fl.make_partition(blobs, config))
    method = fl.Floco(endpoints=2, tau=2)
    rounds = list(fl.simulate(method, linear(), clients, config))
    out = {failure.client for failure in rounds[1].failures}
    assert 0 < len(out) < 5
    assert {client.number for client in clients if "center" not in client.state} == out


# ---- too few -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_stops_when_too_few_are_left(blobs, kind):
    config = replace(CONFIG, min_clients=4, **KINDS[kind])
    method = fl.FedAvg(loss=Failing(((1, "error"), (4, "nan"))))
    clients = fl.make_clients(blobs, fl.make_partition(blobs, config))
    rounds = fl.simulate(method, linear(), clients, config)
    message = (
        r"^round \d: wanted at least min_clients = 4 clients that do not fail, got [23]; "
        r"client [14] was left out: (error: Arithm|not finite: wanted).*$"
    )
    with pytest.raises(fl.RunError, match=message):
        list(rounds)


def test_a_run_stops_when_nobody_is_left(blobs):
    ways = Failing(tuple((k, "error") for k in range(6)))
    with pytest.raises(fl.RunError, match=r"^round 1: .* got 0; client \d was left out: error: "):
        run(blobs, CONFIG, fl.FedAvg(loss=ways), lambda: nn.Linear(6, 4))
    config = replace(CONFIG, fail_rate=1 - 1e-12)
    with pytest.raises(fl.RunError, match=r"^round 1: .* got 0; client \d was left out: injected"):
        run(blobs, config, fl.FedAvg(), lambda: nn.Linear(6, 4))


def test_clients_without_data_are_missing_when_more_than_one_is_wanted(blobs):
    parts = fl.Partition([*torch.arange(240).chunk(2), *[torch.arange(0)] * 4], 0)
    several = replace(CONFIG, min_clients=2, clients_per_round=6)
    assert len(run(blobs, several, fl.FedAvg(), lambda: nn.Linear(6, 4), parts).rounds) == 3
    with pytest.raises(
        fl.RunError,
        match=r"^round 1: wanted at least min_clients = 3 clients that do not fail, got 2; "
        r"client \d was left out: no data: it has no training samples$",
    ):
        run(blobs, replace(several, min_clients=3), fl.FedAvg(), lambda: nn.Linear(6, 4), parts)


@pytest.mark.parametrize("method", [fl.FedAvg(), fl.Ditto(), fl.Climb(), fl.FedPer()], ids=str)
def test_with_no_least_number_a_round_of_failures_changes_nothing(blobs, method):
    everyone = tuple((k, "error") for k in range(6))
    failing = replace(method, loss=Failing(everyone))
    model = linear()
    before = [p.clone() for p in model.parameters()]
    clients = fl.make_clients(blobs, fl.make_partition(blobs, CONFIG))
    rounds = list(fl.simulate(failing, model, clients, replace(CONFIG, min_clients=0)))
    assert all(map(torch.equal, model.parameters(), before))
    assert [(r.clients, r.failed, math.isnan(r.train_loss)) for r in rounds] == [(0, 4, True)] * 3
    assert rounds[0].evaluation is not None or not method.has_global_model
