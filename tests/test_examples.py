"""The examples run, and show what they say."""

import os
import re
import subprocess
import sys
from pathlib import Path
from statistics import fmean

import pytest

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.py"))

# What makes an example of hours one of seconds: other data, fewer rounds, epochs and seeds.
ARGUMENTS = {
    "compare_methods.py": "out 1",
    "floco_cifar10.py": (
        "out dataset=digits model=mlp clients=20 clients_per_round=3 rounds=2 tau=2 local_epochs=1"
    ),
    "segmentation.py": "10",
}


# What else is looked at: check_EXAMPLE(what it printed, the folder that it ran in).


def check_compare_methods(shown: str, folder: Path) -> None:
    assert re.findall(r"(\w+): accuracy on the worst class", shown) == ["fedavg", "fedga", "floco"]
    assert {"curves.png", "tables.md"} <= {path.name for path in (folder / "out").iterdir()}


def check_imbalanced_classifier(shown: str, folder: Path) -> None:
    (macro,) = (line for line in shown.splitlines() if "macro" in line)
    cross_entropy, *others = numbers(r"\d+\.\d", macro)
    assert len(others) == 3
    assert min(others) > cross_entropy
    assert (folder / "recalls.png").stat().st_size > 0


def check_own_data(shown: str, folder: Path) -> None:
    assert len(numbers(r"test accuracy (\S+)", shown)) == 2
    assert (folder / "my_data.npz").is_file()


def check_own_method(shown: str, folder: Path) -> None:
    fedavg, own = (
        numbers(rf"{name}: .*lowest (\d\.\d+)", shown) for name in ("FedAvg", "MovingAverage")
    )
    assert len(fedavg) == len(own) == 3
    assert sum(own) > sum(fedavg)


def check_segmentation(shown: str, folder: Path) -> None:
    cross_entropy, calibrated = numbers(r"mean IoU (\S+)", shown)
    assert calibrated > cross_entropy


def check_simplex_resnet(shown: str, folder: Path) -> None:
    centers = numbers(r"simplex: (\S+)", shown)
    rows = [numbers(r"\S+", line) for line in re.findall(r"subregions: (.*)", shown)]
    assert len(rows) == len(centers) == 4
    own = [row[client] for client, row in enumerate(rows)]
    of_other_classes = [*rows[0][2:], *rows[1][2:], *rows[2][:2], *rows[3][:2]]
    assert fmean(own) > fmean(centers) > fmean(of_other_classes)


def numbers(pattern: str, text: str) -> list[float]:
    return [float(found) for found in re.findall(pattern, text)]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_example(path: Path, tmp_path: Path) -> None:
    if path.name == "simplex_resnet.py":
        pytest.importorskip("torchvision")
    done = subprocess.run(
        [sys.executable, path, *ARGUMENTS.get(path.name, "").split()],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},  # small work, and maybe busy neighbours
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout
    check = globals().get(f"check_{path.stem}")
    if check is not None:
        check(done.stdout, tmp_path)
