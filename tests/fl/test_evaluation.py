import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fedkern import fl


@pytest.mark.parametrize("classes_present", [[0, 1, 2, 3, 4], [0, 2, 3], [1]])
def test_agrees_with_scikit_learn(classes_present):
    metrics = pytest.importorskip("sklearn.metrics")
    draws = torch.Generator().manual_seed(0)
    logits = torch.randn(200, 5, generator=draws)
    logits[:, 4] = -9.0  # never predicted: with label absent too it must not count for macro-F1
    targets = torch.tensor(classes_present)[
        torch.randint(len(classes_present), (200,), generator=draws)
    ]
    logits[torch.arange(200), targets] += 1
    result = fl.evaluate(nn.Identity(), logits, targets, 5)

    predicted = logits.argmax(1)
    confusion = metrics.confusion_matrix(targets, predicted, labels=range(5))
    with np.errstate(invalid="ignore"):
        recalls = confusion.diagonal() / confusion.sum(1)
    assert result.samples == 200
    assert result.data == "test"
    assert result.accuracy == pytest.approx(metrics.accuracy_score(targets, predicted), abs=1e-6)
    expected = metrics.f1_score(targets, predicted, average="macro")
    assert result.macro_f1 == pytest.approx(expected, abs=1e-6)
    assert result.per_class_accuracy == pytest.approx(recalls.tolist(), abs=1e-6, nan_ok=True)
    assert result.absent_classes == 5 - len(classes_present)
    log_loss = metrics.log_loss(targets, logits.double().softmax(1), labels=range(5))
    assert result.cross_entropy == pytest.approx(log_loss, rel=1e-5)


def test_error_asymmetry_by_hand():
    probabilities = torch.tensor(
        [
            [0.7, 0.2, 0.1],  # class 0
            [0.5, 0.4, 0.1],  # class 0; mean 0.6 0.3 0.1
            [0.3, 0.5, 0.2],  # class 1
        ],
        dtype=torch.float64,
    )
    result = fl.error_asymmetry(probabilities.log(), torch.tensor([0, 0, 1]))
    # class 0 loses 0.4 and takes 0.3 from class 1; class 1 loses 0.5 and takes 0.3; 2 is absent
    assert result[:2].tolist() == pytest.approx([0.4 / 0.3, 0.5 / 0.3])
    assert math.isnan(result[2])
    evaluation = fl.evaluate(nn.Identity(), probabilities.log(), torch.tensor([0, 0, 1]), 3)
    assert evaluation.error_asymmetry == pytest.approx((0.4 / 0.3 + 0.5 / 0.3) / 2)
    assert evaluation.absent_classes == 1


def test_error_asymmetry_of_symmetric_errors_is_one():
    logits = torch.eye(4).repeat(3, 1)
    result = fl.error_asymmetry(logits, torch.arange(4).repeat(3))
    assert result.tolist() == pytest.approx([1.0] * 4)


def test_error_asymmetry_of_a_nearly_perfect_model_keeps_its_digits():
    # 1 - pi[c, c] would be 0 in float64 here: the errors are exp(-60) and 2 exp(-60).
    logits = torch.tensor([[60.0, 0.0], [math.log(2), 60.0]], dtype=torch.float64)
    result = fl.error_asymmetry(logits, torch.tensor([0, 1]))
    assert result.tolist() == pytest.approx([0.5, 2.0])


def test_batches_change_nothing(blobs):
    model = fl.build_model("mlp", blobs, fl.generator(0, "model"))
    whole = fl.evaluate(model, blobs.x_test, blobs.y_test, 4)
    parts = fl.evaluate(model, blobs.x_test, blobs.y_test, 4, batch_size=7, data="other")
    assert parts.data == "other"
    for name in ("accuracy", "macro_f1", "error_asymmetry", "cross_entropy"):
        assert getattr(whole, name) == pytest.approx(getattr(parts, name), rel=1e-5)


def test_model_is_evaluated_in_eval_mode_and_without_gradient():
    model = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.9))
    inputs, targets = torch.rand(50, 3), torch.arange(50) % 3
    before = torch.random.get_rng_state()
    result = fl.evaluate(model, inputs, targets, 3)
    assert torch.equal(before, torch.random.get_rng_state())
    assert result.cross_entropy == pytest.approx(F.cross_entropy(model[0](inputs), targets).item())
    assert all(p.grad is None for p in model.parameters())
