"""Several processes that share a run's clients: the same as one, but for the order of sums."""

import csv
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from processes import python
from torch import nn

from fedkern import fl
from fedkern.fl.checkpoint import read_checkpoint
from fedkern.fl.model_store import ModelStore
from fedkern.fl.ranks import Ranks


def torchrun(*arguments, ranks=2, script=("-m", "fedkern")):
    """The arguments of torchrun's process; it chooses a free port."""
    run = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", ranks)
    return python(*run, *script, *arguments, OMP_NUM_THREADS="1")


def fedkern(*arguments, ranks=1):
    if ranks > 1:
        process = torchrun(*arguments, ranks=ranks)
    else:
        process = python("-m", "fedkern", *arguments, OMP_NUM_THREADS="1")
    done = subprocess.run(**process, capture_output=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def history(folder):
    with (folder / "history.csv").open() as file:
        return list(csv.DictReader(file))


def last_states(folder):
    """The last checkpoints' numbers: models, what server and clients keep, clients' models."""
    states = {}
    for path in sorted((folder / "checkpoints").glob("*/*.checkpoint")):
        checkpoint = read_checkpoint(path)
        store = ModelStore(path.parent / "clients.models", [checkpoint.models])
        models = {str(key): [*store.read(*key)] for key in checkpoint.models.records}
        snapshot = checkpoint.snapshot
        clients = {str(number): state for number, state in snapshot.clients.items()}
        states[path.parent.name] = [snapshot.model, snapshot.server, clients, models]
    return states


def assert_close(one, other, rtol, atol):
    """Histories but for seconds, and all numbers at the end."""
    for a, b in zip(history(one), history(other), strict=True):
        assert (a["method"], a["round"], a["clients"], a["failed"]) == (
            b["method"],
            b["round"],
            b["clients"],
            b["failed"],
        )
        losses = float(a["train_loss"]), float(b["train_loss"])
        assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    torch.testing.assert_close(last_states(one), last_states(other), rtol=rtol, atol=atol)


def test_two_ranks_do_as_one_on_mnist(mnist, tmp_path):
    """The published settings; the same clients and batches, sums in another order."""
    options = ("--dataset", "mnist", "--rounds", 6, "--eval-every", 3, "--tau", 4, "--endpoints", 5)
    methods = ("fedga", "floco+", "fedavg --aggregation median")
    for folder, ranks in (("one", 1), ("two", 2)):
        fedkern(
            "compare", *methods, *options, "--seeds", 1, "--out", tmp_path / folder, ranks=ranks
        )
    # Weights of around 0.1 after some 600 steps in float32.
    assert_close(tmp_path / "one", tmp_path / "two", rtol=0, atol=2e-4)
    accuracies = [
        [float(row["accuracy"]) for row in history(tmp_path / folder) if row["accuracy"]]
        for folder in ("one", "two")
    ]
    assert accuracies[1] == pytest.approx(accuracies[0], abs=2e-3)
    assert len(accuracies[0]) == 6


EVERYTHING = (
    "ditto",
    "climb --dual-clients active",
    "fedrl",
    "fedper",
    "fedrod",
    "fedntd --server-optimizer adam",
    "fedavg --weighting samples --aggregation clipped_mean",
    "floco --tau 2 --endpoints 4",
)
DIGITS = ("--rounds", 3, "--seeds", 1, "--clients", 12, "--clients-per-round", 5)


@pytest.mark.parametrize("ranks", [2, 3])
def test_every_method_shares_its_clients(tmp_path, ranks):
    for folder, size in (("one", 1), ("some", ranks)):
        options = (*DIGITS, "--fail-rate", 0.2, "--out", tmp_path / folder)
        fedkern("compare", *EVERYTHING, *options, ranks=size)
    assert_close(tmp_path / "one", tmp_path / "some", rtol=0, atol=2e-4)
    assert any(int(row["failed"]) for row in history(tmp_path / "one"))


def test_buffers_are_shared(tmp_path):
    """Batch norm's statistics, and its counters, which are no sums."""
    options = ("--model", "resnet20", "--rounds", 2, "--local-epochs", 1, "--clients-per-round", 3)
    for buffers in ("aggregate", "local"):
        for folder, ranks in (("one", 1), ("two", 2)):
            out = tmp_path / buffers / folder
            fedkern("run", *options, "--buffers", buffers, "--out", out, ranks=ranks)
        assert_close(tmp_path / buffers / "one", tmp_path / buffers / "two", rtol=0, atol=5e-3)


def test_a_run_is_resumed_by_another_number_of_ranks(tmp_path):
    methods = ("ditto", "floco --tau 3 --endpoints 4", "fedavg --server-optimizer yogi")
    fedkern("compare", *methods, *DIGITS, "--rounds", 6, "--out", tmp_path / "one")
    fedkern("compare", *methods, *DIGITS, "--out", tmp_path / "some")
    text = fedkern("run", "--resume", tmp_path / "some", "--rounds", 6, ranks=2)
    assert "goes on after round 3" in text
    assert_close(tmp_path / "one", tmp_path / "some", rtol=0, atol=2e-4)


@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_that_dies_ends_the_others_and_the_checkpoint_remains(tmp_path, victim):
    options = ("--method", "ditto", "--rounds", 10**6, "--checkpoint-every", 2, "--out", "out")
    running = subprocess.Popen(
        **torchrun("run", *options), cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        for _ in range(1200):
            if len([*tmp_path.rglob("*.checkpoint")]) == 2:
                break
            assert running.poll() is None, running.communicate()
            time.sleep(0.05)
        os.kill(process_of(running.pid, victim), signal.SIGKILL)
        _, errors = running.communicate(timeout=120)
    finally:
        running.kill()
    assert running.returncode != 0
    # torchrun says which one has died; the other one says why it ends.
    assert re.search(r"exitcode *: -9|Signal 9", errors), errors
    assert re.search(
        "fedkern: (ranks: wanted an answer of all 2, but one has ended|terminated)", errors
    ), errors
    found = sorted(tmp_path.rglob("*.checkpoint"))
    assert found
    assert all(read_checkpoint(path).snapshot.rounds for path in found)


def process_of(torchrun, rank):
    """The number of the process that is a rank."""
    for path in Path("/proc").glob("[0-9]*/status"):
        with_parent = re.search(r"PPid:\s+(\d+)", path.read_text())
        if with_parent and int(with_parent[1]) == torchrun:
            environ = path.with_name("environ").read_bytes().split(b"\0")
            if b"RANK=%d" % rank in environ:
                return int(path.parent.name)
    raise AssertionError(f"no rank {rank}")


def test_one_all_reduce_a_round(tmp_path):
    script = tmp_path / "count.py"
    script.write_text(
        """
import sys
import torch
import torch.distributed as dist
from fedkern import fl
from fedkern.fl.ranks import joined_ranks

calls = []
for name in ("all_reduce", "broadcast", "all_gather_object", "broadcast_object_list"):
    def spy(*arguments, call=getattr(dist, name), name=name):
        calls.append(name)
        return call(*arguments)
    setattr(dist, name, spy)
config = fl.RunConfig(rounds=4, clients=8, clients_per_round=4, workers=1)
dataset = fl.load_dataset("digits")
partition = fl.make_partition(dataset, config)
with joined_ranks(torch.device("cpu")) as ranks:
    model = fl.build_model("auto", dataset, fl.generator(0, "model"))
    clients = fl.make_clients(dataset, partition)
    rounds = list(fl.simulate(fl.FedGA(), model, clients, config, ranks=ranks))
    assert calls == ["all_reduce"] * 4, calls
    assert [round.clients for round in rounds] == [4] * 4
    assert [round.evaluation is not None for round in rounds] == [ranks.rank == 0] * 4
    calls.clear()
    model = fl.build_model("auto", dataset, fl.generator(0, "model"))
    clients = fl.make_clients(dataset, partition)
    rounds = list(fl.simulate(fl.Ditto(), model, clients, config, ranks=ranks))
    # Each client's personal model goes to the other rank.
    assert calls == ["all_reduce", *["broadcast"] * 4] * 4, calls
"""
    )
    done = subprocess.run(**torchrun(script=(str(script),)), capture_output=True)
    assert done.returncode == 0, done.stderr


def test_failures_on_any_rank_are_everyone_s(tmp_path):
    """Clients 1 and 2 of six raise errors or return nan, whoever trains them."""
    script = tmp_path / "failing.py"
    script.write_text(
        """
import torch
from fedkern import fl
from fedkern.fl.ranks import joined_ranks
from fedkern.fl.server import SimulatedServer

train = SimulatedServer.train
def failing(server, jobs, anchor):
    for job, result in zip(jobs, train(server, jobs, anchor), strict=True):
        bad = job.client.number in (1, 2)
        yield fl.Failure(job.client.number, "error", "no") if bad else result
SimulatedServer.train = failing
config = fl.RunConfig(rounds=3, clients=6, clients_per_round=4, workers=1)
dataset = fl.load_dataset("digits")
with joined_ranks(torch.device("cpu")) as ranks:
    for method in (fl.FedAvg(), fl.Ditto(), fl.Floco(endpoints=2, tau=2)):
        model = fl.build_model("auto", dataset, fl.generator(0, "model"))
        clients = fl.make_clients(dataset, fl.make_partition(dataset, config))
        rounds = list(fl.simulate(method, model, clients, config, ranks=ranks))
        for round in rounds:
            sampled = fl.sample_clients(6, config, round.number)
            bad = [k for k in sampled if k in (1, 2)]
            if not (round.number == 2 and type(method) is fl.Floco):  # where all clients are asked
                assert [failure.client for failure in round.failures] == bad, round.failures
            assert round.clients == 4 - len(bad)
        assert not any(clients[k].models for k in (1, 2))
    try:
        low = fl.RunConfig(rounds=3, clients=6, clients_per_round=6, min_clients=5, workers=1)
        list(fl.simulate(fl.FedAvg(), model, clients, low, ranks=ranks))
    except fl.RunError as error:
        assert "got 4; client 1 was left out: error: no" in str(error), error
    else:
        raise AssertionError("wanted an error")
"""
    )
    done = subprocess.run(**torchrun(script=(str(script),)), capture_output=True)
    assert done.returncode == 0, done.stderr


def test_settings_are_refused_in_one_line_a_rank(tmp_path):
    done = subprocess.run(**torchrun("run", "--lr", -1), cwd=tmp_path, capture_output=True)
    assert done.returncode != 0
    assert "fedkern: lr: wanted a finite number > 0, got -1.0\n" in done.stderr
    assert not [*tmp_path.iterdir()]


def test_one_rank_alone_is_a_rank(blobs):
    ranks = Ranks()
    values = torch.ones(3)
    ranks.sum([values])
    assert values.tolist() == [1, 1, 1]
    assert ranks.collect([4]) == [4]
    assert ranks.share(range(5)) == range(5)
    assert ranks.send_object("thing") == "thing"
    model = nn.Linear(6, 4)
    config = fl.RunConfig(clients=4, clients_per_round=2, rounds=1)
    clients = fl.make_clients(blobs, fl.make_partition(blobs, config))
    (round,) = fl.simulate(fl.FedAvg(), model, clients, config, ranks=ranks)
    assert round.evaluation is not None
