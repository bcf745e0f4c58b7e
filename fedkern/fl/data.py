"""Data sets as whole tensors in memory: embedded, by name through torchvision, or your own.

Inputs are float32, images [n, channels, height, width] scaled to [0, 1], features [n, d] as they
are. `load_dataset` reads

- ``digits``: the UCI handwritten digits (8x8), which come with fedkern and need no download;
- ``mnist``, ``fashion-mnist``, ``cifar10``, ``cifar100``, ``svhn``: torchvision's copies
  (CIFAR-10 also from ``DATA_ROOT/cifar10.npz``, as a file of your own);
- a path ending in ``.npz``: your own arrays x_train, y_train, x_test, y_test.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from .errors import ConfigError, unknown_name


@dataclass(frozen=True)
class Dataset:
    """A classification data set held in memory.

    Attributes:
        name: what it is called in reports.
        x_train, x_test: float32, images [n, channels, height, width] or features [n, d].
        y_train, y_test: class indices, int64 [n], in [0, num_classes).
        num_classes: one more than the largest training label.
    """

    name: str
    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor
    num_classes: int

    @property
    def sample_shape(self) -> torch.Size:
        """The shape of one sample: (channels, height, width) or (d,)."""
        return self.x_train.shape[1:]

    def to(self, device: torch.device | str) -> Dataset:
        """The same data set with all tensors on `device`."""
        moved = {
            key: getattr(self, key).to(device) for key in ("x_train", "y_train", "x_test", "y_test")
        }
        return replace(self, **moved)

    @classmethod
    def from_arrays(
        cls, name: str, x_train: Any, y_train: Any, x_test: Any, y_test: Any
    ) -> Dataset:
        """Checks and converts arrays (NumPy, or anything NumPy takes for one).

        Args:
            name: what the data set is called in reports and errors.
            x_train, x_test: images [n, height, width] or [n, height, width, channels], or
                features [n, d]; uint8 is divided by 255, floating point is taken as it is.
            y_train, y_test: class indices, integers [n]. Test labels must be below
                ``y_train.max() + 1``; the training labels need not fill that range.

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
        num_classes = int(train_labels.max()) + 1
        if num_classes > len(train_labels):  # most classes would have no sample
            raise ConfigError(
                f"dataset: {name}: wanted y_train of class indices 0, 1, ... below the number of "
                f"samples, {len(train_labels)}, got {num_classes - 1}"
            )
        if int(test_labels.max()) >= num_classes:
            raise ConfigError(
                f"dataset: {name}: wanted y_test below {num_classes} (y_train's largest label + "
                f"1), got {int(test_labels.max())}"
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
        data_root: folder of torchvision's data sets; `default_data_root()` if None.
        download: let torchvision download what is missing into `data_root`.

    Raises:
        ConfigError: an unknown name, data that is not there, or arrays that do not fit.
    """
    if name == "digits":
        return _read_npz(name, Path(__file__).parent.parent / "data" / "digits.npz")
    if name.endswith(".npz"):
        return _read_npz(name, Path(name))
    if name not in _TORCHVISION:
        raise unknown_name("dataset", name, [*DATASETS, "PATH.npz"])
    root = default_data_root() if data_root is None else Path(data_root)
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
DATASETS = ("digits", *_TORCHVISION)


def _inputs(name: str, key: str, array: np.ndarray[Any, Any]) -> Tensor:
    """float32 [n, d] or [n, channels, height, width] of images that lie channels last."""
    if array.ndim not in (2, 3, 4) or array.size == 0:
        raise ConfigError(
            f"dataset: {name}: wanted {key} of shape [n, d], [n, height, width] or "
            f"[n, height, width, channels] with n > 0, got {list(array.shape)}"
        )
    if array.dtype == np.uint8:
        inputs = torch.from_numpy(np.ascontiguousarray(array)).float().div_(255)
    elif np.issubdtype(array.dtype, np.floating):
        inputs = torch.from_numpy(array.astype(np.float32))
        if not bool(inputs.isfinite().all()):
            raise ConfigError(f"dataset: {name}: wanted finite {key}, got nan or infinity")
    else:
        raise ConfigError(f"dataset: {name}: wanted {key} uint8 or floating, got {array.dtype}")
    if inputs.ndim == 3:
        inputs = inputs.unsqueeze(3)
    return inputs.permute(0, 3, 1, 2).contiguous() if inputs.ndim == 4 else inputs


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
