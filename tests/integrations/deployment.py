"""Flower's processes on this machine: a SuperLink, and SuperNodes that come and go."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from processes import environment

APP = Path(__file__).parent.parent.parent / "examples" / "flower_app"


class Deployment:
    """A SuperLink and its SuperNodes, on free ports of this machine, in a folder for their files.

    Leaving it ends all processes. With `simulated` nodes it has no others.
    """

    def __init__(self, folder: Path, simulated: int = 0) -> None:
        self.folder, self._simulated = folder, simulated
        self._port = free_port()
        self._nodes: dict[int, subprocess.Popen[bytes]] = {}
        home = folder / "flower"
        home.mkdir()
        (home / "config.toml").write_text(
            f'[superlink]\ndefault = "here"\n\n[superlink.here]\n'
            f'address = "127.0.0.1:{self._port}"\ninsecure = true\n'
        )
        self._environment = environment(
            FLWR_HOME=str(home),
            FLWR_TELEMETRY_ENABLED="0",
            RAY_USAGE_STATS_ENABLED="0",
            FLWR_DISABLE_UPDATE_CHECK="1",
            FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION="1",
            OMP_NUM_THREADS="1",
            NO_COLOR="1",
            # Flower's processes call each other by name.
            PATH=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        )

    def __enter__(self) -> Deployment:
        self._link = self._start(
            "superlink",
            "flower-superlink",
            "--insecure",
            "--host",
            "127.0.0.1",
            "--port",
            str(self._port),
            *(["--simulation"] if self._simulated else []),
        )
        self.wait_for("the SuperLink", lambda: self._answers())
        return self

    def __exit__(self, *_: object) -> None:
        for process in (*self._nodes.values(), self._link):
            _end(process)

    # ---- nodes -----------------------------------------------------------------------------------

    def start_node(self, number: int) -> None:
        """Starts the SuperNode of a client."""
        self._nodes[number] = self._start(
            f"supernode-{number}",
            "flower-supernode",
            "--insecure",
            "--superlink",
            f"127.0.0.1:{self._port}",
            "--host",
            "127.0.0.1",
            "--port",
            str(free_port()),
            "--node-config",
            f"partition-id={number}",
        )

    def stop_node(self, number: int) -> None:
        """Lets the SuperNode of a client take its leave."""
        node = self._nodes.pop(number)
        node.terminate()
        node.wait(60)
        _end(node)

    def kill_node(self, number: int) -> None:
        """Kills the SuperNode of a client, and whatever it has started."""
        _end(self._nodes.pop(number))

    # ---- runs ------------------------------------------------------------------------------------

    def run(self, **options: Any) -> str:
        """Submits a run of the app; returns its id."""
        text = " ".join(f"{k.replace('_', '-')}={json.dumps(v)}" for k, v in options.items())
        words = ["run", str(APP), "--run-config", text, "--format", "json"]
        if self._simulated:
            words += ["--federation-config", f"num-supernodes={self._simulated}"]
        answer = json.loads(self._flwr(*words))
        assert answer["success"], answer
        return str(answer["run-id"])

    def log(self, run: str) -> str:
        """What the run's ServerApp has said."""
        return self._flwr("log", run, "--show")

    def stop(self, run: str) -> None:
        """Stops a run."""
        self._flwr("stop", run)

    def wait_for(self, what: str, holds: Callable[[], bool], seconds: float = 240) -> None:
        """Waits until something holds."""
        end = time.monotonic() + seconds
        while not holds():
            if time.monotonic() > end:
                raise TimeoutError(f"{what}: not within {seconds:g} s\n{self.said()}")
            time.sleep(0.1)

    def said(self) -> str:
        """The last lines of all processes."""
        parts = []
        for path in sorted(self.folder.glob("*.log")):
            lines = path.read_text(errors="replace").splitlines()
            parts.append("\n".join([f"---- {path.name}", *lines[-30:]]))
        return "\n".join(parts)

    # ---- processes -------------------------------------------------------------------------------

    def _start(self, name: str, *command: str) -> subprocess.Popen[bytes]:
        with (self.folder / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                command,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._environment,
                cwd=self.folder,
                start_new_session=True,
            )

    def _flwr(self, *words: str) -> str:
        done = subprocess.run(
            ["flwr", *words], env=self._environment, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, f"flwr {words[0]}: {done.stdout}{done.stderr}\n{self.said()}"
        return done.stdout

    def _answers(self) -> bool:
        assert self._link.poll() is None, self.said()
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self._port)) == 0


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kills a process and its descendants that are in its session."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
