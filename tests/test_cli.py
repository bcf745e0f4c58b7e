"""The command line: what it writes, and that mistakes cost one line, status 2 and no file."""

import csv
import json
import os
import re
import signal
import subprocess
import time
from functools import partial
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from processes import python
from typer.testing import CliRunner

import fedkern
from fedkern import cli, fl
from fedkern.fl import config_file, experiment
from fedkern.fl.methods import PARTS, settings_of

FILES = [
    "checkpoints",
    "clients.csv",
    "clients.png",
    "config.json",
    "config.toml",
    "curves.png",
    "history.csv",
    "summary.json",
    "tables.md",
]


@pytest.fixture(autouse=True)
def quiet_place(tmp_path, monkeypatch):
    """An empty working directory and no data sets."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FEDKERN_DATA", str(tmp_path / "no-data"))


def fedkern_command(*arguments):
    return CliRunner().invoke(cli.app, list(map(str, arguments)), catch_exceptions=False)


def process(*arguments):
    """The arguments of a real process of the command."""
    return python("-m", "fedkern", *arguments)


def history(folder):
    with (folder / "history.csv").open() as file:
        return list(csv.DictReader(file))


def test_run_writes_its_files(tmp_path):
    result = fedkern_command("run", "--rounds", 3, "--threads", 1, "--out", "out/here")
    assert result.exit_code == 0
    folder = tmp_path / "out" / "here"
    assert sorted(path.name for path in folder.iterdir()) == FILES
    rows = history(folder)
    assert [(row["method"], row["seed"], row["round"]) for row in rows] == [
        ("fedga", "0", "1"),
        ("fedga", "0", "2"),
        ("fedga", "0", "3"),
    ]
    assert all(0 <= float(row["accuracy"]) <= 1 for row in rows)
    config = json.loads((folder / "config.json").read_text())
    assert config["methods"]["fedga"]["calibration"] == "label"
    assert (config["dataset"], config["rounds"], config["threads"]) == ("digits", 3, 1)
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["status"] == "complete"
    assert len(summary["runs"][0]["global_on_test"]["last"]["per_class_accuracy"]) == 10
    # No terminal here: a plain line a round, with all that the bar would show.
    line = r"fedga seed 0 round 2/3 loss \d+\.\d+ accuracy 0\.\d+ local 0\.\d+ left \d+:\d\d:\d\d\n"
    assert re.search(line, result.stdout)
    discarded = summary["partitions"][0]["discarded_samples"]
    line = f"seed 0: {discarded} of 1437 training samples discarded, clients without data: 0\n"
    assert line in result.stdout
    assert "fedkern: complete; results are in out/here" in result.stdout
    assert "curves: out/here/curves.png" in result.stdout


def test_run_twice_gives_the_same_history(tmp_path):
    for name in ("a", "b"):
        options = ("--rounds", 3, "--threads", 1, "--out", name)
        assert fedkern_command("run", *options).exit_code == 0
    first, second = (
        [{key: row[key] for key in row if key != "seconds"} for row in history(tmp_path / name)]
        for name in ("a", "b")
    )
    assert first == second


def without_seconds(folder):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in history(folder)]


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "--rounds", 2],
        [
            *("run", "--method", "climb", "--dual-clients", "active", "--server-optimizer", "avgm"),
            *(
                "--server-momentum",
                0.3,
                "--normalize",
                "--augment",
                "flip",
                "--partition",
                "shards",
            ),
            *("--model", "resnet20", "--buffers", "local", "--rounds", 1, "--clients", 40),
        ],
        [
            *("compare", "fedavg", "floco --rho=0.3 --loss 'calibrated_ce'", "fedprox", "floco+"),
            *("--tau", 2, "--endpoints", 4, "--compat", "floco", "--rounds", 3, "--seeds", 2),
            *("--seed", -5, "--clip", "inf", "--lr", 1 / 3, "--momentum", 0.5, "--eval-every", 2),
        ],
        [
            *("compare", "fedga --calibration gradient", "fedlc --lc-tau 0.5", "--engine", "vmap"),
            *("--server-optimizer", "adam", "--server-lr", 0.01, "--weighting", "samples"),
            *("--rounds", 2, "--seeds", 1, "--alpha", 0.5, "--workers", 2),
        ],
    ],
    ids=lambda arguments: " ".join(map(str, arguments[:3])),
)
def test_the_file_of_a_run_repeats_it(tmp_path, arguments):
    assert fedkern_command(*arguments, "--out", "first").exit_code == 0
    for command in ("run", "compare"):
        again = (command, "--config", "first/config.toml", "--out", "again", "--overwrite")
        assert fedkern_command(*again).exit_code == 0
        first, second = tmp_path / "first", tmp_path / "again"
        assert without_seconds(first) == without_seconds(second)
        for name in ("clients.csv", "config.json", "config.toml"):
            assert (first / name).read_text() == (second / name).read_text(), name


def test_a_file_pins_nothing_that_was_left_to_the_machine(tmp_path):
    assert fedkern_command("run", "--rounds", 1, "--out", "out").exit_code == 0
    text = (tmp_path / "out" / "config.toml").read_text()
    assert 'device = "auto"' in text
    assert not re.search("^(workers|data_root|out|overwrite) =", text, re.MULTILINE)
    options = ("--data-root", "somewhere", "--workers", 2)
    assert fedkern_command("run", "--rounds", 1, *options, "--out", "other").exit_code == 0
    text = (tmp_path / "other" / "config.toml").read_text()
    assert 'data_root = "somewhere"' in text
    assert "workers = 2" in text


def test_the_command_line_goes_before_its_file(tmp_path):
    lines = ["methods = ['fedga', 'fedavg']", "rounds = 2", "normalize = true", "out = 'out'"]
    (tmp_path / "run.toml").write_text("\n".join(lines))

    def config(*arguments):
        assert fedkern_command(*arguments).exit_code == 0
        return json.loads((tmp_path / "out" / "config.json").read_text())

    found = config("run", "--config", "run.toml")
    assert [*found["methods"]] == ["fedga", "fedavg"]
    assert (found["rounds"], found["normalize"], found["seeds"]) == (2, True, [0])
    options = ("--config", "run.toml", "--rounds", 1, "--no-normalize", "--overwrite")
    found = config("run", "--method", "fedlc", *options)
    assert [*found["methods"]] == ["fedlc"]
    assert (found["rounds"], found["normalize"]) == (1, False)
    found = config("compare", "ditto", "fedper", *options)
    assert [*found["methods"]] == ["ditto", "fedper"]
    assert found["seeds"] == [0, 1, 2]


def test_a_run_may_be_replaced_from_its_own_file(tmp_path):
    assert fedkern_command("run", "--rounds", 1, "--out", "out").exit_code == 0
    first = (tmp_path / "out" / "config.toml").read_text()
    options = ("--config", "out/config.toml", "--out", "out", "--overwrite")
    assert fedkern_command("run", *options).exit_code == 0
    assert (tmp_path / "out" / "config.toml").read_text() == first


def test_every_option_may_stand_in_a_file():
    options = {*cli.run.__annotations__, *cli.compare.__annotations__}
    assert config_file.key_types().keys() == options - {"config", "resume"}


def test_default_folder_is_new_for_every_run(tmp_path):
    assert fedkern_command("run", "--rounds", 1).exit_code == 0
    (folder,) = (tmp_path / "runs").iterdir()
    assert re.fullmatch(r"digits-fedga-\d{8}-\d{6}", folder.name)


def test_compare_shows_every_method_the_same(tmp_path, monkeypatch):
    seen = []
    simulate = experiment.simulate

    def spy(method, model, clients, config, **more):
        sampled = [fl.sample_clients(len(clients), config, n) for n in (1, 2)]
        weights = [p.clone() for p in model.parameters()]
        assert all(client.state == {} and not client.models for client in clients)
        seen.append((config.seed, [client.indices for client in clients], weights, sampled))
        return simulate(method, model, clients, config, **more)

    monkeypatch.setattr(experiment, "simulate", spy)
    options = ("--rounds", 2, "--seeds", 2, "--seed", 5, "--eval-every", 2, "--out", "out")
    result = fedkern_command("compare", "fedavg", "fedga", *options)
    assert result.exit_code == 0
    assert [entry[0] for entry in seen] == [5, 5, 6, 6]
    for first, second in (seen[:2], seen[2:]):
        assert all(map(torch.equal, first[1], second[1]))
        assert all(map(torch.equal, first[2], second[2]))
        assert first[3] == second[3]
    assert not torch.equal(seen[0][2][0], seen[2][2][0])
    rows = history(tmp_path / "out")
    assert [(row["method"], row["seed"]) for row in rows[::2]] == [
        ("fedavg", "5"),
        ("fedga", "5"),
        ("fedavg", "6"),
        ("fedga", "6"),
    ]
    assert [row["accuracy"] != "" for row in rows] == [False, True] * 4
    assert "that minus fedavg" in result.stdout
    assert "2 seeds" in result.stdout


def test_options_reach_the_run(tmp_path):
    options = {
        "--method": "fedga",
        "--model": "mlp",
        "--partition": "iid",
        "--clients": 7,
        "--clients-per-round": 2,
        "--min-clients": 2,
        "--fail-rate": 0.0625,
        "--rounds": 1,
        "--local-epochs": 1,
        "--batch-size": 16,
        "--lr": 0.05,
        "--momentum": 0.5,
        "--weight-decay": 0.001,
        "--clip": "inf",
        "--weighting": "samples",
        "--calibration": "gradient",
        "--counts": "client",
        "--aggregation": "trimmed_mean",
        "--trim": 0.125,
        "--server-optimizer": "avgm",
        "--server-lr": 0.5,
        "--server-momentum": 0.25,
        "--engine": "vmap",
        "--workers": 2,
        "--layers": "plain",
        "--seed": 3,
        "--out": "out",
    }
    flags = [str(part) for pair in options.items() for part in pair]
    assert fedkern_command("run", *flags).exit_code == 0
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["clip"] is None  # JSON knows no infinity
    method = {
        "weighting": "samples",
        "calibration": "gradient",
        "counts": "client",
        "aggregation": "trimmed_mean",
        "trim": 0.125,
        "server_optimizer": "avgm",
        "server_lr": 0.5,
        "server_momentum": 0.25,
    }
    assert config["methods"] == {"fedga": {**method, "loss": "calibrated_ce", "compat": ""}}
    for flag in set(options) - {
        "--method",
        "--clip",
        "--out",
        *(f"--{key.replace('_', '-')}" for key in method),
    }:
        assert config[flag[2:].replace("-", "_")] == options[flag], flag
    assert "0 of 1437 training samples discarded" in (
        fedkern_command("run", *flags, "--overwrite").stdout
    )


def test_a_summary_says_what_trained_the_clients(tmp_path, monkeypatch):
    compiled = []
    # Compiling would cost seconds, and is tested elsewhere.
    monkeypatch.setattr(torch, "compile", lambda model: compiled.append(model) or model)

    def engine(*flags):
        options = ("--method", "fedavg", "--rounds", 1, "--out", "out", "--overwrite")
        result = fedkern_command("run", *options, *flags)
        assert result.exit_code == 0
        summary = json.loads((tmp_path / "out" / "summary.json").read_text())
        facts = summary["runs"][0]["engine"]
        line = ", ".join(f"{key} {value}" for key, value in facts.items())
        assert f"fedavg seed 0: {line}\n" in result.stdout
        return facts

    assert engine("--workers", 3) == {"engine": "serial", "workers": 3}
    assert engine("--engine", "vmap") == {"engine": "vmap"}
    assert compiled == []
    facts = engine("--compile", "--workers", 2)
    assert len(compiled) == 2
    assert json.loads((tmp_path / "out" / "config.json").read_text())["compile"] is True
    assert facts.pop("compile_seconds") > 0
    assert facts == {"engine": "serial", "workers": 2}
    facts = engine("--engine", "auto")
    assert facts["engine"] in ("serial", "vmap")
    assert min(facts["serial_seconds"], facts["vmap_seconds"]) > 0


def test_engines_and_workers_agree(tmp_path):
    losses = []
    for flags in (("--workers", 1), ("--workers", 2), ("--engine", "vmap"), ("--layers", "plain")):
        options = ("--rounds", 2, "--out", "out", "--overwrite")
        assert fedkern_command("run", *options, *flags).exit_code == 0
        losses.append([row["train_loss"] for row in history(tmp_path / "out")])
    assert losses[0] == losses[1]
    for other in losses[2:]:
        assert [*map(float, other)] == pytest.approx([*map(float, losses[0])], rel=1e-4)


def test_variants_of_a_method_side_by_side(tmp_path):
    variant = "floco --loss calibrated_ce --rho=0.3"
    options = ("--tau", 2, "--rounds", 3, "--endpoints", 4, "--seeds", 1)
    options += ("--partition", "fold", "--out", "out")
    result = fedkern_command("compare", "fedavg", "floco", "floco+", "ditto", variant, *options)
    assert result.exit_code == 0
    folder = tmp_path / "out"
    assert sorted(path.name for path in folder.iterdir()) == sorted([*FILES, "simplex.png"])
    config = json.loads((folder / "config.json").read_text())["methods"]
    assert (config["floco"]["loss"], config["floco"]["rho"]) == ("cross_entropy", 0.1)
    assert (config[variant]["loss"], config[variant]["rho"]) == ("calibrated_ce", 0.3)
    assert [config[name]["tau"] for name in ("floco", "floco+", variant)] == [2] * 3
    rows = history(folder)
    columns = [c for c in rows[0] if c.startswith("personal_on_local")]
    for row in rows:
        assert all((row[c] == "") == (row["method"] == "fedavg") for c in columns)
        assert row["global_on_local_mean_accuracy"] != ""
    with (folder / "clients.csv").open() as file:
        clients = list(csv.DictReader(file))
    assert len(clients) == 5 * 20
    for client in clients:
        weights = [float(weight) for weight in client["subregion_center"].split()]
        on_simplex = client["method"] in ("floco", "floco+", variant)
        assert len(weights) == (4 if on_simplex else 0)
        assert sum(weights) == pytest.approx(int(on_simplex), abs=1e-4)


def test_a_tau_that_never_comes_is_said(tmp_path):
    result = fedkern_command("run", "--method", "floco", "--rounds", 1, "--out", "out")
    assert "floco: tau = 250 is after the last of the 1 rounds\n" in result.stdout
    assert not (tmp_path / "out" / "simplex.png").exists()


@pytest.mark.parametrize("partition", fl.PARTITIONS[:-1])
def test_every_partition_runs_and_has_its_picture(tmp_path, partition):
    options = ("--partition", partition, "--alpha", 0.01, "--rounds", 1, "--out", "out")
    assert fedkern_command("run", *options).exit_code == 0
    assert (tmp_path / "out" / "clients.png").stat().st_size > 1000


def test_femnist_with_a_client_a_writer(tmp_path):
    rng = np.random.default_rng(0)
    for part, samples in (("train", 12), ("test", 4)):
        data = {
            f"writer{k}": {
                "x": rng.random((samples, 784)).round(3).tolist(),
                "y": rng.integers(0, 62, samples).tolist(),
            }
            for k in range(5)
        }
        content = {"users": list(data), "num_samples": [samples] * 5, "user_data": data}
        folder = tmp_path / "no-data" / "femnist" / part
        folder.mkdir(parents=True)
        (folder / "all.json").write_text(json.dumps(content))
    options = ("--dataset", "femnist", "--clients", 4, "--clients-per-round", 4, "--rounds", 2)
    options += ("--method", "floco", "--endpoints", 3, "--tau", 2, "--local-epochs", 1)
    result = fedkern_command("run", *options, "--out", "out")
    assert result.exit_code == 0
    assert "12 of 60 training samples discarded" in result.stdout
    with (tmp_path / "out" / "clients.csv").open() as file:
        clients = list(csv.DictReader(file))
    assert [(c["train_samples"], c["test_samples"]) for c in clients] == [("12", "4")] * 4
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["model"], config["partition"]) == ("cnn", "natural")


def test_normalised_and_augmented_inputs_change_the_run(tmp_path):
    losses = set()
    for flags in ((), ("--normalize",), ("--augment", "crop,flip")):
        options = ("--rounds", 1, "--out", "out", "--overwrite")
        assert fedkern_command("run", *options, *flags).exit_code == 0
        losses.add(history(tmp_path / "out")[0]["train_loss"])
    assert len(losses) == 3


def own_arrays():
    rng = np.random.default_rng(0)
    return {
        "x_train": rng.normal(size=(100, 5)),
        "y_train": rng.integers(0, 3, 100),
        "x_test": rng.normal(size=(20, 5)),
        "y_test": rng.integers(0, 3, 20),
    }


def test_own_data(tmp_path):
    np.savez(tmp_path / "own.npz", **own_arrays())
    result = fedkern_command("run", "--dataset", "own.npz", "--rounds", 2, "--out", "out")
    assert result.exit_code == 0
    assert len(history(tmp_path / "out")) == 2


def test_clients_without_data_are_reported(tmp_path):
    options = ("--clients", 2000, "--partition", "iid", "--rounds", 2, "--out", "out")
    result = fedkern_command("run", *options)
    assert result.exit_code == 0
    assert "clients without data: 563" in result.stdout
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert len(summary["partitions"][0]["clients_without_data"]) == 563


NO_MNIST = (
    "dataset: .*no-data.*--download.*FEDKERN_DATA"
    if find_spec("torchvision")
    else "dataset: mnist is read by torchvision, which cannot be imported"
)
MISTAKES = [
    (["run", "--dataset", "digit"], "dataset: wanted one of .* got 'digit' .did you mean 'digits'"),
    (["run", "--dataset", "nowhere.npz"], r"dataset: wanted an \.npz file, found none at nowhere"),
    (["run", "--dataset", "mnist"], NO_MNIST),
    (["run", "--method", "fedgaa"], "method: wanted one of .* got 'fedgaa' .did you mean 'fedga'"),
    (["compare", "fedavg", "fedgo"], "method: wanted one of .* got 'fedgo' .did you mean 'fedga'"),
    (["compare"], "methods: wanted at least one, got none"),
    (["run", "--config", "none.toml"], "config: wanted a TOML file, got none.toml: No such file"),
    (["run", "--config", "wrong.toml"], "rounds: wanted an integer, got 'many' in wrong.toml"),
    (["compare", "fedga", "fedga"], "methods: wanted each method once, got 'fedga' again"),
    (
        ["compare", "floco --tau"],
        "method: wanted a name and options of methods",
    ),
    (["compare", "floco --lr 1"], "method: wanted a name and options of methods"),
    (["compare", "floco --tau x"], "tau: wanted int, got 'x' in 'floco --tau x'"),
    (["compare", "fedavg --tau 3"], r"tau: wanted only with floco or floco\+, got it with fedavg"),
    (["run", "--loss", "calibrated"], "loss: wanted one of .* .did you mean 'calibrated_ce'"),
    (["run", "--method", "floco", "--endpoints", "30"], "clients: wanted at least 30 with data"),
    (["run", "--augment", "flop"], "augment: wanted .* got 'flop'"),
    (["run", "--buffers", "keep"], "buffers: wanted one of aggregate, frozen, local, got 'keep'"),
    (["run", "--folds", "0"], "folds: wanted an integer >= 1, got 0"),
    (["run", "--fold-share", "1.1"], r"fold_share: wanted a number in \[0, 1\], got 1\.1"),
    (["run", "--partition", "natural"], "partition: .*natural"),
    (["compare", "fedga", "--seeds", "0"], "seeds: wanted an integer >= 1, got 0"),
    (
        ["run", "--method", "fedavg", "--counts", "batch"],
        "counts: wanted only with --loss",
    ),
    (["run", "--counts", "clients"], "counts: wanted one of batch, client, got 'clients'"),
    (["run", "--calibration", "x"], "calibration: wanted one of gradient, label, got 'x'"),
    (["run", "--weighting", "x"], "weighting: wanted one of samples, uniform, got 'x'"),
    (["run", "--model", "lenet"], "model: wanted images of at least 16x16 for 'lenet', got 8x8"),
    (["run", "--model", "mpl"], "model: wanted one of .* got 'mpl' .did you mean 'mlp'"),
    (["run", "--partition", "x"], "partition: wanted one of .*dirichlet.*, got 'x'"),
    (["run", "--alpha", "0"], r"alpha: wanted a finite number > 0, got 0\.0"),
    (
        ["run", "--clients-per-round", "21"],
        "clients_per_round: wanted at most clients = 20, got 21",
    ),
    (["run", "--rounds", "0"], "rounds: wanted an integer >= 1, got 0"),
    (["run", "--lr", "-1"], r"lr: wanted a finite number > 0, got -1\.0"),
    (["run", "--batch-size", "0"], "batch_size: wanted an integer >= 1, got 0"),
    (["run", "--threads", "0"], "threads: wanted an integer >= 1, got 0"),
    (["run", "--workers", "0"], "workers: wanted an integer >= 1, got 0"),
    (["run", "--engine", "vmaq"], "engine: wanted one of auto, serial, vmap, got 'vmaq' .did you"),
    (
        ["run", "--engine", "vmap", "--model", "resnet20"],
        "engine: wanted serial .or buffers=frozen. for a model with batch norm, got vmap",
    ),
    (
        ["run", "--method", "fedprox", "--compat", "fedga", "--engine", "vmap"],
        "engine: wanted serial for published faults in training, got vmap",
    ),
    (["run", "--compat", "fedgaa"], "compat: wanted one of fedga, floco, got 'fedgaa' .did you"),
    (
        ["run", "--method", "ditto", "--compat", "floco"],
        r"compat: wanted only with floco or floco\+",
    ),
    (
        ["run", "--server-optimizer", "adan"],
        "server_optimizer: wanted one of .* .did you mean 'adam'",
    ),
    (["run", "--server-tau", "0.1"], "server_tau: wanted only with --server-optimizer adam or"),
    (["run", "--method", "fedrl", "--loss", "fedlc"], "loss: wanted cross_entropy for fedrl"),
    (["run", "--min-clients", "-1"], "min_clients: wanted an integer >= 0, got -1"),
    (["run", "--min-clients", "6"], "min_clients: wanted at most clients_per_round = 5, got 6"),
    (["run", "--fail-rate", "1"], r"fail_rate: wanted a number in \[0, 1\), got 1\.0"),
    (["run", "--aggregation", "medain"], "aggregation: wanted one of .* .did you mean 'median'"),
    (["run", "--trim", "0.1"], "trim: wanted only with --aggregation trimmed_mean, got it with"),
    (
        ["run", "--aggregation", "trimmed_mean", "--trim", "0.5"],
        r"trim: wanted a number in \[0, 0\.5\), got 0\.5",
    ),
    (
        ["run", "--aggregation", "clipped_mean", "--clip-norm", "-1"],
        r"clip_norm: wanted a finite number >= 0, got -1\.0",
    ),
    (["run", "--target-accuracy", "85"], r"target_accuracy: wanted a number in \[0, 1\], got 85"),
    (["run", "--layers", "slow"], "layers: wanted one of fast, plain, got 'slow'"),
    (["run", "--engine", "vmap", "--compile"], "compile: wanted engine serial or auto, got vmap"),
    (["run", "--device", "gpu"], "device: wanted auto, cpu, cuda or cuda:N, got 'gpu'"),
    (["run", "--out", "file/run"], "out: wanted a folder to write in, got file/run: "),
    (["run", "--checkpoint-every", "-1"], "checkpoint_every: wanted an integer >= 0, got -1"),
    (["run", "--resume", "old"], r"resume: wanted a folder with a config\.toml, got old"),
    (["run", "--resume", "old", "--out", "new"], "out: wanted nothing with --resume, got 'new'"),
    (
        ["run", "--resume", "old", "--overwrite"],
        "overwrite: wanted nothing with --resume, got True",
    ),
    (["run", "--resume", "old", "--config", "x"], "config: wanted nothing with --resume, got 'x'"),
    (["run", "--out", "old"], "out: wanted a folder without a run, got old, .*--overwrite"),
]


@pytest.mark.parametrize(("arguments", "message"), MISTAKES)
def test_a_mistake_is_one_line_and_writes_nothing(tmp_path, arguments, message):
    (tmp_path / "file").write_text("")
    (tmp_path / "wrong.toml").write_text("rounds = 'many'")
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "history.csv").write_text("precious")
    before = sorted(tmp_path.rglob("*"))
    result = fedkern_command(*arguments)
    assert result.exit_code == 2
    assert re.match(f"fedkern: {message}", result.stderr), result.stderr
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "old" / "history.csv").read_text() == "precious"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "--rounds", "many"], "--rounds"),
        (["run", "--round", "3"], "--round"),
        (["rum"], "rum"),
    ],
)
def test_arguments_that_cannot_be_parsed_are_one_line_too(arguments, message):
    done = subprocess.run(**process(*arguments), capture_output=True)
    assert done.returncode == 2
    assert done.stderr.startswith("fedkern: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_diverged_run_keeps_what_was_written(tmp_path):
    options = ("--lr", 1e9, "--clip", "inf", "--rounds", 5, "--out", "out")
    result = fedkern_command("run", *options)
    assert result.exit_code == 1
    message = r"round \d: wanted at least min_clients = 1 .*: not finite: .* a lower lr or clip may"
    assert re.match(f"fedkern: {message}", result.stderr)
    assert result.stderr.endswith("\nfedkern: `fedkern run --resume out` goes on with it\n")
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert re.match(message, summary["status"])
    assert (tmp_path / "out" / "history.csv").exists()


def test_failures_are_said_once_a_cause_and_counted(tmp_path):
    options = ("--fail-rate", 0.5, "--clients", 2000, "--clients-per-round", 20, "--out", "out")
    result = fedkern_command("run", *options, "--partition", "iid", "--rounds", 6)
    assert result.exit_code == 0
    lines = [line for line in result.stdout.splitlines() if "left out" in line]
    assert len(lines) == 3
    no_data, injected = sorted(lines[:2], key=lambda line: "injected" in line)
    where = r"^fedga seed 0 round [1-6]: client \d+ was left out: "
    assert re.match(f"{where}no data: it has no training samples$", no_data)
    assert re.match(f"{where}injected: by a fail_rate of 0.5$", injected)
    rows = history(tmp_path / "out")
    assert all(int(row["clients"]) + int(row["failed"]) == 20 for row in rows)
    (run,) = json.loads((tmp_path / "out" / "summary.json").read_text())["runs"]
    assert sum(run["failures"].values()) == sum(int(row["failed"]) for row in rows)
    counts = ", ".join(f"{count} {cause}" for cause, count in run["failures"].items())
    assert lines[2] == f"fedga seed 0: left out in all: {counts}"


def test_a_run_with_too_few_clients_keeps_what_was_written(tmp_path):
    options = ("--fail-rate", 0.3, "--min-clients", 4, "--rounds", 50, "--out", "out")
    result = fedkern_command("run", *options)
    assert result.exit_code == 1
    message = r"round (\d+): wanted at least min_clients = 4 clients that do not fail, got [0-3]; "
    stopped = re.match(f"fedkern: {message}client .* injected: by a fail_rate", result.stderr)
    assert stopped
    assert result.stderr.count("\n") == 1
    assert len(history(tmp_path / "out")) == int(stopped[1]) - 1


def test_an_interrupted_comparison_keeps_what_was_done(tmp_path, monkeypatch):
    simulate = experiment.simulate

    def interrupted(method, *arguments, **more):
        for round in simulate(method, *arguments, **more):
            yield round
            if isinstance(method, fl.FedGA) and round.number == 2:
                raise KeyboardInterrupt

    monkeypatch.setattr(experiment, "simulate", interrupted)
    result = fedkern_command("compare", "fedavg", "fedga", "--rounds", 3, "--out", "out")
    assert result.exit_code == 130
    assert "interrupted; results are in out" in result.stderr
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == FILES
    methods = [row["method"] for row in history(tmp_path / "out")]
    assert methods == ["fedavg"] * 3 + ["fedga"] * 2
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["status"] == "interrupted"
    assert [run["rounds"] for run in summary["runs"]] == [3, 2]
    assert "that minus fedavg" in result.stdout


def test_interrupted_before_the_first_round(tmp_path, monkeypatch):
    def interrupted(*arguments, **more):
        raise KeyboardInterrupt

    monkeypatch.setattr(experiment, "simulate", interrupted)
    assert fedkern_command("run", "--out", "out").exit_code == 130
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (summary["status"], summary["runs"]) == ("interrupted", [])


@pytest.mark.parametrize(
    ("number", "status", "word"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")],
)
def test_ctrl_c_and_sigterm_leave_a_checkpoint(tmp_path, number, status, word):
    options = ("--rounds", 10**6, "--checkpoint-every", 10**6, "--workers", 2, "--out", "out")
    running = subprocess.Popen(
        **process("run", *options),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        # A shell that runs the tests in the background has it ignored, and children inherit that.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
        start_new_session=True,
    )
    try:
        path = tmp_path / "out" / "history.csv"
        for _ in range(1200):
            if path.exists() and path.read_text().count("\n") > 3:
                break
            assert running.poll() is None, running.communicate()
            time.sleep(0.05)
        # Nobody else writes there meanwhile.
        for flags in (["--resume", "out"], ["--out", "out", "--overwrite"]):
            other = fedkern_command("run", *flags)
            assert other.exit_code == 2
            assert "out: wanted a folder that no other process writes to, got out" in other.stderr
        os.killpg(running.pid, number)  # as a terminal does, or a batch system: workers get it, too
        _, errors = running.communicate(timeout=120)
    finally:
        running.kill()
    assert running.returncode == status
    assert errors == (
        f"fedkern: {word}; results are in out\n"
        "fedkern: `fedkern run --resume out` goes on with it\n"
    )
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == FILES
    assert not any(int(row["failed"]) for row in history(tmp_path / "out"))
    done = len(history(tmp_path / "out"))
    assert done >= 3
    # The round that was being trained is not in it; one that had just ended may be.
    (checkpoint,) = (tmp_path / "out" / "checkpoints").rglob("round-*.checkpoint")
    assert checkpoint.name in (f"round-{done:06d}.checkpoint", f"round-{done + 1:06d}.checkpoint")


# ---- going on ------------------------------------------------------------------------------------


def files_of(folder):
    """What must be the same: all but seconds."""
    rows = [{**row, "seconds": ""} for row in history(folder)]
    return rows, (folder / "clients.csv").read_text(), (folder / "simplex.png").read_bytes()


def test_a_comparison_is_resumed_where_it_was_interrupted(tmp_path, monkeypatch):
    options = ("compare", "ditto", "floco --tau 2 --endpoints 4", "--seeds", 2, "--rounds", 5)
    assert fedkern_command(*options, "--out", "whole").exit_code == 0
    simulate = experiment.simulate

    def interrupted(method, model, clients, config, **more):
        for round in simulate(method, model, clients, config, **more):
            yield round
            if isinstance(method, fl.Floco) and (config.seed, round.number) == (1, 3):
                raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(experiment, "simulate", interrupted)
        assert fedkern_command(*options, "--out", "out").exit_code == 130
    result = fedkern_command("run", "--resume", "out")
    assert result.exit_code == 0
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")
    lines = [line for line in result.stdout.splitlines() if "goes on after" in line]
    assert lines == [
        "ditto seed 0: goes on after round 5",
        "floco --tau 2 --endpoints 4 seed 0: goes on after round 5",
        "ditto seed 1: goes on after round 5",
        "floco --tau 2 --endpoints 4 seed 1: goes on after round 3",
    ]
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (summary["status"], [run["rounds"] for run in summary["runs"]]) == ("complete", [5] * 4)


def test_a_finished_run_goes_on_for_more_rounds(tmp_path):
    options = ("run", "--method", "floco", "--tau", 3, "--endpoints", 4)
    assert fedkern_command(*options, "--rounds", 6, "--out", "whole").exit_code == 0
    assert fedkern_command(*options, "--rounds", 4, "--out", "out").exit_code == 0
    assert fedkern_command("run", "--resume", "out", "--rounds", 6).exit_code == 0
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")
    config = (tmp_path / "out" / "config.toml").read_text()
    assert config == (tmp_path / "whole" / "config.toml").read_text()
    # Going on with nothing to do changes nothing.
    assert fedkern_command("run", "--resume", "out").exit_code == 0
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")


REFUSED_ON_RESUME = [
    (["--rounds", "2"], "rounds: wanted at least the 3 that are done, got 2"),
    (["--lr", "0.2"], "lr: wanted 0.1 as in .*checkpoint, got 0.2"),
    (["--rho", "0.2"], "rho: wanted 0.1 as in .*checkpoint, got 0.2"),
    (["--engine", "vmap"], "engine: wanted 'serial' as in .*, got 'vmap'"),
    (["--threads", "2"], "threads: wanted 1 as in .*, got 2"),
    (["--eval-every", "2"], "eval_every: wanted 1 as in .*, got 2"),
    (["--server-optimizer", "adam"], "server_optimizer: wanted 'avg' as in .*, got 'adam'"),
    (["--method", "fedavg"], "endpoints: wanted only with floco"),
    (["--seeds", "2"], "seeds: wanted 1 as in out, got 2"),
    (["--seed", "1"], "seed: wanted 0 as in out, got 1"),
    (["--dataset", "own.npz"], "dataset: wanted an .npz file, found none"),
    (["--checkpoint-every", "0"], "resume: wanted a run with checkpoints, got out"),
]


def test_what_matters_is_not_changed_on_resume(tmp_path):
    options = ("--method", "floco", "--tau", 2, "--endpoints", 4, "--rounds", 3, "--out", "out")
    assert fedkern_command("run", *options).exit_code == 0
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    for flags, message in REFUSED_ON_RESUME:
        result = fedkern_command("run", "--resume", "out", *flags)
        assert result.exit_code == 2, flags
        assert re.match(f"fedkern: {message}", result.stderr), (flags, result.stderr)
        assert result.stderr.count("\n") == 1
        assert all(path.read_bytes() == content for path, content in before.items())
    free = ("--workers", 3, "--checkpoint-every", 2, "--min-clients", 2, "--target-accuracy", 0.5)
    assert fedkern_command("run", "--resume", "out", "--rounds", 4, *free).exit_code == 0


def test_other_data_are_refused_on_resume(tmp_path):
    arrays = own_arrays()
    np.savez(tmp_path / "own.npz", **arrays)
    options = ("--dataset", "own.npz", "--rounds", 2, "--clients", 10, "--clients-per-round", 5)
    assert fedkern_command("run", *options, "--out", "out").exit_code == 0
    arrays["x_train"][7, 3] += 1
    np.savez(tmp_path / "own.npz", **arrays)
    result = fedkern_command("run", "--resume", "out", "--rounds", 3)
    assert result.exit_code == 2
    assert re.match(
        r"fedkern: dataset's checksum: wanted \d+ as in .*checkpoint, got \d+\n", result.stderr
    )


def test_no_checkpoints_where_none_are_wanted(tmp_path):
    assert (
        fedkern_command("run", "--rounds", 1, "--checkpoint-every", 0, "--out", "out").exit_code
        == 0
    )
    assert not (tmp_path / "out" / "checkpoints").exists()
    result = fedkern_command("run", "--resume", "out")
    assert result.stderr == (
        "fedkern: resume: wanted a run with checkpoints, got out, checkpoint_every 0\n"
    )


def test_overwriting_a_run_removes_its_checkpoints(tmp_path):
    assert fedkern_command("run", "--method", "ditto", "--rounds", 2, "--out", "out").exit_code == 0
    (tmp_path / "out" / "checkpoints" / "mine").mkdir()
    (tmp_path / "out" / "checkpoints" / "mine" / "notes.txt").write_text("mine")
    options = ("--method", "fedavg", "--rounds", 1, "--out", "out", "--overwrite")
    assert fedkern_command("run", *options).exit_code == 0
    left = [path.relative_to(tmp_path / "out") for path in (tmp_path / "out").rglob("*")]
    assert sorted(str(path) for path in left if path.parts[0] == "checkpoints") == [
        "checkpoints",
        "checkpoints/fedavg-seed0",
        "checkpoints/fedavg-seed0/round-000001.checkpoint",
        "checkpoints/mine",
        "checkpoints/mine/notes.txt",
    ]


def test_methods_are_listed_with_paper_options_faults_and_what_they_keep():
    result = fedkern_command("methods")
    assert result.exit_code == 0
    lines = [" ".join(line.split()) for line in result.stdout.splitlines()]
    blocks = " ".join(lines).split("paper ")[1:]
    assert len(blocks) == len(fl.METHODS)
    for (name, kind), block in zip(fl.METHODS.items(), blocks, strict=True):
        assert any(line.startswith(f"{name}: ") for line in lines), name
        assert block.startswith(f"{kind.paper} keeps {kind.keeps or 'nothing'} options --")
        for field in settings_of(kind):
            if field.default != "":
                assert f"--{field.name.replace('_', '-')} {field.default}" in block, name
        for compat, faults in kind.faults.items():
            assert f"--compat {compat} {faults}" in block, name
    for kinds in PARTS.values():
        assert all(any(line.startswith(f"{part} ") for line in lines) for part in kinds)


def test_info():
    result = fedkern_command("info")
    assert result.exit_code == 0
    for key in fedkern.build_info():
        assert key in result.stdout
