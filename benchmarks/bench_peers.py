"""Rounds of fedkern beside Flower's Ray simulation and Apple's pfl-research.

What is trained is in peers/task.py; the scripts there run a block of rounds each, in a process of
its own, on one thread a worker. Blocks of a peer and of fedkern take turns.

`pip install '.[peers]'` installs the peers, `make bench ARGS="-k peers"` runs it. Medians and
ratios are printed and kept.
"""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from time import sleep
from typing import Any

import pytest
import record

SCRIPTS = Path(__file__).parent / "peers"
PEERS = {"flower": ("flwr", "ray"), "pfl": ("pfl",)}  # and the packages that they need
REPEATS = 3
THREADS = 1
REST_SECONDS = 5.0  # before a block, for what the one before started (Ray's processes) to end
QUIET = {"FLWR_TELEMETRY_ENABLED": "0", "RAY_USAGE_STATS_ENABLED": "0"}  # nothing is sent anywhere


def block(framework: str, workers: int, *more: str) -> dict[str, Any]:
    """What a framework's script answers, with `more` options."""
    script = SCRIPTS / f"{framework}_round.py"
    options = ["--threads", str(THREADS), *more]
    if workers > 1:
        options += ["--workers", str(workers)]
    sleep(REST_SECONDS)
    done = subprocess.run(
        [sys.executable, str(script), *options],
        env={**os.environ, **QUIET},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        pytest.fail(f"{script.name}: {done.stderr}")
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def row(
    blocks: list[dict[str, Any]], fedkerns: list[dict[str, Any]], workers: int
) -> dict[str, Any]:
    """A framework's medians; each of its blocks is compared with the one of fedkern's beside it."""
    ratios = [
        one["median_seconds"] / other["median_seconds"]
        for one, other in zip(blocks, fedkerns, strict=True)
    ]
    return {
        "variant": blocks[0]["framework"],
        "version": blocks[0]["version"],
        "threads": THREADS,
        "workers": workers,
        "median_seconds": median(second for one in blocks for second in one["seconds"]),
        "times_fedkern": median(ratios),
        "final_accuracy": blocks[0]["final_accuracy"],
    }


@pytest.mark.parametrize(("peer", "workers"), [("flower", 1), ("flower", 2), ("pfl", 1)])
def test_peers(peer: str, workers: int) -> None:
    if not os.environ.get("FEDKERN_DATA"):
        pytest.skip("needs MNIST in the folder that FEDKERN_DATA names")
    missing = [package for package in PEERS[peer] if find_spec(package) is None]
    if missing:
        pytest.skip(f"{peer} needs {', '.join(missing)}: pip install '.[peers]'")
    pairs = [(block(peer, workers), block("fedkern", workers)) for _ in range(REPEATS)]
    peers, fedkerns = map(list, zip(*pairs, strict=True))
    rows = [row(peers, fedkerns, workers), row(fedkerns, fedkerns, workers)]

    print(f"\na round of MNIST, {workers} worker(s) of {THREADS} thread(s)")
    for one in rows:
        name = f"{one['variant']} {one['version']}"
        print(
            f"{name:18} {1e3 * one['median_seconds']:9.2f} ms"
            f"  {one['times_fedkern']:6.3f} x fedkern"
            f"  test accuracy {one['final_accuracy']:.4f}"
        )
    record.append("peers", [{**one, "beside": peer} for one in rows])
