import csv
import io
import json
import math
import re
from dataclasses import replace

import pytest
import torch
from made_results import LOCAL_RESULTS, RESULTS, result_of, round_of
from rich.console import Console

from fedkern import fl
from fedkern.fl.landscape import Landscape
from fedkern.fl.report import (
    HISTORY_COLUMNS,
    RunFolder,
    file_name,
    plot_clients,
    plot_curves,
    plot_simplex,
    summarise,
)
from fedkern.fl.results import tables

PNG = b"\x89PNG\r\n\x1a\n"


def test_names_of_files_are_short_and_tell_methods_apart():
    assert file_name("fedavg", "floco --rho 0.3") == "fedavg-floco-rho-0.3"
    long = [f"floco+ {'--loss calibrated_ce ' * 20}--tau {tau}" for tau in (1, 2)]
    names = [*map(file_name, long), file_name(*long)]
    assert [len(name) for name in names] == [120] * 3
    assert len(set(names)) == 3


def test_history_is_written_round_by_round(tmp_path):
    with RunFolder(tmp_path / "a" / "b") as folder:
        folder.add("fedga", 3, round_of(1, 1 / 3))
        folder.add("fedga", 3, round_of(2))
        # Read before it is closed: nothing waits in a buffer.
        rows = list(csv.reader((tmp_path / "a" / "b" / "history.csv").open()))
    assert tuple(rows[0]) == HISTORY_COLUMNS
    assert ",".join(rows[0]).startswith(
        "method,seed,round,seconds,train_loss,clients,failed,accuracy,macro_f1,error_asymmetry,cross_entropy,"
        "calibration_error,global_on_local_mean_accuracy,"
    )
    measured = [repr(1 / 3), "0.5", "2.0", "1.5", "0.05"]
    assert rows[1] == ["fedga", "3", "1", "0.125000", "0.25", "4", "1", *measured, *[""] * 14]
    assert rows[2] == ["fedga", "3", "2", "0.125000", "0.25", "4", "1", *[""] * 19]


def test_a_run_is_not_overwritten_unless_asked_to(tmp_path):
    with RunFolder(tmp_path) as folder:
        folder.add("fedga", 0, round_of(1, 0.5))
        folder.write_json("summary.json", {})
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(fl.ConfigError, match=r"^out: wanted a folder without a run, got .*--over"):
        RunFolder(tmp_path)
    with RunFolder(tmp_path, overwrite=True):
        pass
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["clients.csv", "history.csv", "notes.txt"]
    assert (tmp_path / "history.csv").read_text().count("\n") == 1


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(
            fl.ConfigError, match=r"^out: wanted a folder to write in, got .*/file/run: "
        ),
        RunFolder(tmp_path / "file" / "run"),
    ):
        pass


def test_summary_by_hand(tmp_path):
    partition = fl.Partition([torch.arange(3), torch.arange(0)], discarded=7)
    summary = summarise(RESULTS, {0: partition}, "complete")
    fedavg, fedga = summary["methods"]["fedavg"], summary["methods"]["fedga"]
    assert fedavg["accuracy"]["mean"] == pytest.approx(0.5)
    assert fedavg["accuracy"]["std"] == pytest.approx(0.2 / math.sqrt(2))  # of two: d / sqrt 2
    assert fedga["accuracy_last_10"]["mean"] == pytest.approx(0.55)  # means 0.5 and 0.6
    # Paired over seeds: 0.5 - 0.3 and 0.6 - 0.5.
    assert fedga["accuracy_minus_first"]["mean"] == pytest.approx(0.15)
    assert fedga["accuracy_minus_first"]["std"] == pytest.approx(0.1 / math.sqrt(2))
    # Student's t with one degree of freedom: 12.706 standard errors of 0.05.
    assert fedga["accuracy_minus_first"]["interval_95"] == pytest.approx(
        [0.15 - 0.6353, 0.15 + 0.6353], abs=1e-4
    )
    assert fedavg["accuracy_minus_first"] == {"mean": 0.0, "std": 0.0, "interval_95": [0.0, 0.0]}
    assert "rounds_to_target" in fedga
    run = summary["runs"][1]
    assert (run["method"], run["seed"], run["rounds"], run["seconds"]) == ("fedga", 0, 2, 0.25)
    assert run["global_on_test"]["best"]["round"] == run["global_on_test"]["last"]["round"] == 2
    assert run["global_on_test"]["best"]["accuracy"] == 0.7
    assert run["global_on_test"]["last"]["per_class_accuracy"][0] == 0.7
    assert run["global_on_local"] is run["personal_on_local"] is None
    assert run["failures"] == {"no data": 2}
    assert summary["partitions"] == [
        {
            "seed": 0,
            "discarded_samples": 7,
            "clients_without_data": [1],
            "smallest_client": 0,
            "largest_client": 3,
        }
    ]
    with RunFolder(tmp_path) as folder:
        folder.write_json("summary.json", summary)
    read = json.loads((tmp_path / "summary.json").read_text(), parse_constant=pytest.fail)
    assert read["runs"][1]["global_on_test"]["last"]["per_class_accuracy"] == [0.7, None]


def shown(results):
    output = io.StringIO()
    Console(file=output, width=120).print(*tables(results))
    return output.getvalue()


def test_runs_that_were_cut_short():
    cut = [*RESULTS[:2], result_of("fedavg", 1, 0.4), result_of("fedga", 1, None)]
    summary = summarise(cut, {}, "interrupted")
    assert summary["status"] == "interrupted"
    assert summary["methods"]["fedga"]["accuracy"] == {
        "mean": 0.7,
        "std": pytest.approx(math.nan, nan_ok=True),
    }
    assert summary["runs"][3]["global_on_test"] is None
    assert "70.00" in shown(cut)
    assert summarise([result_of("fedga", 0, None)], {}, "interrupted")["methods"] == {}
    shown([result_of("fedga", 0, None)])


def test_tables_are_written_as_markdown(tmp_path):
    with RunFolder(tmp_path) as folder:
        folder.write_tables(RESULTS, 0.65)
    text = (tmp_path / "tables.md").read_text()
    assert re.search(r"(?m)^\| +\| +accuracy % \|.* rounds to 65 % \| error asymmetry \|$", text)
    assert re.search(r"(?m)^\|-+\|-+:?\|", text)
    assert re.search(r"(?m)^\| fedga +\| +70\.00 ± 0\.00 \|", text)


def test_infinite_values_neither_break_the_mean_nor_the_json(tmp_path):
    broken = [result_of("fedga", seed, math.inf if seed else 0.5) for seed in (0, 1)]
    with RunFolder(tmp_path) as folder:
        folder.write_json("summary.json", summarise(broken, {}, "complete"))
    read = json.loads((tmp_path / "summary.json").read_text(), parse_constant=pytest.fail)
    assert read["methods"]["fedga"]["accuracy"] == {"mean": None, "std": None}
    assert "inf" in shown(broken)


@pytest.mark.parametrize("results", [RESULTS, [result_of("fedga", 0, None)], RESULTS[:3]])
def test_curves(tmp_path, results):
    pytest.importorskip("matplotlib")
    plot_curves(results, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(PNG)


@pytest.mark.parametrize("shape", [(1, 2), (100, 10), (20, 100)])
def test_client_plot(tmp_path, shape):
    pytest.importorskip("matplotlib")
    plot_clients(torch.arange(shape[0] * shape[1]).view(shape), tmp_path / "clients.png")
    assert (tmp_path / "clients.png").read_bytes().startswith(PNG)


def test_history_has_the_same_columns_with_and_without_local_figures(tmp_path):
    with RunFolder(tmp_path) as folder:
        for result in LOCAL_RESULTS:
            for round in result.rounds:
                folder.add(result.method, 0, round)
    with (tmp_path / "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["global_on_local_mean_accuracy"] for row in rows] == ["0.5", "0.125", "0.5", "0.5"]
    assert [row["personal_on_local_mean_accuracy"] for row in rows] == ["", "", "0.5", "0.875"]
    assert [row["personal_on_local_worst_accuracy"] for row in rows] == ["", "", "0.0", "0.5"]
    assert rows[3]["personal_on_local_std_accuracy"] == repr(math.sqrt(3) / 8)


def test_summary_says_which_model_on_which_data_last_and_best(tmp_path):
    summary = summarise(LOCAL_RESULTS, {}, "complete")
    fedavg, floco = summary["runs"]
    assert fedavg["personal_on_local"] is None
    assert fedavg["global_on_local"]["last"]["mean_accuracy"] == 0.125
    assert fedavg["global_on_local"]["best"]["mean_accuracy"] == 0.5
    assert fedavg["global_on_local"]["best"]["round"] == 1
    assert floco["personal_on_local"]["best"]["round"] == 2
    assert floco["personal_on_local"]["best"]["model"] == "personal"
    assert summary["methods"]["floco"]["personal_on_local_mean_accuracy"]["mean"] == 0.875
    with RunFolder(tmp_path) as folder:
        folder.write_json("summary.json", summary)


def test_clients_have_a_line_each(tmp_path, blobs):
    partition = fl.Partition(list(torch.arange(240).split([100, 80, 40, 20, 0])), 0)
    tests = [torch.tensor([0, 1])] * 4 + [torch.tensor([], dtype=torch.int64)]
    clients = fl.make_clients(blobs, replace(partition, test_indices=tests))
    clients[1].state["center"] = torch.tensor([0.25, 0.75, 0.0])
    with RunFolder(tmp_path) as folder:
        folder.add_clients("floco", 4, clients, LOCAL_RESULTS[1].rounds[1])
        folder.add_clients("fedavg", 4, clients, LOCAL_RESULTS[0].rounds[1])
    with (tmp_path / "clients.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 10
    assert [row["client"] for row in rows[:5]] == ["0", "1", "2", "3", "4"]
    assert [row["train_samples"] for row in rows[:5]] == ["100", "80", "40", "20", "0"]
    assert [row["personal_on_local_accuracy"] for row in rows] == ["1.0"] * 3 + ["0.5"] + [""] * 6
    assert [row["subregion_center"] for row in rows[:3]] == ["", "0.25 0.75 0", ""]
    assert rows[4]["dominant_class"] == rows[4]["global_on_local_accuracy"] == ""
    assert (rows[0]["method"], rows[0]["seed"], rows[0]["test_samples"]) == ("floco", "4", "2")


def test_curves_mark_tau_and_show_what_exists(tmp_path, monkeypatch):
    figure = pytest.importorskip("matplotlib.figure")
    drawn = []
    save = figure.Figure.savefig
    monkeypatch.setattr(
        figure.Figure, "savefig", lambda self, *a, **k: (drawn.append(self), save(self, *a, **k))
    )
    plot_curves(LOCAL_RESULTS, tmp_path / "curves.png")
    plot_curves(RESULTS, tmp_path / "plain.png")
    with_local, plain = (one.axes for one in drawn)
    assert (len(with_local), len(plain)) == (3, 2)
    for axes in with_local:
        assert [text.get_text() for text in axes.texts] == ["tau "]
    # FedAvg has no personal models, so its global one has the solid line.
    lines = [(len(line.get_xdata()), line.get_linestyle()) for line in with_local[1].lines[:4]]
    assert lines == [(0, "-"), (2, "-"), (2, "-"), (2, "--")]
    assert not plain[0].texts
    late = [replace(LOCAL_RESULTS[1], marks={"tau": 250})]
    plot_curves(late, tmp_path / "late.png")
    assert not drawn[-1].axes[0].texts


def test_simplex_plot(tmp_path):
    pytest.importorskip("matplotlib")
    grid = torch.linspace(0, 1, 15).double()
    shown = Landscape(
        torch.rand(6, 2).double(), torch.arange(6) % 3, torch.zeros(2), grid, grid, grid.outer(grid)
    )
    results = [replace(result, landscape=shown) for result in LOCAL_RESULTS]
    plot_simplex(results, tmp_path / "simplex.png")
    assert (tmp_path / "simplex.png").read_bytes().startswith(PNG)
