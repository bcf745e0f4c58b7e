import csv
import io
import json
import math

import pytest
import torch
from rich.console import Console

from fedkern import fl
from fedkern.fl.report import (
    HISTORY_COLUMNS,
    Result,
    RunFolder,
    plot_clients,
    plot_curves,
    summarise,
    summary_table,
)

PNG = b"\x89PNG\r\n\x1a\n"


def round_of(number, accuracy=None, train_loss=0.25):
    evaluation = None
    if accuracy is not None:
        evaluation = fl.Evaluation("test", 10, accuracy, 0.5, 2.0, 1.5, [accuracy, math.nan], 1)
    return fl.Round(number, 0.125, train_loss, evaluation)


def result_of(method, seed, *accuracies):
    return Result(method, seed, [round_of(i + 1, a) for i, a in enumerate(accuracies)])


RESULTS = [
    result_of("fedavg", 0, 0.2, 0.4),
    result_of("fedga", 0, 0.3, 0.7),
    result_of("fedavg", 1, 0.4, 0.6),
    result_of("fedga", 1, 0.5, 0.7),
]


def test_history_is_written_round_by_round(tmp_path):
    with RunFolder(tmp_path / "a" / "b") as folder:
        folder.add("fedga", 3, round_of(1, 1 / 3))
        folder.add("fedga", 3, round_of(2))
        # Read before it is closed: nothing waits in a buffer.
        rows = list(csv.reader((tmp_path / "a" / "b" / "history.csv").open()))
    assert tuple(rows[0]) == HISTORY_COLUMNS
    assert ",".join(rows[0]) == (
        "method,seed,round,seconds,train_loss,accuracy,macro_f1,error_asymmetry,cross_entropy"
    )
    assert rows[1] == ["fedga", "3", "1", "0.125000", "0.25", repr(1 / 3), "0.5", "2.0", "1.5"]
    assert rows[2] == ["fedga", "3", "2", "0.125000", "0.25", "", "", "", ""]


def test_a_run_is_not_overwritten_unless_asked_to(tmp_path):
    with RunFolder(tmp_path) as folder:
        folder.add("fedga", 0, round_of(1, 0.5))
        folder.write_json("summary.json", {})
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(fl.ConfigError, match=r"^out: wanted a folder without a run, got .*--over"):
        RunFolder(tmp_path)
    with RunFolder(tmp_path, overwrite=True):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["history.csv", "notes.txt"]
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
    assert fedavg["accuracy_minus_first"] == {"mean": 0.0, "std": 0.0}
    run = summary["runs"][1]
    assert (run["method"], run["seed"], run["rounds"], run["seconds"]) == ("fedga", 0, 2, 0.25)
    assert run["best_accuracy"] == 0.7
    assert run["last_evaluation"]["per_class_accuracy"][0] == 0.7
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
    assert read["runs"][1]["last_evaluation"]["per_class_accuracy"] == [0.7, None]


def test_late_accuracy_is_over_the_last_ten_evaluations():
    accuracies = [None if i % 2 else i / 100 for i in range(40)]  # evaluated: 0, 2, ..., 38
    assert result_of("fedga", 0, *accuracies).late_accuracy == pytest.approx(0.29)
    assert math.isnan(result_of("fedga", 0, None).late_accuracy)


def shown(results):
    output = io.StringIO()
    Console(file=output, width=120).print(summary_table(results))
    return output.getvalue()


def test_table_has_means_deviations_and_paired_differences():
    text = shown(RESULTS)
    assert "2 seeds" in text
    assert "50.00 ± 14.14" in text
    assert "minus fedavg, paired" in text
    assert "15.00 ± 7.07" in text
    alone = shown(RESULTS[:1])
    assert "40.00" in alone
    assert "±" not in alone
    assert "minus" not in alone


def test_runs_that_were_cut_short():
    cut = [*RESULTS[:2], result_of("fedavg", 1, 0.4), result_of("fedga", 1, None)]
    summary = summarise(cut, {}, "interrupted")
    assert summary["status"] == "interrupted"
    assert summary["methods"]["fedga"]["accuracy"] == {
        "mean": 0.7,
        "std": pytest.approx(math.nan, nan_ok=True),
    }
    assert summary["runs"][3]["last_evaluation"] is None
    assert "70.00" in shown(cut)
    assert summarise([result_of("fedga", 0, None)], {}, "interrupted")["methods"] == {}
    shown([result_of("fedga", 0, None)])


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
