"""Processes of this Python that import fedkern from where the tests do."""

import os
import sys
from pathlib import Path

import fedkern


def python(*arguments: object, **variables: str) -> dict[str, object]:
    """The arguments of `subprocess`'s functions; the variables are put over the environment."""
    folder = str(Path(fedkern.__file__).parent.parent)
    path = os.pathsep.join([folder, os.environ.get("PYTHONPATH", "")])
    return {
        "args": [sys.executable, *map(str, arguments)],
        "env": {**os.environ, "PYTHONPATH": path, **variables},
        "text": True,
    }
