"""Data sets as whole tensors in memory: embedded, by name through torchvision, or your own.

Inputs are images [n, channels, height, width] or features [n, d], stored as they come: uint8, which
stands for its 255th part in [0, 1] (`fedkern.fl.reading` converts what is read), or float32.
`load_dataset` reads

- ``digits``: the UCI handwritten digits (8x8), which come with fedkern and need no download;
- ``mnist``, ``fashion-mnist``, ``cifar10``, ``cifar100``, ``svhn``: torchvision's copies
  (CIFAR-10 also from ``DATA_ROOT/cifar10.npz``, as a file of your own);
- ``femnist``: handwritten characters by writer, from LEAF's JSON files in
  ``DATA_ROOT/femnist/train`` and ``DATA_ROOT/femnist/test``;
- ``tiny-imagenet``: 200 classes of 64x64 images, from ``DATA_ROOT/tiny-imagenet-200`` as it is
  published;
- a path ending in ``.npz``: your own arrays x_train, y_train, x_test, y_test.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from .errors import ConfigError, unknown_name
from .files import bytes_of
from .folders import FEMNIST_CLASSES, read_femnist, read_tiny_imagenet
from .reading import sample_contiguous, scaled


@dataclass(frozen=True)
class Dataset:
    """A classification data set held in memory.

    Attributes:
        name: what it is called in reports.
        x_train, x_test: images [n, channels, height, width] or features [n, d]: uint8, whose 255th
            part models see (`Reader` and `scaled` give it), or floating point, which they see as it
            is. Images lie in channels-last memory; what comes otherwise is copied into it.
        y_train, y_test: class indices, int64 [n], in [0, num_classes).
        num_classes: how many classes there are, whether or not all of them occur.
        train_writers, test_writers: who wrote each sample, int64 [n], where the data say so
            (FEMNIST), else None. A writer is the place among the writers with training samples in
            order of their names; -1 is a writer of test samples alone.
    """

    name: str
    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor
    num_classes: int
    train_writers: Tensor | None = None
    test_writers: Tensor | None = None

    @cached_property
    def checksum(self) -> int:
        """CRC-32 of all inputs, labels and writers."""
        checksum = 0
        for tensor in filter(torch.is_tensor, vars(self).values()):
            checksum = zlib.crc32(bytes_of(tensor), checksum)
        return checksum

    def __post_init__(self) -> None:
        for key in ("x_train", "x_test"):
            object.__setattr__(self, key, sample_contiguous(getattr(self, key)))

    @property
    def sample_shape(self) -> torch.Size:
        """The shape of one sample: (channels, height, width) or (d,)."""
        return self.x_train.shape[1:]

    def to(self, device: torch.device | str) -> Dataset:
        """The same data set with all tensors on `device`."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        moved: dict[str, Any] = {
            key: value.to(device) for key, value in values.items() if isinstance(value, Tensor)
        }
        return replace(self, **moved)

    def normalized(self) -> Dataset:
        """The same data set with float32 inputs of mean 0 and standard deviation 1.

        Mean and standard deviation (over n, not n - 1) are those of each channel of the training
        images, or of each training feature; the test inputs are shifted and scaled by the same
        numbers. What is constant in training is only shifted.
        """
        x = self.x_train
        dims = [dim for dim in range(x.ndim) if dim != 1]
        values = x.numel() // x.shape[1]

        def mean(of: Callable[[Tensor], Tensor]) -> Tensor:
            # Part by part: all inputs in float64 would take up to eight times their memory.
            parts = (scaled(part).double() for part in torch.split(x, 1024))
            sums = [of(part).sum(dims, keepdim=True) for part in parts]
            return torch.stack(sums).sum(0) / values

        center = mean(lambda part: part)
        deviation = mean(lambda part: (part - center).square()).sqrt()
        constant = x.amin(dims, keepdim=True) == x.amax(dims, keepdim=True)
        shift, scale = center.float(), deviation.masked_fill(constant, 1).float()
        x_train, x_test = ((scaled(inputs) - shift).div_(scale) for inputs in (x, self.x_test))
        return replace(self, x_train=x_train, x_test=x_test)

    @classmethod
    def from_arrays(
        cls,
        name: str,
        x_train: Any,
        y_train: Any,
        x_test: Any,
        y_test: Any,
        num_classes: int | None = None,
    ) -> Dataset:
        """Checks and converts arrays (NumPy, or anything NumPy takes for one).

        Args:
            name: what the data set is called in reports and errors.
            x_train, x_test: images [n, height, width] or [n, height, width, channels], or
                features [n, d]; uint8 (later divided by 255) or floating point, kept as float32.
                Writable uint8 and float32 arrays in C order are not copied.
            y_train, y_test: class indices, integers [n], below `num_classes`; they need not fill
                that range.
            num_classes: how many classes there are; ``y_train.max() + 1`` if None.

        Raises:
            ConfigError: which array is not like that, and how.
        """
        train_inputs = _inputs(name, "x_train", np.asarray(x_train))
        test_inputs = _inputs(name, "x_test", np.asarray(x_test))
        if train_inputs.shape[1:] != test_inputs.shape[1:]:
            raise ConfigError(
                f"dataset: {name}: wanted x_train and x_test with samples of one shape, got "
                f"{tuple(train_inputs.shape[1:])} and {tuple(test_inputs.shape[1:])}"
            )
        train_labels = _labels(name, "y_train", np.asarray(y_train), len(train_inputs))
        test_labels = _labels(name, "y_test", np.asarray(y_test), len(test_inputs))
        if num_classes is None:
            num_classes = int(train_labels.max()) + 1
            if num_classes > len(train_labels):  # most classes would have no sample
                raise ConfigError(
                    f"dataset: {name}: wanted y_train of class indices 0, 1, ... below the number "
                    f"of samples, {len(train_labels)}, got {num_classes - 1}"
                )
        for key, labels in (("y_train", train_labels), ("y_test", test_labels)):
            if int(labels.max()) >= num_classes:
                raise ConfigError(
                    f"dataset: {name}: wanted {key} below {num_classes} (num_classes, else "
                    f"y_train's largest label + 1), got {int(labels.max())}"
                )
        return cls(name, train_inputs, train_labels, test_inputs, test_labels, num_classes)


def default_data_root() -> Path:
    """Where data sets lie if nobody says: FEDKERN_DATA, else ~/.cache/fedkern."""
    return Path(os.environ.get("FEDKERN_DATA") or Path.home() / ".cache" / "fedkern")


def load_dataset(
    name: str, data_root: str | Path | None = None, *, download: bool = False
) -> Dataset:
    """Reads a data set by name or path, see the module's description.

    Args:
        name: a name from `DATASETS`, or the path of an ``.npz`` file.
        data_root: folder of the data sets; `default_data_root()` if None.
        download: let torchvision download what is missing of its data sets into `data_root`.

    Raises:
        ConfigError: an unknown name, data that is not there, or arrays that do not fit.
    """
    if name == "digits":
        return _read_npz(name, Path(__file__).parent.parent / "data" / "digits.npz")
    if name.endswith(".npz"):
        return _read_npz(name, Path(name))
    if name not in DATASETS:
        raise unknown_name("dataset", name, [*DATASETS, "PATH.npz"])
    root = default_data_root() if data_root is None else Path(data_root)
    if name == "femnist":
        return _read_femnist(root)
    if name == "tiny-imagenet":
        return Dataset.from_arrays(name, *read_tiny_imagenet(root))
    if name == "cifar10" and not (root / "cifar-10-batches-py").is_dir():
        archive = root / "cifar10.npz"
        if archive.is_file():
            return _read_npz(name, archive)
    return _read_torchvision(name, root, download)


def _read_npz(name: str, path: Path) -> Dataset:
    if not path.is_file():
        raise ConfigError(f"dataset: wanted an .npz file, found none at {path}")
    wanted = ("x_train", "y_train", "x_test", "y_test")
    try:
        loaded = np.load(path, allow_pickle=False)
        if not isinstance(loaded, np.lib.npyio.NpzFile):
            raise ValueError("a single array")
        with loaded as archive:
            missing = [key for key in wanted if key not in archive.files]
            if missing:
                raise ConfigError(
                    f"dataset: {path}: wanted the arrays {', '.join(wanted)}, "
                    f"got no {', '.join(missing)}"
                )
            arrays = [archive[key] for key in wanted]
    except ConfigError:
        raise
    except (OSError, ValueError, TypeError, EOFError, BadZipFile, zlib.error) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"dataset: {path}: wanted an .npz archive of plain arrays, got: {reason}"
        ) from error
    return Dataset.from_arrays(name, *arrays)


def _read_femnist(root: Path) -> Dataset:
    train, test = read_femnist(root)
    dataset = Dataset.from_arrays(
        "femnist", train.inputs, train.labels, test.inputs, test.labels, FEMNIST_CLASSES
    )
    return replace(
        dataset,
        train_writers=torch.from_numpy(train.writers),
        test_writers=torch.from_numpy(test.writers),
    )


def _read_torchvision(name: str, root: Path, download: bool) -> Dataset:
    try:
        from torchvision import datasets  # type: ignore[import-untyped,unused-ignore]
    except (ImportError, RuntimeError) as error:  # RuntimeError: built for another torch
        raise ConfigError(
            f"dataset: {name} is read by torchvision, which cannot be imported ({error}); "
            "install the torchvision of this torch, or use digits or an .npz file"
        ) from error
    try:
        train, test = _TORCHVISION[name](datasets, root, download)
    except Exception as error:  # torchvision raises whatever its readers and urllib raise
        reason = " ".join(str(error).split())
        hint = (
            "the download failed"
            if download
            else "pass --download, or name its folder by --data-root or FEDKERN_DATA"
        )
        raise ConfigError(f"dataset: wanted {name} in {root}, got: {reason} ({hint})") from error
    return Dataset.from_arrays(name, *train, *test)


def _reader(class_name: str) -> Callable[[Any, Path, bool], Any]:
    def read(datasets: Any, root: Path, download: bool) -> Any:
        make = getattr(datasets, class_name)
        parts = [make(str(root), train=train, download=download) for train in (True, False)]
        return [(part.data, part.targets) for part in parts]

    return read


def _read_svhn(datasets: Any, root: Path, download: bool) -> Any:
    parts = [datasets.SVHN(str(root), split, download=download) for split in ("train", "test")]
    return [(part.data.transpose(0, 2, 3, 1), part.labels) for part in parts]


_TORCHVISION = {
    "cifar10": _reader("CIFAR10"),
    "cifar100": _reader("CIFAR100"),
    "fashion-mnist": _reader("FashionMNIST"),
    "mnist": _reader("MNIST"),
    "svhn": _read_svhn,
}
DATASETS = ("digits", *_TORCHVISION, "femnist", "tiny-imagenet")


def _inputs(name: str, key: str, array: np.ndarray[Any, Any]) -> Tensor:
    """uint8 or float32 [n, d] or, in channels-last memory, [n, channels, height, width]."""
    if array.ndim not in (2, 3, 4) or array.size == 0:
        raise ConfigError(
            f"dataset: {name}: wanted {key} of shape [n, d], [n, height, width] or "
            f"[n, height, width, channels] with n > 0, got {list(array.shape)}"
        )
    if array.dtype != np.uint8 and not np.issubdtype(array.dtype, np.floating):
        raise ConfigError(f"dataset: {name}: wanted {key} uint8 or floating, got {array.dtype}")
    images = array[..., None] if array.ndim == 3 else array
    kept = np.uint8 if array.dtype == np.uint8 else np.float32
    # One copy at most: large data sets would not fit twice. W: tensors are writable.
    inputs = torch.from_numpy(np.require(images, kept, ["C", "W"]))
    if kept is np.float32 and not bool(inputs.isfinite().all()):
        raise ConfigError(f"dataset: {name}: wanted finite {key}, got nan or infinity")
    return inputs.permute(0, 3, 1, 2) if inputs.ndim == 4 else inputs


def _labels(name: str, key: str, array: np.ndarray[Any, Any], samples: int) -> Tensor:
    if array.shape != (samples,):
        raise ConfigError(
            f"dataset: {name}: wanted {key} of shape [{samples}], one label a sample, "
            f"got {list(array.shape)}"
        )
    if not np.issubdtype(array.dtype, np.integer):
        raise ConfigError(f"dataset: {name}: wanted {key} of integers, got {array.dtype}")
    if int(array.min()) < 0:
        raise ConfigError(
            f"dataset: {name}: wanted {key} of class indices >= 0, got {int(array.min())}"
        )
    return torch.from_numpy(array.astype(np.int64))
