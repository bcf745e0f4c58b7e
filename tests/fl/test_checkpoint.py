"""Checkpoints: a run goes on to the same bits, and no file that is not one is gone on from."""

import builtins
import errno
import hashlib
import io
import json
import os
import pickle
import subprocess
import zipfile
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from processes import python
from torch import nn
from whole_runs import SMALL, chain, convolutional, drawn

from fedkern import fl
from fedkern.fl import engine as engines
from fedkern.fl import linear
from fedkern.fl.checkpoint import CheckpointError, Checkpoints, read_checkpoint

CONFIG = replace(SMALL, momentum=0.5, rounds=5)
ABOUT = {"settings": {"lr": 0.1, "clip": float("inf")}}


class Run:
    """A run of a method whose checkpoints lie in a folder."""

    def __init__(self, folder, dataset, method, build, config, *, every=1, about=ABOUT):
        self.said = []
        self.checkpoints = Checkpoints(folder, about, every, config.rounds, self.said.append)
        self.dataset, self.method, self.build, self.config = dataset, method, build, config

    def rounds(self):
        """What is left to do."""
        partition = fl.make_partition(self.dataset, self.config)
        self.clients = fl.make_clients(self.dataset, partition, self.checkpoints.store)
        self.module = drawn(self.build())
        start, keep = self.checkpoints.start, self.checkpoints.keep
        yield from start.rounds if start else ()
        yield from fl.simulate(
            self.method, self.module, self.clients, self.config, start=start, keep=keep
        )

    def resumed(self):
        self.checkpoints.resume()
        return self

    def ends(self):
        """All numbers that it has come to."""
        own = [dict(client.state) for client in self.clients]
        return [self.module.state_dict(), own, [dict(client.models) for client in self.clients]]


def without_seconds(rounds):
    return [replace(round, seconds=0.0, engine={}) for round in rounds]


CASES = {
    "fedavg": (fl.FedAvg(), chain, {}),
    "aggregated buffers": (fl.FedGA(), convolutional, {"buffers": "aggregate"}),
    "local buffers": (fl.FedAvg("samples"), convolutional, {"buffers": "local"}),
    "personal models with buffers": (fl.Ditto(), convolutional, {"buffers": "local"}),
    "floco": (fl.Floco(endpoints=3, tau=2), chain, {}),
    "floco+": (fl.FlocoPlus(endpoints=2, tau=2), convolutional, {"buffers": "local"}),
    "augmentation": (fl.FedAvg(), chain, {"augment": "crop,flip"}),
    "a teacher": (fl.FedNTD(), chain, {}),
    "weighted clients": (fl.Climb(dual_lr=9.0), chain, {}),
    "weighted classes": (fl.FedRL(), chain, {}),
    "a private layer": (fl.FedPer(), chain, {}),
    "two heads": (fl.FedRoD(), convolutional, {}),
    "published faults": (fl.FedProx(compat="fedga"), convolutional, {}),
    "momentum on the server": (fl.FedAvg(server_optimizer=fl.ServerMomentum()), chain, {}),
    "yogi on the server": (fl.FedAvg(server_optimizer=fl.ServerYogi()), chain, {}),
    "processes": (fl.Ditto(), chain, {"workers": 2}),
    "threads": (fl.Ditto(), convolutional, {"workers": 2}),
    "vmap": (fl.FlocoPlus(endpoints=2, tau=2), chain, {"engine": "vmap"}),
    "evaluated now and then": (fl.Floco(endpoints=2, tau=4), chain, {"eval_every": 2}),
}


@pytest.mark.parametrize("stop", [1, 3, 5])
@pytest.mark.parametrize(("method", "build", "settings"), CASES.values(), ids=CASES)
def test_a_resumed_run_ends_in_the_same_bits(images, tmp_path, method, build, settings, stop):
    config = replace(CONFIG, **settings)
    whole = Run(tmp_path / "whole", images, method, build, config)
    expected = list(whole.rounds())
    stopped = Run(tmp_path / "stopped", images, method, build, config).rounds()
    for _ in range(stop):
        next(stopped)
    stopped.close()
    resumed = Run(tmp_path / "stopped", images, method, build, config).resumed()
    assert len(resumed.checkpoints.start.rounds) == stop
    assert without_seconds(resumed.rounds()) == without_seconds(expected)
    torch.testing.assert_close(resumed.ends(), whole.ends(), rtol=0, atol=0)
    # What is reported of single clients is there, too, of the last round.
    last = resumed.checkpoints.start.rounds[-1].global_on_local
    if last is not None:
        assert len(last.accuracies) == len(resumed.clients)


def test_auto_keeps_to_its_choice(blobs, tmp_path, monkeypatch):
    config = replace(CONFIG, engine="auto")
    seconds = {"SerialEngine": 2.0, "VmapEngine": 1.0}
    monkeypatch.setattr(
        engines, "_measure", lambda engine, *_: (seconds[type(engine).__name__], [])
    )
    args = (tmp_path, blobs, fl.FedAvg(), lambda: nn.Linear(6, 4), config)
    first = Run(*args).rounds()
    assert next(first).engine["engine"] == "vmap"
    seconds["SerialEngine"] = 0.5
    *_, last = Run(*args).resumed().rounds()
    assert last.engine == {"engine": "vmap", "serial_seconds": 2.0, "vmap_seconds": 1.0}


def test_auto_still_chooses_where_it_had_nothing_to_choose_by(blobs, tmp_path):
    config = replace(CONFIG, engine="auto")
    nobody = fl.Partition([torch.arange(0)] * 6, 240)
    model = nn.Linear(6, 4)
    kept = []
    list(fl.simulate(fl.FedAvg(), model, fl.make_clients(blobs, nobody), config, keep=kept.append))
    assert kept[0].engine == {"engine": "auto"}
    clients = fl.make_clients(blobs, fl.make_partition(blobs, config))
    *_, last = fl.simulate(fl.FedAvg(), model, clients, config, start=kept[0])
    assert last.engine["engine"] in ("serial", "vmap")


def test_linear_layers_keep_to_their_choices(blobs, tmp_path, monkeypatch):
    choice = linear.Products.TORCH
    monkeypatch.setattr(linear, "_chosen", {})
    monkeypatch.setattr(linear, "_fastest_products", lambda _: choice)
    args = (tmp_path, blobs, fl.FedAvg(), lambda: nn.Linear(6, 4), CONFIG)
    next(Run(*args).rounds())
    monkeypatch.setattr(linear, "_chosen", {})
    choice = linear.Products.OURS
    list(Run(*args).resumed().rounds())
    assert {*linear.chosen().values()} == {"TORCH"}


# ---- which ones there are ------------------------------------------------------------------------


@pytest.fixture
def done(blobs, tmp_path):
    """A folder with the checkpoints of rounds 4 and 5."""
    list(run(blobs, tmp_path).rounds())
    return tmp_path


def run(blobs, folder, **settings):
    every, about = settings.pop("every", 1), settings.pop("about", ABOUT)
    config = replace(CONFIG, **settings)
    build = lambda: nn.Linear(6, 4)  # noqa: E731
    return Run(folder, blobs, fl.Ditto(), build, config, every=every, about=about)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_last_two_are_kept(done):
    assert names(done) == [
        "clients.models",
        "round-000004.checkpoint",
        "round-000005.checkpoint",
    ]


def test_what_a_kill_left_behind_is_removed(blobs, done, monkeypatch):
    (done / "round-000004.checkpoint").rename(done / "kept")
    list(run(blobs, done, rounds=6).resumed().rounds())
    (done / "kept").rename(done / "round-000004.checkpoint")
    resumed = run(blobs, done, rounds=6).resumed()
    list(resumed.rounds())  # none is left
    resumed.checkpoints.save()
    assert names(done)[1:] == ["round-000005.checkpoint", "round-000006.checkpoint"]


@pytest.mark.parametrize(("every", "rounds"), [(2, [4, 5]), (3, [3, 5]), (9, [5]), (0, [])])
def test_one_every_so_often_and_at_the_end(blobs, tmp_path, every, rounds):
    list(run(blobs, tmp_path / "new", every=every).rounds())
    found = names(tmp_path / "new") if rounds else [*tmp_path.iterdir()]
    assert found[1:] == [f"round-{number:06d}.checkpoint" for number in rounds]


def test_what_is_not_due_is_written_when_it_is_asked_for(blobs, tmp_path):
    stopped = run(blobs, tmp_path, every=4)
    rounds = stopped.rounds()
    for _ in range(3):
        next(rounds)
    assert names(tmp_path) == ["clients.models"]
    stopped.checkpoints.save()
    stopped.checkpoints.save()
    assert names(tmp_path)[1:] == ["round-000003.checkpoint"]
    rest = [*run(blobs, tmp_path, every=4).resumed().rounds()]
    assert [round.number for round in rest] == [1, 2, 3, 4, 5]


def test_a_run_goes_on_for_more_rounds(blobs, done, tmp_path_factory):
    longer = run(blobs, done, rounds=8).resumed()
    rounds = without_seconds(longer.rounds())
    whole = run(blobs, tmp_path_factory.mktemp("whole"), rounds=8)
    assert rounds == without_seconds(whole.rounds())
    torch.testing.assert_close(longer.ends(), whole.ends(), rtol=0, atol=0)


def test_fewer_rounds_than_are_done_are_refused(blobs, done):
    with pytest.raises(
        fl.ConfigError, match=r"^rounds: wanted at least the 5 that are done, got 4$"
    ):
        run(blobs, done, rounds=4).resumed()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": 0.2, "clip": float("inf")}, "^lr: wanted 0.1 as in .*checkpoint, got 0.2$"),
        ({"lr": 0.1, "clip": 5.0}, "^clip: wanted inf as in .*, got 5.0$"),
        ({"lr": 0.1, "clip": float("inf"), "new": 1}, "^new: wanted None as in .*, got 1$"),
    ],
)
def test_another_run_is_refused_by_name(blobs, done, settings, message):
    with pytest.raises(fl.ConfigError, match=message):
        run(blobs, done, about={"settings": settings}).resumed()


def test_another_torch_is_said(blobs, done, monkeypatch):
    monkeypatch.setattr(torch, "__version__", "9.9")
    resumed = run(blobs, done).resumed()
    assert len(resumed.said) == 1
    assert "torch was 2." in resumed.said[0]
    assert "and is 9.9: bits may differ" in resumed.said[0]


def test_checkpoints_of_another_model_are_refused(blobs, done):
    other = run(blobs, done).resumed()
    other.build = lambda: nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4))
    with pytest.raises(
        fl.ConfigError, match=r"^model: wanted 0\.weight of torch.float32, shape \(5, 6\)"
    ):
        list(other.rounds())


def test_what_could_not_be_read_again_is_not_written(blobs, tmp_path):
    class Keeping(fl.FedAvg):
        def end_round(self, server):
            server.state["moments"] = {"m": [torch.zeros(2), nn.Parameter(torch.zeros(1))]}

    config = replace(CONFIG, rounds=1)
    rounds = Run(tmp_path, blobs, Keeping(), lambda: nn.Linear(6, 4), config).rounds()
    with pytest.raises(fl.RunError, match=r"^Server.state\['moments'\]\['m'\]: .*got Parameter$"):
        list(rounds)


# ---- files that are none -------------------------------------------------------------------------


def damage(path, offset):
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)


def as_checkpoint(payload, about=b'{"settings": {"lr": 0.1, "clip": Infinity}}', version=1):
    """A file with the right digest."""
    content = about + b"\n" + payload
    digest = hashlib.sha256(content).hexdigest().encode()
    return b"fedkern checkpoint %d\n%s\n%s" % (version, digest, content)


def saved(content):
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


class Evil:
    """Would run a command when it is unpickled."""

    def __reduce__(self):
        return os.system, ("touch was-here",)


def plain():
    """The content of a checkpoint of this run."""
    return {
        "rounds": [],
        "model": {},
        "server": {},
        "clients": {},
        "engine": {"engine": "serial"},
        "products": [],
        "models": [],
    }


def bomb():
    """An archive of torch.save's kind, with another pickle in it."""
    file = io.BytesIO(saved({"a": torch.zeros(2)}))
    out = io.BytesIO()
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(out, "w") as new:
        for name in old.namelist():
            evil = name.endswith("data.pkl")
            new.writestr(name, pickle.dumps(Evil(), 2) if evil else old.read(name))
    return out.getvalue()


NO_CHECKPOINTS = {
    "empty": (b"", "does not begin as one"),
    "foreign": (saved({"model": torch.zeros(3)}), "does not begin as one"),
    "newer": (as_checkpoint(saved(plain()), version=2), "format is 2, a newer version's, not 1"),
    "no digest": (b"fedkern checkpoint 1\n", "damaged or cut off"),
    "no JSON": (as_checkpoint(saved(plain()), b"{"), "what it tells of the run is no JSON"),
    "other JSON": (as_checkpoint(saved(plain()), b"[1]"), "it does not tell of a run"),
    "no payload": (as_checkpoint(b""), "its content is not that of a run"),
    "other payload": (as_checkpoint(b"PK\3\4 and so on"), "its content is not that of a run"),
    "a pickle": (as_checkpoint(pickle.dumps(Evil(), 2)), "more than tensors, numbers and text"),
    "a pickle in an archive": (as_checkpoint(bomb()), "more than tensors, numbers and text"),
    "a list": (as_checkpoint(saved([1, 2])), "its content is not that of a run"),
    "too little": (as_checkpoint(saved({"rounds": []})), "its content is not that of a run"),
    "too much": (as_checkpoint(saved({**plain(), "more": 1})), "its content is not that of a run"),
    "wrong types": (as_checkpoint(saved({**plain(), "model": 1})), "model: wanted dict"),
    "wrong rounds": (as_checkpoint(saved({**plain(), "rounds": [{}]})), "its content is not"),
    "an engine": (as_checkpoint(saved({**plain(), "engine": {"engine": "x"}})), "engine: wanted"),
    "places": (
        as_checkpoint(saved({**plain(), "models": [[0, "a", 0, 0, [[torch.int8, [-1], "cpu"]]]]})),
        "its content is not that of a run",
    ),
    "a place that is not there": (
        as_checkpoint(
            saved({**plain(), "models": [[0, "a", 0, 1, [[torch.int8, [9**9], "cpu"]]]]})
        ),
        "its clients' models cannot be read",
    ),
}


@pytest.mark.parametrize(("content", "reason"), NO_CHECKPOINTS.values(), ids=NO_CHECKPOINTS)
def test_what_is_no_checkpoint_is_refused(blobs, tmp_path, monkeypatch, content, reason):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "round-000003.checkpoint").write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"^resume: wanted a checkpoint .*000003.*{reason}"):
        run(blobs, tmp_path).resumed()
    assert not (tmp_path / "was-here").exists()


def test_a_checkpoint_made_by_hand_would_do(tmp_path):
    """So the above are refused for what is wrong with them."""
    path = tmp_path / "round-000003.checkpoint"
    path.write_bytes(as_checkpoint(saved(plain())))
    assert read_checkpoint(path).snapshot.rounds == ()


def test_damage_anywhere_is_found(blobs, done):
    path = done / "round-000005.checkpoint"
    whole = path.read_bytes()
    for offset in [*range(0, 400, 13), *range(400, len(whole), 997), len(whole) - 1]:
        damage(path, offset)
        with pytest.raises(CheckpointError):
            read_checkpoint(path)
        path.write_bytes(whole)
    for length in [0, 1, 20, 21, 90, 500, len(whole) // 2, len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError):
            read_checkpoint(path)


def test_where_the_newest_is_damaged_the_one_before_it_serves(blobs, done, tmp_path_factory):
    damage(done / "round-000005.checkpoint", 1000)
    resumed = run(blobs, done).resumed()
    assert "round-000005.checkpoint: it is damaged or cut off" in resumed.said[0]
    assert len(resumed.checkpoints.start.rounds) == 4
    whole = run(blobs, tmp_path_factory.mktemp("whole"))
    assert without_seconds(resumed.rounds()) == without_seconds(whole.rounds())
    torch.testing.assert_close(resumed.ends(), whole.ends(), rtol=0, atol=0)
    assert len(run(blobs, done).resumed().checkpoints.start.rounds) == 5  # written anew


def test_damaged_models_of_clients_are_found(blobs, done):
    content = bytearray((done / "clients.models").read_bytes())
    (done / "clients.models").write_bytes(bytes(byte ^ 1 for byte in content))
    with pytest.raises(CheckpointError, match=r"client \d's personal model in .* is damaged"):
        run(blobs, done).resumed()
    (done / "clients.models").unlink()
    with pytest.raises(CheckpointError, match="clients' models cannot be read"):
        run(blobs, done).resumed()


# ---- disks that are full, or refuse --------------------------------------------------------------


class FailingAt:
    """Makes the `when`-th call of functions of the system fail, counted from `armed` on."""

    def __init__(self, monkeypatch, when, error):
        self.calls, self.when, self.error, self.armed = 0, when, error, False
        for owner, name in [
            (os, "fsync"),
            (os, "open"),
            (Path, "open"),
            (Path, "replace"),
            (Path, "unlink"),
            (Path, "mkdir"),
            (builtins, "open"),
        ]:
            self.wrap(monkeypatch, owner, name)

    def wrap(self, monkeypatch, owner, name):
        call = getattr(owner, name)

        def wrapped(*args, **kwargs):
            if self.armed:
                self.calls += 1
                if self.calls == self.when:
                    raise OSError(self.error, os.strerror(self.error))
            return call(*args, **kwargs)

        monkeypatch.setattr(owner, name, wrapped)


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EACCES])
@pytest.mark.parametrize("when", range(1, 12))
def test_no_checkpoint_is_lost_when_the_next_cannot_be_written(
    blobs, tmp_path, monkeypatch, when, error
):
    stopped = run(blobs, tmp_path, every=9, rounds=9)
    rounds = stopped.rounds()
    for _ in range(2):
        next(rounds)
        stopped.checkpoints.save()
    next(rounds)
    with monkeypatch.context() as patched:
        failing = FailingAt(patched, when, error)
        failing.armed = True
        stopped.checkpoints.save()
        failed = failing.calls >= when
    assert bool(stopped.said) == failed
    if failed:
        assert os.strerror(error) in stopped.said[0]
        assert "there are those of rounds" in stopped.said[0]
    resumed = run(blobs, tmp_path, every=9, rounds=9).resumed()
    assert len(resumed.checkpoints.start.rounds) in ((2, 3) if failed else (3,))
    assert not [name for name in names(tmp_path) if name.startswith(".")]
    # The run itself goes on, and its next checkpoint is written.
    list(rounds)
    assert "round-000009.checkpoint" in names(tmp_path)
    expected = run(blobs, tmp_path / "whole", every=9, rounds=9)
    list(expected.rounds())
    torch.testing.assert_close(stopped.ends(), expected.ends(), rtol=0, atol=0)


def test_some_calls_do_fail(blobs, tmp_path, monkeypatch):
    """The range above goes beyond the last call of a checkpoint."""
    stopped = run(blobs, tmp_path, every=9)
    next(stopped.rounds())
    failing = FailingAt(monkeypatch, -1, errno.ENOSPC)
    failing.armed = True
    stopped.checkpoints.save()
    assert 4 <= failing.calls < 11


def test_an_interrupted_checkpoint_leaves_nothing(blobs, tmp_path, monkeypatch):
    stopped = run(blobs, tmp_path, every=9)
    next(stopped.rounds())

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with suppress(KeyboardInterrupt):
        stopped.checkpoints.save()
    assert names(tmp_path) == ["clients.models"]


def test_the_file_s_first_lines_are_for_people(done):
    lines = (done / "round-000005.checkpoint").read_bytes().split(b"\n", 3)
    assert lines[0] == b"fedkern checkpoint 1"
    about = json.loads(lines[2])
    assert about["settings"] == ABOUT["settings"]
    assert about["versions"]["torch"] == torch.__version__


# ---- processes that are killed -------------------------------------------------------------------


def test_runs_that_are_killed_end_in_the_same_files():
    """At 20 random moments; and what goes on with them, too. `make torture` does it 200 times."""
    program = Path(__file__).with_name("kill_and_resume.py")
    torture = python(program, "--kills", 20, "--forbids", 2, OMP_NUM_THREADS="1")
    done = subprocess.run(**torture, capture_output=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(": the same\n") == 22
