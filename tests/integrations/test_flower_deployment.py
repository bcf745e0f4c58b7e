"""Methods on real SuperNodes: processes on this machine, which are late and which are killed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

pytest.importorskip("flwr", reason="needs Flower: pip install '.[flower]'")

from deployment import APP, Deployment

from fedkern import fl

sys.path.insert(0, str(APP))

from flower_app import task

DISTURBED = {"method": "floco --tau 2 --endpoints 2 --rho 0.3", "timeout": 30.0, "seed": 2}
UNDISTURBED = {
    "floco": {"method": "floco --tau 2 --endpoints 3 --rho 0.3", "rounds": 3, "seed": 1},
    "fedga": {"method": "fedga", "rounds": 2, "seed": 1},
}
ALL = {"clients": 3, "clients_per_round": 3, "eval_every": 100}


class Scene(NamedTuple):
    """What has come of it: folders of results, logs, and the last round before the restart."""

    folder: Path
    logs: dict[str, str]
    restarted_after: int


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    folder = tmp_path_factory.mktemp("flower")
    logs = {}

    def options(name: str, own: dict[str, Any], nodes: int) -> dict[str, Any]:
        return {**ALL, **own, "out": str(folder / name), "min_available_nodes": nodes}

    def end(name: str, run: str) -> None:
        here.wait_for(f"the end of {name}", (folder / name / "model.pt").exists)
        logs[name] = here.log(run)

    def last_round(name: str) -> int:
        numbers = [int(path.stem[-6:]) for path in (folder / name).glob("round-*.checkpoint")]
        return max(numbers, default=0)

    with Deployment(folder) as here:
        for number in (0, 1, 2):
            here.start_node(number)
        # Two runs, side by side, whom nothing disturbs.
        runs = {name: here.run(**options(name, own, 3)) for name, own in UNDISTURBED.items()}
        for name, run in runs.items():
            end(name, run)
        # One begins without the third node, which comes late. Another one is killed.
        here.stop_node(2)
        long = here.run(**options("disturbed", {**DISTURBED, "rounds": 1000}, 2))
        here.wait_for("round 1", lambda: last_round("disturbed") >= 1)
        here.start_node(2)
        here.wait_for("round 3", lambda: last_round("disturbed") >= 3)
        here.kill_node(0)
        here.wait_for("rounds without it", lambda: last_round("disturbed") >= 5)
        logs["killed"] = here.log(long)
        # The server is stopped, and another one goes on from what it has saved.
        here.stop(long)
        done = last_round("disturbed")
        again = here.run(**options("disturbed", {**DISTURBED, "rounds": done + 1}, 2))
        end("disturbed", again)
    return Scene(folder, logs, done)


@pytest.mark.parametrize("name", UNDISTURBED)
def test_an_undisturbed_run_is_that_of_our_own_loop(scene, name):
    assert_our_own_loop_s(scene.folder / name, {**ALL, **UNDISTURBED[name]})


def test_the_app_in_a_simulation(tmp_path):
    pytest.importorskip("ray", reason="needs Ray: pip install '.[flower]'")
    options = {
        "method": "floco+ --tau 3 --endpoints 4",
        "clients": 8,
        "clients_per_round": 5,
        "rounds": 5,
        "eval_every": 5,
        "seed": 4,
    }
    with Deployment(tmp_path, simulated=8) as here:
        run = here.run(**options, min_available_nodes=8, out=str(tmp_path / "out"))
        here.wait_for("the end", (tmp_path / "out" / "model.pt").exists)
        assert "personal-accuracy" in here.log(run)
    assert_our_own_loop_s(tmp_path / "out", options)


def assert_our_own_loop_s(folder: Path, options: dict[str, Any]) -> None:
    """The files are those of a run that ends as our own loop does, to the order of sums."""
    own = {key.replace("_", "-"): value for key, value in options.items()}
    config = task.settings({"dataset": "digits", "alpha": 0.3, **own})
    (method,) = fl.build_methods([own["method"]]).values()
    model = task.new_model(config)
    *_, last = fl.simulate(method, model, task.clients(config), config)
    there = torch.load(folder / "model.pt", weights_only=True)
    for key, value in model.state_dict().items():
        torch.testing.assert_close(there[key], value, rtol=1e-5, atol=1e-6)
    path = folder / f"round-{config.rounds:06d}.checkpoint"
    found = fl.read_checkpoint(path).snapshot.rounds
    assert [round.clients for round in found] == [config.clients_per_round] * config.rounds
    assert found[-1].train_loss == pytest.approx(last.train_loss, rel=1e-5)


def test_a_run_goes_on_with_late_and_lost_nodes(scene):
    number = scene.restarted_after
    rounds = rounds_of(scene, number)
    assert rounds[0].clients == 2
    assert any(round.clients == 3 for round in rounds)  # the late one has come
    without = [round for round in rounds if any(f.client == 0 for f in round.failures)]
    assert without  # the killed one was missed
    assert rounds[-1].clients >= 1
    assert "client 2 is new" in scene.logs["killed"]
    assert "client 0 was left out: " in scene.logs["killed"]


def test_a_restarted_server_has_its_clients_subregions(scene):
    number = scene.restarted_after
    before, after = (snapshot_of(scene, n) for n in (number, number + 1))
    assert f"going on after round {number} of {number + 1}" in scene.logs["disturbed"]
    assert len(after.rounds) == number + 1
    assert {0, 1} <= before.clients.keys()
    for client, state in before.clients.items():
        assert torch.equal(state["center"], after.clients[client]["center"])


def snapshot_of(scene: Scene, number: int) -> fl.Snapshot:
    path = scene.folder / "disturbed" / f"round-{number:06d}.checkpoint"
    return fl.read_checkpoint(path).snapshot


def rounds_of(scene: Scene, number: int) -> tuple[fl.Round, ...]:
    return snapshot_of(scene, number).rounds
