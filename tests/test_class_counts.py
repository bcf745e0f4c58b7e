"""fedkern.class_counts against its slow twin."""

import pytest
import torch

import fedkern
from fedkern import reference


# none, one, a shape, more than one thread's share
@pytest.mark.parametrize("shape", [(0,), (), (7, 3), (100_000,)], ids=str)
def test_equals_the_reference(shape: tuple[int, ...], device: str) -> None:
    target = torch.randint(0, 10, shape, generator=torch.Generator().manual_seed(0)).to(device)
    for ignore_index in (-100, 3):
        actual = fedkern.class_counts(target, 10, ignore_index)
        assert actual.dtype == torch.int64
        assert torch.equal(actual, reference.class_counts(target, 10, ignore_index))


def test_strided_labels_of_any_integer_dtype() -> None:
    target = torch.arange(24).reshape(4, 6)[:, ::2] % 5
    expected = reference.class_counts(target, 5)
    for dtype in (torch.uint8, torch.int8, torch.int16, torch.int32, torch.uint16):
        assert torch.equal(fedkern.class_counts(target.to(dtype), 5), expected)


def test_counts_are_what_calibrated_ce_counts() -> None:
    logits = torch.randn(30, 4, generator=torch.Generator().manual_seed(0))
    target = torch.arange(30) ** 2 % 4
    counts = fedkern.class_counts(target, 4)
    expected = fedkern.calibrated_ce(logits, target)
    assert torch.equal(fedkern.calibrated_ce(logits, target, class_counts=counts), expected)


def test_opcheck() -> None:
    torch.library.opcheck(torch.ops.fedkern.class_counts.default, (torch.arange(6) % 3, 3))


@pytest.mark.parametrize(
    ("error", "message", "target", "num_classes"),
    [
        (TypeError, "target must hold class indices.*got Float", torch.zeros(3), 2),
        (TypeError, "got Bool", torch.zeros(3, dtype=torch.bool), 2),
        (ValueError, "num_classes must be at least 1, got 0", torch.zeros(3).long(), 0),
        (IndexError, r"\[0, 2\), got 2 at position 1", torch.tensor([0, 2]), 2),
    ],
)
def test_bad_input(
    error: type[Exception], message: str, target: torch.Tensor, num_classes: int
) -> None:
    with pytest.raises(error, match=message):
        fedkern.class_counts(target, num_classes)
