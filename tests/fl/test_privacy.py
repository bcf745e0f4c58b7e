"""What docs/privacy.md says about every method: which clients the server asks, and for what."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fedkern import fl
from fedkern.fl.server import SimulatedServer

DOCS = Path(__file__).parents[2] / "docs"
CONFIG = fl.RunConfig(clients=8, clients_per_round=3, rounds=2, batch_size=16)


@pytest.fixture
def clients(blobs):
    return fl.make_clients(blobs, fl.iid(blobs.y_train, CONFIG.clients, CONFIG.seed))


@pytest.mark.parametrize("page", ["methods.md", "privacy.md"])
def test_every_method_has_a_row(page):
    rows = re.findall(r"^\| `(.*?)` \|", (DOCS / page).read_text(encoding="utf-8"), re.MULTILINE)
    assert set(fl.METHODS) <= set(rows)


@pytest.mark.parametrize("name", fl.METHODS)
def test_who_is_asked_for_more_than_a_model(blobs, clients, monkeypatch, name):
    asked = []
    ask_all, local_losses = SimulatedServer.ask_all, SimulatedServer.local_losses

    def spy_on_training(server, *arguments):
        asked.append(("training", server.number, len(server.clients)))
        return ask_all(server, *arguments)

    def spy_on_losses(server, of):
        asked.append(("losses", server.number, len(of)))
        return local_losses(server, of)

    monkeypatch.setattr(SimulatedServer, "ask_all", spy_on_training)
    monkeypatch.setattr(SimulatedServer, "local_losses", spy_on_losses)
    method = fl.build_method(name, tau=2, endpoints=3)
    model = fl.build_model("mlp", blobs, fl.generator(0, "model"))
    list(fl.simulate(method, model, clients, CONFIG))
    everyone = CONFIG.clients
    assert asked == {
        "floco": [("training", 2, everyone)],
        "floco+": [("training", 2, everyone)],
        "climb": [("losses", 1, everyone), ("losses", 2, everyone)],
    }.get(name, [])


def test_local_buffers_are_sent_all_the_same(clients):
    sent = []

    class Spy(fl.FedAvg):
        def aggregate(self, updates, *more):
            def looked_at():
                for update in updates:
                    sent.append(update.state.buffers[0].clone())
                    yield update

            return super().aggregate(looked_at(), *more)

    model = torch.nn.Sequential(torch.nn.BatchNorm1d(6), torch.nn.Linear(6, 4))
    config = replace(CONFIG, buffers="local", rounds=1)
    list(fl.simulate(Spy(), model, clients, config))
    kept = [c.models["buffers"].buffers[0] for c in clients if "buffers" in c.models]
    assert len(sent) == len(kept) == 3
    assert all(any(torch.equal(a, b) for b in kept) for a in sent)
