"""Data sets that lie in folders of many files: LEAF's FEMNIST and Tiny ImageNet.

The readers give NumPy arrays as `Dataset.from_arrays` takes them. They keep the samples once, as
arrays; beside them no more than one file's content is in memory.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, TypeVar

import numpy as np
from rich.console import Console
from rich.progress import track

from .errors import ConfigError

Array: TypeAlias = np.ndarray[Any, Any]
T = TypeVar("T")


# ---- FEMNIST -------------------------------------------------------------------------------------

FEMNIST_CLASSES = 62  # digits, capital and small letters
FEMNIST_SIDE = 28


class Writings(NamedTuple):
    """The training or the test set of FEMNIST, in order of the writers' names.

    Attributes:
        inputs: float32 [n, 28, 28], in [0, 1].
        labels: class indices, int64 [n], in [0, 62).
        writers: each sample's writer, int64 [n]: the place among the sorted names of the writers
            who have training samples, -1 for any other.
    """

    inputs: Array
    labels: Array
    writers: Array


def read_femnist(root: Path) -> tuple[Writings, Writings]:
    """FEMNIST's training and test set as LEAF (arXiv 1812.01097) writes them.

    Args:
        root: holds ``femnist/train/*.json`` and ``femnist/test/*.json``. A writer's samples may be
            spread over several files.

    Raises:
        ConfigError: files that are missing, or are not as LEAF makes them.
    """
    train, test = (_leaf_samples(root / "femnist" / part) for part in ("train", "test"))
    places = {writer: place for place, writer in enumerate(sorted(train))}
    return _joined(train, places), _joined(test, places)


def _leaf_samples(folder: Path) -> dict[str, list[tuple[Array, Array]]]:
    """For each writer who has samples, the images [n, 784] and labels [n] of each file."""
    paths = sorted(folder.glob("*.json"))
    if not paths:
        raise ConfigError(
            f"dataset: wanted the .json files of femnist in {folder}, found none "
            "(LEAF makes them: https://github.com/TalwalkarLab/leaf)"
        )
    samples: dict[str, list[tuple[Array, Array]]] = {}
    for path in _shown(paths, f"femnist {folder.name}", len(paths)):
        for writer, images, labels in _leaf_file(path):
            if len(labels) > 0:
                samples.setdefault(writer, []).append((images, labels))
    return samples


def _leaf_file(path: Path) -> Iterator[tuple[str, Array, Array]]:
    where = f"dataset: femnist: {path}"
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{where}: wanted JSON, got: {error}") from error
    match content:
        case {"users": [*users], "num_samples": [*sizes], "user_data": {**records}}:
            pass
        case _:
            raise ConfigError(
                f"{where}: wanted the lists users and num_samples and the object user_data, got "
                f"{_keys(content)}"
            )
    if len(users) != len(sizes):
        raise ConfigError(
            f"{where}: wanted num_samples for each of {len(users)} users, got {len(sizes)}"
        )
    for writer, size in zip(users, sizes, strict=True):
        record = records.pop(writer, None)  # its lists are freed when its arrays are made
        yield writer, *_leaf_arrays(f"{where}: user {writer!r}", record, size)


def _leaf_arrays(where: str, record: Any, size: int) -> tuple[Array, Array]:
    """A writer's images float32 [size, 784] and labels int64 [size]."""
    match record:
        case {"x": [*x], "y": [*y]}:
            pass
        case _:
            raise ConfigError(f"{where}: wanted user_data of lists x and y, got {_keys(record)}")
    if not len(x) == len(y) == size:
        raise ConfigError(
            f"{where}: wanted num_samples, x and y to agree, got {size}, {len(x)} and {len(y)}"
        )
    wrong = [label for label in y if label not in range(FEMNIST_CLASSES)]
    if wrong:
        raise ConfigError(f"{where}: wanted y in 0..{FEMNIST_CLASSES - 1}, got {wrong[0]!r}")
    pixels = FEMNIST_SIDE**2
    try:
        images = np.asarray(x, np.float32).reshape(size, pixels)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{where}: wanted x of {pixels} numbers each, got: {error}") from error
    return images, np.asarray(y, np.int64)


def _keys(content: Any) -> str:
    return ", ".join(content) if isinstance(content, dict) else type(content).__name__


def _joined(samples: dict[str, list[tuple[Array, Array]]], places: dict[str, int]) -> Writings:
    """One array of each kind. It empties `samples`: the images would not fit twice."""
    total = sum(len(labels) for pieces in samples.values() for _, labels in pieces)
    joined = Writings(
        np.empty((total, FEMNIST_SIDE, FEMNIST_SIDE), np.float32),
        np.empty(total, np.int64),
        np.empty(total, np.int64),
    )
    start = 0
    for writer in sorted(samples):
        for images, labels in samples.pop(writer):
            part = slice(start, start + len(labels))
            joined.inputs[part] = images.reshape(-1, FEMNIST_SIDE, FEMNIST_SIDE)
            joined.labels[part] = labels
            joined.writers[part] = places.get(writer, -1)
            start = part.stop
    return joined


# ---- Tiny ImageNet -------------------------------------------------------------------------------

TINY_IMAGENET_SIDE = 64


def read_tiny_imagenet(root: Path) -> tuple[Array, Array, Array, Array]:
    """Tiny ImageNet's training set, and its validation set as the test set (that has no labels).

    Args:
        root: holds the published folder ``tiny-imagenet-200``. Its wnids.txt gives the order of
            the classes.

    Returns:
        x_train, y_train, x_test, y_test: images uint8 [n, 64, 64, 3], labels int64 [n]. Grey
        images become RGB.

    Raises:
        ConfigError: files that are missing or damaged, or Pillow is missing.
    """
    folder = root / "tiny-imagenet-200"
    classes = {wnid: label for label, wnid in enumerate(_lines(folder / "wnids.txt"))}
    train_paths: list[Path] = []
    train_labels: list[int] = []
    for wnid, label in classes.items():
        images = folder / "train" / wnid / "images"
        paths = sorted(images.glob("*.JPEG"))
        if not paths:
            raise ConfigError(f"dataset: tiny-imagenet: wanted .JPEG files in {images}, found none")
        train_paths += paths
        train_labels += [label] * len(paths)

    test_paths: list[Path] = []
    test_labels: list[int] = []
    annotations = folder / "val" / "val_annotations.txt"
    for number, line in enumerate(_lines(annotations), 1):
        file, _, rest = line.partition("\t")
        wnid = rest.partition("\t")[0]
        if wnid not in classes:
            raise ConfigError(
                f"dataset: tiny-imagenet: {annotations}, line {number}: wanted a file and a class "
                f"of wnids.txt with a tab between them, got {line!r}"
            )
        test_paths.append(folder / "val" / "images" / file)
        test_labels.append(classes[wnid])
    return (
        _decoded(train_paths, "tiny-imagenet train"),
        np.array(train_labels),
        _decoded(test_paths, "tiny-imagenet val"),
        np.array(test_labels),
    )


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"dataset: tiny-imagenet: wanted lines of text in {path}, got: {error} "
            "(unpack http://cs231n.stanford.edu/tiny-imagenet-200.zip in the data root)"
        ) from error


def _decoded(paths: list[Path], description: str) -> Array:
    """The images at `paths`, uint8 [n, 64, 64, 3], decoded on all cores."""
    try:
        from PIL import Image
    except ImportError as error:
        raise ConfigError(
            f"dataset: tiny-imagenet is read by Pillow, which cannot be imported ({error})"
        ) from error
    side = TINY_IMAGENET_SIDE
    decoded = np.empty((len(paths), side, side, 3), np.uint8)

    def decode(positions: range) -> None:
        for position in positions:
            path = paths[position]
            try:
                with Image.open(path) as image:
                    pixels = np.asarray(image.convert("RGB"))
            except (OSError, ValueError) as error:
                raise ConfigError(
                    f"dataset: tiny-imagenet: {path}: wanted a JPEG image, got: {error}"
                ) from error
            if pixels.shape != decoded.shape[1:]:
                height, width = pixels.shape[:2]
                raise ConfigError(
                    f"dataset: tiny-imagenet: {path}: wanted {side}x{side} pixels, got "
                    f"{height}x{width}"
                )
            decoded[position] = pixels

    everything = range(len(paths))
    parts = [everything[start : start + 100] for start in everything[::100]]
    with ThreadPoolExecutor() as pool:  # Pillow decodes without Python's lock
        for _ in _shown(pool.map(decode, parts), description, len(parts)):
            pass
    return decoded


# ---- both ----------------------------------------------------------------------------------------


def _shown(items: Iterable[T], description: str, total: int) -> Iterable[T]:
    """The items, with a progress bar on standard error if that is a terminal."""
    console = Console(stderr=True)
    return track(items, description, total, console=console, disable=not console.is_terminal)
