"""Find the torch to compile against, without importing it.

`python torch_probe.py` prints "folder;version;CUDA version" for CMake.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

NOT_FOUND = (
    "fedkern needs torch to be installed before it is built: pip install torch, or name the folder "
    "of an installed torch (the one that holds version.py) in FEDKERN_TORCH"
)

_PRINT_TORCH = "import importlib.util as u; s = u.find_spec('torch'); print(s.origin if s else '')"


class Torch(NamedTuple):
    """An installed torch: its folder, its version, its CUDA version ('' without CUDA)."""

    folder: str
    version: str
    cuda: str


def _installed(*flags: str) -> Path | None:
    """The torch that this interpreter would import when started with `flags`."""
    answer = subprocess.run(
        [sys.executable, *flags, "-c", _PRINT_TORCH],
        stdout=subprocess.PIPE,
        text=True,
        cwd=os.path.abspath(os.sep),  # a folder named torch in the working directory is not torch
    ).stdout.strip()
    return Path(answer).parent if answer else None


def _read(folder: Path) -> Torch | None:
    version_file = folder / "version.py"
    if not version_file.is_file() or not (folder / "include" / "ATen").is_dir():
        return None
    facts: dict[str, object] = {}
    exec(version_file.read_text(encoding="utf-8"), facts)
    return Torch(str(folder), str(facts["__version__"]), str(facts.get("cuda") or ""))


def find() -> Torch | None:
    """The torch to build against, or None.

    pip isolates a build through PYTHONPATH and sitecustomize on the *target's* interpreter, so with
    -E, which ignores both, the target's own torch is seen. It goes first: a torch in the build
    environment would be another one than the extension is going to run with.
    """
    named = os.environ.get("FEDKERN_TORCH")
    folders = [Path(named)] if named else [_installed("-E"), _installed()]
    for folder in folders:
        torch = _read(folder) if folder else None
        if torch:
            return torch
    return None


if __name__ == "__main__":
    found = find()
    if found is None:
        sys.exit(NOT_FOUND)
    print(";".join(found))
