"""Keeps benchmark results: rows of JSON with what is needed to compare them later."""

import json
import os
import platform
import subprocess
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

import fedkern

ROOT = Path(__file__).parent


def _commit() -> str:
    """The commit that was measured, with a + where files differ from it.

    FEDKERN_COMMIT names it where there is no repository.
    """
    if os.environ.get("FEDKERN_COMMIT"):
        return os.environ["FEDKERN_COMMIT"]
    try:
        return subprocess.run(
            ["git", "describe", "--always", "--dirty=+", "--abbrev=10"],
            cwd=ROOT,
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((x.split(":", 1)[1].strip() for x in lines if x.startswith("model name")), "")


def append(benchmark: str, rows: list[dict[str, Any]]) -> Path:
    """Append `rows`, each with commit, versions and machine, to results/<benchmark>.jsonl."""
    info = fedkern.build_info()
    facts = {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": _commit(),
        "fedkern": info["version"],
        "torch": info["torch_running"],
        "python": platform.python_version(),
        "processor": _processor(),
        "cpu_capability": info["cpu_capability"],
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }
    path = ROOT / "results" / f"{benchmark}.jsonl"
    path.parent.mkdir(exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps({**facts, **row}) + "\n")
    return path
