"""The examples run as they stand."""

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.py"))


# What makes an example of hours one of seconds: other data, few rounds.
ARGUMENTS = {
    "floco_cifar10.py": (
        "out dataset=digits model=mlp clients=20 clients_per_round=3 rounds=2 tau=2 local_epochs=1"
    )
}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_example(path: Path, tmp_path: Path) -> None:
    command = [sys.executable, path, *ARGUMENTS.get(path.name, "").split()]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout
