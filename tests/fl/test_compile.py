"""torch.compile of the local step: the same but for rounding. A model costs seconds."""

import shutil
from dataclasses import replace

import pytest
import torch
from torch import nn
from whole_runs import SMALL, assert_close, assert_same_bits, drawn, run

from fedkern import fl
from fedkern.fl.engine import SerialEngine
from fedkern.fl.flat import FlatModel
from fedkern.nn import simplexify

pytestmark = pytest.mark.skipif(
    not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="needs a C++ compiler"
)

# Of 40 samples in batches of 16: the last batch of 8 is not compiled.
CONFIG = replace(SMALL, clients_per_round=3, rounds=2, partition="iid", compile=True)


def normed():
    return nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 4))


def on_simplex():
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4))
    return simplexify(model, num_endpoints=3, generator=torch.Generator().manual_seed(0))


CASES = {
    "buffers": (fl.FedAvg(), normed, {"buffers": "local"}),
    "frozen buffers": (fl.FedAvg(), normed, {"buffers": "frozen"}),
    "interpolated weights": (fl.FlocoPlus(tau=2), on_simplex, {}),
}


@pytest.mark.parametrize(("method", "build", "settings"), CASES.values(), ids=CASES)
def test_a_compiled_run_is_the_plain_one(blobs, method, build, settings):
    config = replace(CONFIG, **settings)
    before = counted()
    compiled = run(blobs, config, method, build)
    assert counted() == before + 1  # nothing was compiled after the warm-up
    plain = run(blobs, replace(config, compile=False), method, build)
    # Some twenty steps in float32.
    assert_close(compiled, plain, rtol=1e-4, atol=1e-5)
    assert compiled.facts.pop("compile_seconds") > 0
    assert compiled.facts == plain.facts


def counted():
    """How many graphs were compiled so far."""
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


def test_workers_share_what_was_compiled(blobs):
    alone = run(blobs, CONFIG, fl.FedAvg(), normed)
    before = counted()
    together = run(blobs, replace(CONFIG, workers=3), fl.FedAvg(), normed)
    assert counted() == before + 1
    assert together.facts["workers"] == 3
    assert_same_bits(together, alone)


def test_later_models_are_compiled_too(blobs):
    """Torch gives up after eight; each simplex is another one to it."""
    for _ in range(9):
        before = counted()
        SerialEngine(FlatModel(on_simplex()), blobs, CONFIG)
        assert counted() == before + 1


def test_the_warm_up_leaves_no_trace(blobs):
    module = drawn(normed())
    before = [tensor.clone() for tensor in (*module.parameters(), *module.buffers())]
    few = replace(blobs, x_train=blobs.x_train[:5], y_train=blobs.y_train[:5])  # less than a batch
    engine = SerialEngine(FlatModel(module), few, CONFIG)
    assert engine.facts["compile_seconds"] > 0
    assert all(map(torch.equal, before, [*module.parameters(), *module.buffers()]))
    assert not engine.model.gradients.any()
