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
    parts = fl.evaluate(model, blobs.x_test, blobs.y_test, 4, batch_size=7)
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


def calibration_error_by_hand(logits, targets):
    """Fifteen bins (a, b] of the largest probability."""
    confidence, predicted = logits.double().softmax(1).max(1)
    bins = (confidence * 15).ceil().long() - 1
    error = 0.0
    for b in bins.unique():
        inside = bins == b
        correct = (predicted == targets)[inside].double().mean()
        error += inside.double().mean() * (correct - confidence[inside].mean()).abs()
    return float(error)


def test_calibration_error_has_fifteen_bins():
    draws = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(500, 4, generator=draws)
    targets = torch.randint(4, (500,), generator=draws)
    expected = calibration_error_by_hand(logits, targets)
    assert fl.measure(logits, targets, 4).calibration_error == pytest.approx(expected, rel=1e-4)
    # Logits within [0, 1] are logits nevertheless.
    small = logits.sigmoid()
    expected = calibration_error_by_hand(small, targets)
    assert fl.measure(small, targets, 4).calibration_error == pytest.approx(expected, rel=1e-4)


def one_hot_logits(predicted):
    return 2 * F.one_hot(torch.tensor(predicted), 3).float()


def test_local_measures_by_hand():
    # Clients with 2, 0, 4 and 1 samples; accuracies 1/2, none, 3/4 and 0.
    logits = [one_hot_logits([0, 1]), torch.zeros(0, 3), one_hot_logits([0, 1, 2, 2])]
    logits.append(one_hot_logits([0]))
    targets = [[0, 0], [], [0, 1, 2, 0], [2]]
    targets = [torch.tensor(t, dtype=torch.int64) for t in targets]
    result = fl.measure_local(logits, targets, 3, "personal")
    assert result.model == "personal"
    assert result.samples.tolist() == [2, 0, 4, 1]
    assert result.accuracies.nan_to_num(-1).tolist() == [0.5, -1, 0.75, 0]
    assert result.mean_accuracy == pytest.approx((0.5 + 0.75 + 0) / 3)
    assert result.pooled_accuracy == pytest.approx(4 / 7)
    assert result.worst_accuracy == 0
    assert result.lowest_tenth_accuracy == 0  # one client of three
    assert result.std_accuracy == pytest.approx(np.std([0.5, 0.75, 0]))
    pooled, labels = torch.cat(logits), torch.cat(targets)
    assert result.cross_entropy == pytest.approx(F.cross_entropy(pooled, labels).item())
    assert result.calibration_error == pytest.approx(
        calibration_error_by_hand(pooled, labels), rel=1e-5
    )
    wrong = F.cross_entropy(logits[3], targets[3]).item()
    assert result.cross_entropies[3].item() == pytest.approx(wrong)


def test_lowest_tenth_is_a_mean_over_a_tenth_of_the_clients():
    # 25 clients, the k-th has k of 25 samples right: the lowest three have 0, 1 and 2.
    logits = [one_hot_logits([0] * k + [1] * (25 - k)) for k in range(25)]
    targets = [torch.zeros(25, dtype=torch.int64)] * 25
    result = fl.measure_local(logits, targets, 3)
    assert result.lowest_tenth_accuracy == pytest.approx(1 / 25)
    assert result.worst_accuracy == 0
