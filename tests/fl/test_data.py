import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import fedkern.fl.data
from fedkern import fl


@pytest.fixture
def arrays():
    """A tiny image data set as the arrays of an .npz file."""
    rng = np.random.default_rng(0)
    return {
        "x_train": rng.integers(0, 256, (6, 5, 4, 3), dtype=np.uint8),
        "y_train": np.array([0, 1, 2, 0, 1, 4], dtype=np.uint8),
        "x_test": rng.integers(0, 256, (3, 5, 4, 3), dtype=np.uint8),
        "y_test": np.array([0, 3, 4]),
    }


def test_digits_are_scikit_learns():
    load_digits = pytest.importorskip("sklearn.datasets").load_digits
    source = load_digits()
    digits = fl.load_dataset("digits")
    assert digits.x_train.shape == (1437, 1, 8, 8)
    assert digits.x_test.shape == (360, 1, 8, 8)
    assert digits.num_classes == 10

    def rows(inputs, labels):
        """Images and labels as a sorted array: the split has its own order."""
        table = np.column_stack([np.asarray(inputs).reshape(len(labels), 64), labels])
        return table[np.lexsort(table.T)]

    inputs = torch.cat([digits.x_train, digits.x_test])
    labels = torch.cat([digits.y_train, digits.y_test])
    expected = np.round(source.images * 255 / 16).astype(np.float32) / np.float32(255)
    np.testing.assert_array_equal(rows(inputs, labels), rows(expected, source.target))
    # Stratified: each class's share of the test set is that of the whole, within a sample.
    share = np.bincount(source.target) * 360 / 1797
    assert np.abs(torch.bincount(digits.y_test).numpy() - share).max() < 1


def test_digits_carry_their_licence():
    licence = Path(fedkern.fl.data.__file__).parent.parent / "data" / "DIGITS_LICENSE.md"
    assert "CC BY 4.0" in licence.read_text()


def test_npz_of_colour_images(arrays, tmp_path):
    np.savez(tmp_path / "own.npz", **arrays)
    dataset = fl.load_dataset(str(tmp_path / "own.npz"))
    assert dataset.x_train.shape == (6, 3, 5, 4)
    assert dataset.x_train.dtype == torch.float32
    assert dataset.x_train.is_contiguous()
    expected = arrays["x_train"][5, 2, 3, 1] / np.float32(255)
    assert dataset.x_train[5, 1, 2, 3].item() == expected
    assert dataset.y_train.tolist() == [0, 1, 2, 0, 1, 4]
    assert dataset.y_test.tolist() == [0, 3, 4]  # 3 is a class that training never shows
    assert dataset.num_classes == 5


def test_npz_of_grey_images_and_of_features(arrays, tmp_path):
    grey = {key: a[..., 0] if key[0] == "x" else a for key, a in arrays.items()}
    np.savez(tmp_path / "grey.npz", **grey)
    assert fl.load_dataset(str(tmp_path / "grey.npz")).x_test.shape == (3, 1, 5, 4)
    features = {
        key: a.reshape(len(a), -1) - 100.0 if key[0] == "x" else a for key, a in arrays.items()
    }
    np.savez(tmp_path / "features.npz", **features)
    dataset = fl.load_dataset(str(tmp_path / "features.npz"))
    np.testing.assert_array_equal(dataset.x_train.numpy(), features["x_train"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"y_train": np.array([0, 1, 2, 0, -1, 4])},
            "wanted y_train of class indices >= 0, got -1",
        ),
        (
            {"y_train": np.array([0, 1, 2, 0, 1, 10**12])},
            "wanted y_train of class indices .* below the number of samples, 6, got 1000000000000",
        ),
        ({"y_train": np.zeros(6)}, "wanted y_train of integers, got float64"),
        ({"y_train": np.zeros(5, int)}, r"wanted y_train of shape \[6\], .* got \[5\]"),
        ({"y_test": np.zeros((3, 1), int)}, r"wanted y_test of shape \[3\], .* got \[3, 1\]"),
        ({"y_test": np.array([0, 5, 1])}, "wanted y_test below 5 .* got 5"),
        ({"x_train": np.zeros((6, 5, 4, 3), int)}, "wanted x_train uint8 or floating, got int64"),
        ({"x_train": np.full((6, 9), np.nan)}, "wanted finite x_train, got nan or infinity"),
        ({"x_train": np.zeros(6)}, r"wanted x_train of shape .* got \[6\]"),
        ({"x_train": np.zeros((0, 9))}, r"wanted x_train of shape .* n > 0, got \[0, 9\]"),
        ({"x_test": np.zeros((3, 7))}, r"samples of one shape, got \(3, 5, 4\) and \(7,\)"),
        ({"x_test": None}, "wanted the arrays x_train, y_train, x_test, y_test, got no x_test"),
        ({"y_test": np.array([0, None, 1])}, "wanted an .npz archive of plain arrays"),
    ],
)
def test_npz_that_does_not_fit(arrays, tmp_path, change, message):
    arrays |= change
    path = tmp_path / "own.npz"
    np.savez(path, **{key: a for key, a in arrays.items() if a is not None})
    with pytest.raises(fl.ConfigError, match=message) as caught:
        fl.load_dataset(str(path))
    assert str(caught.value).startswith("dataset: ")
    assert "\n" not in str(caught.value)


def test_npz_that_is_none(tmp_path):
    with pytest.raises(fl.ConfigError, match=r"found none at .*nowhere\.npz"):
        fl.load_dataset(str(tmp_path / "nowhere.npz"))
    for content in (b"", b"no archive", b"PK\x03\x04 cut short"):
        (tmp_path / "bad.npz").write_bytes(content)
        with pytest.raises(fl.ConfigError, match=r"wanted an \.npz archive of plain arrays, got: "):
            fl.load_dataset(str(tmp_path / "bad.npz"))
    np.save(tmp_path / "single.npy", np.zeros(3))
    (tmp_path / "single.npy").rename(tmp_path / "single.npz")
    with pytest.raises(fl.ConfigError, match=r"wanted an \.npz archive of plain arrays, got: "):
        fl.load_dataset(str(tmp_path / "single.npz"))


def test_unknown_name_suggests_the_nearest():
    with pytest.raises(fl.ConfigError, match=r"dataset: .* got 'MNITS' .did you mean 'mnist'"):
        fl.load_dataset("MNITS")


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "cifar10", "cifar100", "svhn"])
def test_missing_data_says_where_it_looked(name, tmp_path, monkeypatch):
    pytest.importorskip("torchvision")
    monkeypatch.setenv("FEDKERN_DATA", str(tmp_path))
    with pytest.raises(fl.ConfigError, match=r"--download.*--data-root or FEDKERN_DATA") as caught:
        fl.load_dataset(name)
    assert str(caught.value).startswith(f"dataset: wanted {name} in {tmp_path}, got: ")
    assert list(tmp_path.iterdir()) == []


def test_without_torchvision(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(fl.ConfigError, match="read by torchvision, which cannot be imported"):
        fl.load_dataset("mnist", tmp_path)
    assert fl.load_dataset("digits").num_classes == 10


def test_cifar10_from_an_archive_in_the_data_root(arrays, tmp_path):
    np.savez(tmp_path / "cifar10.npz", **arrays)
    assert fl.load_dataset("cifar10", tmp_path).x_train.shape == (6, 3, 5, 4)


def test_real_mnist(mnist):
    assert mnist.x_train.shape == (60000, 1, 28, 28)
    assert mnist.x_test.shape == (10000, 1, 28, 28)
    assert (mnist.x_train.min().item(), mnist.x_train.max().item()) == (0.0, 1.0)
    # The mean and standard deviation that every MNIST example normalises by.
    assert mnist.x_train.mean().item() == pytest.approx(0.1307, abs=5e-5)
    assert mnist.x_train.std().item() == pytest.approx(0.3081, abs=5e-5)


def test_real_cifar10():
    root = os.environ.get("FEDKERN_DATA", "")
    if not root or not (Path(root) / "cifar10.npz").is_file():
        pytest.skip("needs cifar10.npz in the folder that FEDKERN_DATA names")
    dataset = fl.load_dataset("cifar10", root)
    assert dataset.x_train.shape == (50000, 3, 32, 32)
    assert torch.bincount(dataset.y_test).tolist() == [1000] * 10
    means = dataset.x_train.mean((0, 2, 3)).tolist()
    assert means == pytest.approx([0.4914, 0.4822, 0.4465], abs=1e-4)
