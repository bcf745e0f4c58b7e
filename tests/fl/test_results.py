"""What rounds say about methods: figures over seeds, and tables of them."""

import io
import math
import re
from dataclasses import replace

import pytest
from made_results import LOCAL_RESULTS, RESULTS, result_of
from rich.console import Console

from fedkern.fl.results import Figure, Result, figures, tables


def shown(results, **options):
    output = io.StringIO()
    Console(file=output, width=160).print(*tables(results, **options))
    return output.getvalue()


def test_late_accuracy_is_over_the_last_ten_rounds():
    accuracies = [None if i % 2 else i / 100 for i in range(40)]  # evaluated: rounds 1, 3, ..., 39
    assert result_of("fedga", 0, *accuracies).late("accuracy") == pytest.approx(0.34)
    assert result_of("fedga", 0, None).late("accuracy") is None
    assert result_of("fedga", 0, 0.5, *[None] * 10).late("accuracy") is None


def test_the_first_evaluated_round_that_reaches_a_target():
    result = result_of("fedga", 0, 0.2, None, 0.6, 0.5, 0.7)
    assert [result.rounds_to(target) for target in (0.2, 0.5, 0.6, 0.65, 0.8)] == [1, 3, 3, 5, None]


def test_rounds_to_a_target_say_how_many_seeds_reach_it():
    assert figures(RESULTS, 0.7)["fedga"]["rounds_to_target"].values == [2, 2]
    text = shown(RESULTS, target_accuracy=0.6)
    assert "rounds to 60 %" in text
    assert re.search(r"fedavg .* 2\.0 \(1 seeds\)", text)
    assert re.search(r"fedga .* 2\.0 ± 0\.0 ", text)
    assert "rounds to" not in shown(RESULTS, target_accuracy=0.9)


def test_interval_by_hand():
    # Student's t with four degrees of freedom: 2.776 standard errors.
    figure = Figure([1.0, 2.0, 3.0, 4.0, 5.0], 5, paired=True)
    half = 2.776445 * math.sqrt(2.5) / math.sqrt(5)
    assert figure.interval == pytest.approx((3 - half, 3 + half), rel=1e-6)
    assert figure.cell(1, 2) == f"3.00 [{3 - half:.2f}, {3 + half:.2f}]"
    assert all(map(math.isnan, Figure([1.0], 1).interval))
    assert Figure([-0.001, -0.002], 2).cell(1, 2) == "0.00 ± 0.00"


def test_tables_have_means_deviations_and_paired_differences():
    text = shown(RESULTS)
    assert "2 seeds" in text
    assert "50.00 ± 14.14" in text
    assert "that minus fedavg, paired" in text
    assert "15.00 [-48.53, 78.53]" in text
    alone = shown(RESULTS[:1])
    assert "40.00" in alone
    assert "±" not in alone
    assert "minus" not in alone


def test_tables_have_local_figures_where_they_exist():
    text = shown(LOCAL_RESULTS)
    assert "global model, the clients' local data" in text
    assert "each client's own model, its local data" in text
    own = text.partition("each client's own model")[2]
    assert "fedavg" not in own
    assert re.search(r"floco +│ +87\.50 │", own)
    assert "local data" not in shown(RESULTS)


def test_a_method_without_a_global_model_has_no_figures_for_one():
    round = replace(LOCAL_RESULTS[1].rounds[1], evaluation=None, global_on_local=None)
    results = [result_of("fedavg", 0, 0.5), Result("fedper", 0, {}, [round])]
    text = shown(results)
    of_global, of_own = text.split("own model")
    assert "fedper" not in of_global.partition("; time")[0]
    assert "fedper" in of_own
    assert figures(results)["fedper"]["personal_on_local_mean_accuracy"].values
    assert figures(results)["fedper"]["accuracy_minus_first"].values == []
    assert figures(results[::-1])["fedavg"]["accuracy_minus_first"].values == []
