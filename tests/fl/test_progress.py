import io
import re

import torch
from rich.console import Console

from fedkern import fl
from fedkern.fl.progress import Progress


def round_of(number, accuracy=None, local=None):
    evaluation = None
    if accuracy is not None:
        evaluation = fl.Evaluation(10, accuracy, 0.5, 2.0, 1.5, 0.05, [accuracy], 0)
    if local is not None:  # logits of two classes, one sample a client
        logits = [torch.tensor([[1.0, 0.0]])] * 4
        right = [torch.tensor([0])] * local + [torch.tensor([1])] * (4 - local)
        local = fl.measure_local(logits, right, 2)
    return fl.Round(number, 0.125, 0.25, evaluation, local)


def shown(*, terminal, local=None):
    output = io.StringIO()
    with Progress(Console(file=output, force_terminal=terminal, width=100), 2) as progress:
        progress.show("fedga seed 0", round_of(1, 0.5, local), 2)
        progress.show("fedga seed 0", round_of(2), 2)
    return output.getvalue()


def test_plain_lines_where_output_is_no_terminal():
    first, second = shown(terminal=False).splitlines()
    assert re.fullmatch(
        r"fedga seed 0 round 1/2 loss 0\.2500 accuracy 0\.5000 left 0:00:0\d", first
    )
    assert second == "fedga seed 0 round 2/2 loss 0.2500 left 0:00:00"


def test_local_accuracy_is_shown_where_there_is_one():
    assert "accuracy 0.5000 local 0.7500 left" in shown(terminal=False, local=3)


def test_bar_on_a_terminal_keeps_the_last_accuracy():
    text = shown(terminal=True)
    assert "round 2/2 loss 0.2500 accuracy 0.5000" in text
    assert "━" in text
