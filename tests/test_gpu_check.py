"""build_support/gpu_check.py tells what became of each part; none of this needs a GPU."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "build_support"))
import gpu_check
import gpu_wheels

MACHINE = {
    "commit": "abc",
    "gpu": "a GPU",
    "driver": "1.2",
    "torch": "2.11.0",
    "nvcc": "13.0",
    "nvcc_path": "/nowhere/bin/nvcc",
    "architecture": "90",
}


def command(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, gpu_check.__file__, *arguments],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> gpu_check.Job:
    """A job whose files lie in a folder of its own."""
    monkeypatch.setattr(gpu_check, "FOLDER", tmp_path)
    monkeypatch.setattr(gpu_check, "BUILT", tmp_path / "built")
    return gpu_check.Job("build", MACHINE, tmp_path, tmp_path / "wheels")


def test_without_a_gpu_nothing_is_built(tmp_path: Path) -> None:
    done = command("--results", str(tmp_path / "results"))
    assert done.returncode != 0
    assert "sees no NVIDIA GPU here" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "results").exists()


def test_an_unknown_part_is_named() -> None:
    done = command("--part", "biuld")
    assert done.returncode != 0
    assert "biuld" in done.stderr
    assert "sanitize" in done.stderr


def test_summary_of_a_part(
    job: gpu_check.Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def part(job: gpu_check.Job) -> None:
        job.details["tests"] = {"passed": 2, "failed": 1, "skipped": 0}
        raise gpu_check.PartError("one test failed")

    monkeypatch.setitem(gpu_check.PARTS, "build", part)
    path = tmp_path / "gpu_check.json"
    gpu_check.summarise(path, MACHINE, {"build": gpu_check.perform("build", job)})
    summary = json.loads(path.read_text())
    built = summary["parts"]["build"]
    assert summary["commit"] == "abc"
    assert summary["gpu"] == "a GPU"
    assert built.pop("seconds") >= 0
    assert built == {
        "outcome": "failed",
        "reason": "one test failed",
        "tests": {"passed": 2, "failed": 1, "skipped": 0},
    }


def test_parts_of_earlier_calls_stay_unless_something_differs(tmp_path: Path) -> None:
    path = tmp_path / "gpu_check.json"

    def parts(part: str, machine: dict[str, Any] = MACHINE) -> list[str]:
        return list(gpu_check.summarise(path, machine, {part: {}})["parts"])

    assert parts("build") == ["build"]
    assert parts("tests") == ["build", "tests"]
    assert parts("bench", {**MACHINE, "commit": "def"}) == ["bench"]
    assert parts("build", {**MACHINE, "commit": "def"}) == ["build"]


def test_a_part_needs_a_build_of_these_sources(job: gpu_check.Job) -> None:
    for digest in (None, "of other sources"):
        if digest:
            gpu_check.BUILT.write_text(digest)
        result = gpu_check.perform("tests", job)
        assert result["outcome"] == "failed"
        assert "PART=build comes first" in result["reason"]


def test_a_part_that_takes_too_long_is_stopped(
    job: gpu_check.Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    def part(job: gpu_check.Job) -> None:
        job.details["rows"] = {"one": 1}
        job.deadline = time.monotonic() + 0.1
        job.python("-c", "import time; time.sleep(60)")

    monkeypatch.setitem(gpu_check.PARTS, "build", part)
    result = gpu_check.perform("build", job)
    assert result.pop("seconds") < 30
    reason = "stopped after 470 s"
    assert result == {"outcome": "timed out", "reason": reason, "rows": {"one": 1}}


@pytest.mark.skipif(
    signal.getsignal(signal.SIGINT) is not signal.default_int_handler,
    reason="interrupts are ignored here",
)
def test_a_stopped_pytest_tells_what_it_did(tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    sleepy = tmp_path / "test_sleepy.py"
    sleepy.write_text(
        "import pathlib, time\n"
        "def test_fast(): pass\n"
        f"def test_slow(): pathlib.Path({str(begun)!r}).touch(); time.sleep(60)\n"
    )
    xml = tmp_path / "junit.xml"
    process = subprocess.Popen(
        [sys.executable, "-m", "pytest", f"--junit-xml={xml}", sleepy],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    while not begun.exists() and process.poll() is None:
        time.sleep(0.05)
    gpu_check.stop(process)
    assert process.returncode not in (0, None)
    assert gpu_check.read_junit(xml)["passed"] == 1


@pytest.mark.parametrize(
    ("tool", "output", "errors"),
    [
        ("memcheck", "========= ERROR SUMMARY: 0 errors", 0),
        ("memcheck", "========= ERROR SUMMARY: 3 errors", 3),
        ("memcheck", "========= Error: Device not supported", None),
        ("racecheck", "========= RACECHECK SUMMARY: 2 hazards displayed (1 errors, 1 warnings)", 2),
        (
            "initcheck",
            "========= Uninitialized __global__ memory read of size 4 bytes\n"
            "=========     at void at::native::other<float>(float *)+0x10\n"
            "========= Uninitialized __global__ memory read of size 4 bytes\n"
            "=========     at void fedkern::<unnamed>::run_rows<float>(float *)+0x10\n"
            "========= ERROR SUMMARY: 2 errors",
            1,
        ),
    ],
)
def test_sanitizer_errors(tool: str, output: str, errors: int | None) -> None:
    assert gpu_check.sanitizer_errors(tool, f"2 passed\n{output}\n") == errors


def test_only_new_rows_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_check, "BENCHMARK_RESULTS", tmp_path / "recorded")
    (tmp_path / "recorded").mkdir()
    old, new = (tmp_path / "recorded" / f"{name}.jsonl" for name in ("old", "new"))
    old.write_text('{"old": 1}\n')
    before = {old: old.stat().st_size}
    old.write_text('{"old": 1}\n{"old": 2}\n')
    new.write_text('{"new": 1}\n')
    results = tmp_path / "results"
    results.mkdir()
    assert gpu_check.keep_new_rows(before, results) == {"new": 1, "old": 1}
    assert (results / "old.jsonl").read_text() == '{"old": 2}\n'


def test_wheels_are_of_what_is_left() -> None:
    requirements = ["torch==2.15.*", "torchmetrics>=1", "numpy", "rich>=13", 'x; extra == "test"']
    left = gpu_wheels.without(requirements, ["torch", "numpy"])
    assert left == ["torchmetrics>=1", "rich>=13", 'x; extra == "test"']
