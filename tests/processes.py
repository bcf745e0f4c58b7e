"""Processes of this Python that import fedkern from where the tests do."""

import os
import sys
from pathlib import Path

import fedkern


def python(*arguments: object, **variables: str) -> dict[str, object]:
    """The arguments of `subprocess`'s functions; the variables are put over the environment."""
    return {
        "args": [sys.executable, *map(str, arguments)],
        "env": environment(**variables),
        "text": True,
    }


def environment(**variables: str) -> dict[str, str]:
    """This one, with the variables put over it."""
    folder = str(Path(fedkern.__file__).parent.parent)
    path = os.pathsep.join([folder, os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path, **variables}
