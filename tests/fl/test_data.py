import json
import os
import shutil
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


def lies_channels_last(inputs):
    return inputs.permute(0, 2, 3, 1).is_contiguous()


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

    inputs = fl.scaled(torch.cat([digits.x_train, digits.x_test]))
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
    assert dataset.x_train.dtype == torch.uint8
    assert lies_channels_last(dataset.x_train)
    assert dataset.x_train[5, 1, 2, 3] == arrays["x_train"][5, 2, 3, 1]
    expected = arrays["x_train"][5, 2, 3, 1] / np.float32(255)
    assert fl.scaled(dataset.x_train)[5, 1, 2, 3].item() == expected
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


def test_number_of_classes_may_be_given(arrays):
    assert fl.Dataset.from_arrays("own", **arrays, num_classes=100).num_classes == 100
    with pytest.raises(fl.ConfigError, match=r"own: wanted y_train below 4 .* got 4"):
        fl.Dataset.from_arrays("own", **arrays, num_classes=4)


@pytest.mark.parametrize("change", [lambda a: a[::-1], lambda a: a[:, ::2], lambda a: a])
@pytest.mark.parametrize("kind", [np.uint8, np.float32, np.float64])
@pytest.mark.parametrize("shape", [(6, 5, 4, 3), (6, 5, 4), (6, 5)])
def test_arrays_of_any_layout(shape, kind, change):
    inputs = change(np.random.default_rng(0).integers(0, 256, shape).astype(kind))
    inputs.flags.writeable = False
    labels = np.zeros(6, int)
    dataset = fl.Dataset.from_arrays("own", inputs, labels, inputs, labels)
    expected = inputs.astype(np.float32)
    if kind is np.uint8:
        expected /= 255
    if len(shape) > 2:
        expected = expected.reshape(*inputs.shape[:3], -1).transpose(0, 3, 1, 2)
    assert dataset.x_train.dtype == (torch.uint8 if kind is np.uint8 else torch.float32)
    np.testing.assert_array_equal(fl.scaled(dataset.x_train).numpy(), expected)
    assert dataset.x_train.ndim == 2 or lies_channels_last(dataset.x_train)
    assert dataset.x_train.data_ptr() != inputs.ctypes.data  # a tensor could write to it


@pytest.mark.parametrize("kind", [np.uint8, np.float32])
@pytest.mark.parametrize("shape", [(6, 5, 4, 3), (6, 5, 4), (6, 5)])
def test_arrays_that_lie_as_the_tensors_do_are_not_copied(shape, kind):
    inputs, labels = np.zeros(shape, kind), np.zeros(6, int)
    dataset = fl.Dataset.from_arrays("own", inputs, labels, inputs, labels)
    assert dataset.x_train.data_ptr() == inputs.ctypes.data
    assert dataset.x_train.untyped_storage().nbytes() == inputs.nbytes
    assert dataset.to("cpu").x_train.data_ptr() == inputs.ctypes.data


@pytest.mark.parametrize("kind", [torch.uint8, torch.float32])
def test_tensors_of_images_come_to_lie_channels_last(kind):
    x = torch.arange(360).view(6, 3, 5, 4).to(kind)
    labels = torch.zeros(6, dtype=torch.int64)
    dataset = fl.Dataset("made up", x, labels, x.flip(0), labels, 1)
    assert torch.equal(dataset.x_train, x)
    assert torch.equal(dataset.x_test, x.flip(0))
    for inputs in (dataset.x_train, dataset.x_test, dataset.to("meta").x_test):
        assert inputs.dtype == kind
        assert lies_channels_last(inputs)


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


# ---- FEMNIST -------------------------------------------------------------------------------------


def drawing(value):
    """An image that says which one it is."""
    return [value / 255] * 783 + [1.0]


def leaf(**writers):
    """A file of LEAF: each writer's list of (image, label)."""
    return {
        "users": list(writers),
        "num_samples": [len(samples) for samples in writers.values()],
        "hierarchies": [],  # LEAF may write it
        "user_data": {
            writer: {"x": [drawing(x) for x, _ in samples], "y": [y for _, y in samples]}
            for writer, samples in writers.items()
        },
    }


@pytest.fixture
def femnist(tmp_path):
    """Three writers in two files, one of them in both; a fourth writes test samples alone."""
    files = {
        "train/a.json": leaf(f2=[(20, 3), (21, 61)], f1=[(10, 0)], f4=[]),
        "train/b.json": leaf(f3=[(30, 35)], f2=[(22, 3)]),
        "test/a.json": leaf(f3=[(31, 40)], f0=[(1, 2)], f2=[(23, 3)], f4=[(40, 1)]),
    }
    for name, content in files.items():
        path = tmp_path / "femnist" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
    return tmp_path


def test_femnist_from_leafs_files(femnist, capsys):
    dataset = fl.load_dataset("femnist", femnist)
    assert dataset.num_classes == 62
    assert dataset.x_train.shape == (5, 1, 28, 28)
    assert dataset.x_test.shape == (4, 1, 28, 28)
    assert dataset.x_train.dtype == torch.float32
    # In order of the writers' names, and for each in order of the files.
    assert (dataset.x_train[:, 0, 0, 0] * 255).round().tolist() == [10, 20, 21, 22, 30]
    assert (dataset.x_test[:, 0, 0, 0] * 255).round().tolist() == [1, 23, 31, 40]
    assert dataset.x_train[0, 0, 27, 26:].tolist() == [np.float32(10 / 255), 1]
    assert dataset.y_train.tolist() == [0, 3, 61, 3, 35]
    assert dataset.y_test.tolist() == [2, 3, 40, 1]
    # f1, f2, f3; f0 has no training data, nor has f4, whom a training file names.
    assert dataset.train_writers.tolist() == [0, 1, 1, 1, 2]
    assert dataset.test_writers.tolist() == [-1, 1, 2, -1]
    assert dataset.train_writers.dtype == dataset.test_writers.dtype == torch.int64
    assert capsys.readouterr() == ("", "")  # no progress bar where there is no terminal


def test_other_data_have_no_writers():
    digits = fl.load_dataset("digits").to("cpu")
    assert digits.train_writers is None
    assert digits.test_writers is None


def test_a_data_set_moves_as_a_whole(femnist):
    moved = fl.load_dataset("femnist", femnist).to("meta")
    tensors = ["x_train", "y_train", "x_test", "y_test", "train_writers", "test_writers"]
    assert all(getattr(moved, key).device.type == "meta" for key in tensors)
    assert (moved.name, moved.num_classes) == ("femnist", 62)


def without(key):
    return {k: value for k, value in leaf(f1=[(1, 1)]).items() if k != key}


def of_user(**changes):
    """A file of one writer of two samples, with changes to the writer's record."""
    content = leaf(f1=[(1, 1), (2, 2)])
    content["user_data"]["f1"] |= changes
    return content


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (without("users"), "wanted the lists users and .*, got num_samples, hierarchies, user_d"),
        (without("num_samples"), "wanted the lists .* num_samples .*, got users, hier"),
        (without("user_data"), "wanted .* the object user_data, got users, num_samples, hier"),
        ([1, 2], "wanted the lists users and num_samples and the object user_data, got list"),
        ({**of_user(), "num_samples": []}, "wanted num_samples for each of 1 users, got 0"),
        ({**of_user(), "num_samples": [3]}, "user 'f1': wanted num_samples, x .*, got 3, 2 and 2"),
        ({**of_user(), "users": ["f5"]}, "user 'f5': wanted user_data of lists .*, got NoneType"),
        ({**of_user(), "user_data": {"f1": {"x": []}}}, "user 'f1': wanted .* lists .*, got x$"),
        (of_user(y=[1]), "user 'f1': wanted num_samples, x and y to agree, got 2, 2 and 1"),
        (of_user(x=[drawing(1)]), "user 'f1': wanted num_samples, .* to agree, got 2, 1 and 2"),
        (of_user(x=[[0.0] * 783] * 2), "user 'f1': wanted x of 784 numbers each, got: "),
        (of_user(x=[[0.0] * 784, [0.0]]), "user 'f1': wanted x of 784 numbers each, got: "),
        (of_user(x=[["a"] * 784] * 2), "user 'f1': wanted x of 784 numbers each, got: "),
        (of_user(x=[[float("nan")] * 784] * 2), "wanted finite x_train, got nan or infinity"),
        (of_user(y=[61, 62]), r"user 'f1': wanted y in 0\.\.61, got 62"),
        (of_user(y=[-1, 0]), r"user 'f1': wanted y in 0\.\.61, got -1"),
        (of_user(y=[0.5, 0]), r"user 'f1': wanted y in 0\.\.61, got 0\.5"),
        (of_user(y=["a", 0]), r"user 'f1': wanted y in 0\.\.61, got 'a'"),
    ],
)
def test_femnist_that_does_not_fit(femnist, content, message):
    path = femnist / "femnist" / "train" / "a.json"
    path.write_text(json.dumps(content))
    with pytest.raises(fl.ConfigError, match=message) as caught:
        fl.load_dataset("femnist", femnist)
    assert str(caught.value).startswith("dataset: femnist: ")
    assert str(path) in str(caught.value) or "finite" in message
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b'{"users": [', b"\xff\xfe"])
def test_femnist_of_broken_json(femnist, content):
    path = femnist / "femnist" / "test" / "a.json"
    path.write_bytes(content)
    with pytest.raises(fl.ConfigError, match="wanted JSON, got: ") as caught:
        fl.load_dataset("femnist", femnist)
    assert str(caught.value).startswith(f"dataset: femnist: {path}: ")


def test_missing_femnist_says_where_it_looked(femnist):
    for missing in (femnist / "femnist" / "test", femnist / "femnist" / "train"):
        shutil.rmtree(missing)
        with pytest.raises(fl.ConfigError, match=r"github\.com/TalwalkarLab/leaf") as caught:
            fl.load_dataset("femnist", femnist)
        wanted = f"dataset: wanted the .json files of femnist in {missing}, found none "
        assert str(caught.value).startswith(wanted)


# ---- Tiny ImageNet -------------------------------------------------------------------------------


@pytest.fixture
def tiny_imagenet(tmp_path):
    """Three classes of two training images each, one of them grey, and four images to test."""
    image = pytest.importorskip("PIL.Image")
    rng = np.random.default_rng(0)
    folder = tmp_path / "tiny-imagenet-200"

    def save(path, *channels):
        path.parent.mkdir(parents=True, exist_ok=True)
        image.fromarray(rng.integers(0, 256, (64, 64, *channels), np.uint8)).save(path, "JPEG")

    for wnid in ("n03", "n01", "n02"):
        save(folder / "train" / wnid / "images" / f"{wnid}_0.JPEG", 3)
        save(folder / "train" / wnid / "images" / f"{wnid}_1.JPEG", *((3,) if wnid > "n01" else ()))
        (folder / "train" / wnid / f"{wnid}_boxes.txt").touch()
    (folder / "wnids.txt").write_text("n03\nn01\nn02\n")
    lines = []
    for number, wnid in enumerate(("n01", "n02", "n02", "n03")):
        save(folder / "val" / "images" / f"val_{number}.JPEG", 3)
        lines.append(f"val_{number}.JPEG\t{wnid}\t0\t0\t62\t62\n")
    (folder / "val" / "val_annotations.txt").write_text("".join(lines))
    return tmp_path


def test_tiny_imagenet_from_its_published_folder(tiny_imagenet, capsys):
    from PIL import Image

    dataset = fl.load_dataset("tiny-imagenet", tiny_imagenet)
    assert dataset.y_train.tolist() == [0, 0, 1, 1, 2, 2]  # n03, n01, n02, as in wnids.txt
    assert dataset.y_test.tolist() == [1, 2, 2, 0]
    assert dataset.num_classes == 3
    folder = tiny_imagenet / "tiny-imagenet-200"
    train = [f"train/{n}/images/{n}_{i}.JPEG" for n in ("n03", "n01", "n02") for i in range(2)]
    test = [f"val/images/val_{i}.JPEG" for i in range(4)]
    for paths, inputs in ((train, dataset.x_train), (test, dataset.x_test)):
        assert inputs.shape == (len(paths), 3, 64, 64)
        assert inputs.dtype == torch.uint8
        assert lies_channels_last(inputs)
        for path, pixels in zip(paths, fl.scaled(inputs), strict=True):
            expected = np.asarray(Image.open(folder / path), np.float32) / 255
            if expected.ndim == 2:
                expected = np.stack([expected] * 3, 2)
            np.testing.assert_array_equal(pixels.permute(1, 2, 0).numpy(), expected)
    assert capsys.readouterr() == ("", "")


def test_tiny_imagenet_of_more_images_than_a_thread_takes_at_once(tiny_imagenet):
    images = tiny_imagenet / "tiny-imagenet-200" / "train" / "n01" / "images"
    for number in range(2000, 2201):  # three parts, the last of them not full
        shutil.copy(images / f"n01_{number % 2}.JPEG", images / f"n01_{number}.JPEG")
    dataset = fl.load_dataset("tiny-imagenet", tiny_imagenet)
    assert torch.bincount(dataset.y_train).tolist() == [2, 203, 2]
    of_class = dataset.x_train[dataset.y_train == 1]  # 0, 1, 2000, ..., 2200
    for number, image in enumerate(of_class):
        assert torch.equal(image, of_class[number % 2])
    assert not torch.equal(of_class[0], of_class[1])


def damage(path, content=b"no image"):
    path.write_bytes(content)


def resize(path):
    from PIL import Image

    Image.new("RGB", (64, 63)).save(path)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("wnids.txt", Path.unlink, "wanted lines of text in .*wnids.txt, got: .*200.zip in the da"),
        ("val/val_annotations.txt", Path.unlink, "wanted lines of text in .*val_annotations.txt"),
        ("train/n02", shutil.rmtree, r"wanted \.JPEG files in .*train/n02/images, found none"),
        ("val/images/val_2.JPEG", Path.unlink, "val_2.JPEG: wanted a JPEG image, got: .*No such"),
        ("val/images/val_0.JPEG", damage, "val_0.JPEG: wanted a JPEG image, got: cannot identify"),
        ("train/n01/images/n01_1.JPEG", resize, "n01_1.JPEG: wanted 64x64 pixels, got 63x64"),
        (
            "val/val_annotations.txt",
            lambda path: damage(path, b"val_0.JPEG\tn01\t0\nval_1.JPEG\tn09\t0\n"),
            r"val_annotations.txt, line 2: wanted .* of wnids.txt .*, got 'val_1.JPEG\\tn09\\t0'",
        ),
        (
            "val/val_annotations.txt",
            lambda path: damage(path, b"val_0.JPEG n01\n"),
            r"val_annotations.txt, line 1: wanted a file and a class .*, got 'val_0.JPEG n01'",
        ),
    ],
)
def test_tiny_imagenet_that_does_not_fit(tiny_imagenet, file, change, message):
    change(tiny_imagenet / "tiny-imagenet-200" / file)
    with pytest.raises(fl.ConfigError, match=message) as caught:
        fl.load_dataset("tiny-imagenet", tiny_imagenet)
    assert str(caught.value).startswith("dataset: tiny-imagenet: ")
    assert "\n" not in str(caught.value)


def test_without_pillow(tiny_imagenet, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(fl.ConfigError, match="read by Pillow, which cannot be imported"):
        fl.load_dataset("tiny-imagenet", tiny_imagenet)


# ---- normalisation -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "shape",
    [(2500, 3, 4, 5), (1, 3, 4, 5), (2500, 3)],  # three parts of 1024, one sample, features
)
def test_normalized_inputs(shape):
    draws = torch.Generator().manual_seed(0)
    offset = torch.tensor([-3.0, 0.5, 100.0]).view(3, *[1] * (len(shape) - 2))
    x_train = torch.randn(shape, generator=draws) * 0.1 + offset
    x_test = torch.randn(7, *shape[1:], generator=draws) + offset
    labels = torch.zeros(2500, dtype=torch.int64)[: shape[0]]
    before = x_train.clone()
    dataset = fl.Dataset("made up", x_train, labels, x_test, labels[:7], 10).normalized()

    assert torch.equal(x_train, before)
    assert (dataset.name, dataset.num_classes) == ("made up", 10)
    dims = [dim for dim in range(len(shape)) if dim != 1]
    truth = before.double()
    center = truth.mean(dims, keepdim=True)
    scale = truth.std(dims, correction=0, keepdim=True)
    # Inputs of up to 100 have a rounding error of 4e-6 (so has the mean), 4e-5 standard deviations.
    close = {"rtol": 1e-6, "atol": 1e-4}
    for own, inputs in ((dataset.x_train, before), (dataset.x_test, x_test)):
        assert own.dtype == torch.float32
        expected = (inputs.double() - center) / scale
        torch.testing.assert_close(own.double(), expected, **close)
    torch.testing.assert_close(dataset.x_train.mean(dims), torch.zeros(3), **close)
    torch.testing.assert_close(dataset.x_train.std(dims, correction=0), torch.ones(3), **close)


def test_a_constant_channel_is_only_centred():
    x_train = torch.rand(1000, 2, 3, 3)
    x_train[:, 1] = 0.1
    x_test = torch.full((4, 2, 3, 3), 0.35)
    labels = torch.zeros(1000, dtype=torch.int64)
    dataset = fl.Dataset("made up", x_train, labels, x_test, labels[:4], 1).normalized()
    assert torch.equal(dataset.x_train[:, 1], torch.zeros(1000, 3, 3))
    torch.testing.assert_close(dataset.x_test[:, 1], torch.full((4, 3, 3), 0.25))
    assert dataset.x_train[:, 0].std() > 0.99


def test_uint8_is_normalized_as_its_floats_are():
    draws = torch.Generator().manual_seed(0)
    stored = torch.randint(256, (1500, 3, 4, 5), generator=draws, dtype=torch.uint8)
    labels = torch.zeros(1500, dtype=torch.int64)
    both = [
        fl.Dataset("made up", x, labels, x[:7], labels[:7], 1).normalized()
        for x in (stored, stored.float() / 255)
    ]
    for own, expected in zip(*((one.x_train, one.x_test) for one in both), strict=True):
        assert torch.equal(own, expected)
        assert own.dtype == torch.float32
        assert lies_channels_last(own)


def test_normalized_keeps_the_writers(femnist):
    dataset = fl.load_dataset("femnist", femnist)
    assert dataset.normalized().test_writers is dataset.test_writers


# ---- real data -----------------------------------------------------------------------------------


def test_real_mnist(mnist):
    assert mnist.x_train.shape == (60000, 1, 28, 28)
    assert mnist.x_test.shape == (10000, 1, 28, 28)
    assert mnist.x_train.untyped_storage().nbytes() == 60000 * 28 * 28  # uint8, once
    x_train = fl.scaled(mnist.x_train)
    assert (x_train.min().item(), x_train.max().item()) == (0.0, 1.0)
    # The mean and standard deviation that every MNIST example normalises by.
    assert x_train.mean().item() == pytest.approx(0.1307, abs=5e-5)
    assert x_train.std().item() == pytest.approx(0.3081, abs=5e-5)


def test_real_cifar10():
    root = os.environ.get("FEDKERN_DATA", "")
    if not root or not (Path(root) / "cifar10.npz").is_file():
        pytest.skip("needs cifar10.npz in the folder that FEDKERN_DATA names")
    dataset = fl.load_dataset("cifar10", root)
    assert dataset.x_train.shape == (50000, 3, 32, 32)
    assert torch.bincount(dataset.y_test).tolist() == [1000] * 10
    means = fl.scaled(dataset.x_train).mean((0, 2, 3)).tolist()
    assert means == pytest.approx([0.4914, 0.4822, 0.4465], abs=1e-4)
