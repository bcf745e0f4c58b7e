"""Builds, tests, sanitizes and times fedkern on this machine's NVIDIA GPU; needs no network.

`make gpu-check` runs it with the machine's own Python (3.11 or later), which holds torch. Packages
that are missing there come from a folder of wheels that `make gpu-wheels` fills elsewhere.

    build      the package, for this GPU only, into build/gpu_check
    tests      all tests
    sanitize   compute-sanitizer's memcheck, racecheck and initcheck on the kernels' tests
    bench      the benchmarks on the GPU

Each part leaves a log in the folder of results; gpu_check.json sums them up.
"""

import argparse
import contextlib
import hashlib
import importlib.util
import json
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from gpu_wheels import declared_requirements

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "build" / "gpu_check"
SITE = FOLDER / "site"  # fedkern, and what was missing
BUILT = FOLDER / "built"  # which sources site was built from
BENCHMARK_RESULTS = ROOT / "benchmarks" / "results"

PART_SECONDS = 470.0
LOG_LINES = 40  # shown of a part that failed

# Where the tool can do with watching our kernels only, it does: torch's are many.
_OURS = ["--kernel-name", "kernel_substring=fedkern", "--error-exitcode", "86"]
SANITIZERS = {
    # Errors of API calls are torch's own probing; a call of ours that fails is a failing test.
    "memcheck": [*_OURS, "--report-api-errors", "no"],
    "racecheck": _OURS,
    # What a kernel of torch has written counts as written only where that kernel is watched.
    "initcheck": ["--print-limit", "10000", "--show-backtrace", "no"],
}

_PROBE = """
import json, torch
gpu = torch.cuda.is_available()
print(json.dumps({
    "torch": torch.__version__,
    "gpu": torch.cuda.get_device_name() if gpu else None,
    "architecture": "%d%d" % torch.cuda.get_device_capability() if gpu else None,
}))
"""
_BUILD_INFO = """
import fedkern, importlib.metadata, json
requires = importlib.metadata.requires("fedkern")
print(json.dumps({"build_info": fedkern.build_info(), "requires": requires}))
"""

WAY_OUT = (
    "`make gpu-wheels` fetches it where there is a network: name the folder it filled in WHEELS"
)


class PartError(Exception):
    """A part has failed; the message says why."""


# ---- the machine --------------------------------------------------------------------------------


def first_line(*command: str) -> str:
    """The first line that a command prints; "" where there is no such command, or it fails."""
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    except OSError:
        return ""
    return done.stdout.strip().partition("\n")[0] if done.returncode == 0 else ""


def find_nvcc() -> str | None:
    """The nvcc that CMakeLists.txt takes."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    folders = [os.path.join(home, "bin") for home in homes if home]
    return shutil.which("nvcc", path=os.pathsep.join([*folders, os.environ.get("PATH", "")]))


def describe_machine(commit: str) -> dict[str, Any]:
    """What results depend on. Leaves the program where there is no GPU, or no nvcc."""
    probe = subprocess.run([sys.executable, "-c", _PROBE], capture_output=True, text=True)
    if probe.returncode:
        reason = probe.stderr.strip().rpartition("\n")[2]
        sys.exit(f"gpu-check: {sys.executable} does not import torch: {reason}")
    facts: dict[str, Any] = json.loads(probe.stdout.splitlines()[-1])
    if not facts["gpu"]:
        sys.exit(f"gpu-check: torch {facts['torch']} sees no NVIDIA GPU here: nothing was built")
    nvcc = find_nvcc()
    if not nvcc:
        sys.exit("gpu-check: no nvcc was found (set CUDA_HOME to a CUDA toolkit)")
    release = subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout
    driver = first_line("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    git = first_line("git", "describe", "--always", "--dirty=+", "--abbrev=10")
    return {
        "commit": commit or git or "unknown",
        "machine": f"{platform.platform()}, {os.cpu_count()} CPUs",
        **facts,
        "driver": driver or "unknown",
        "nvcc": (re.findall(r"release (\d+\.\d+)", release) or ["unknown"])[0],
        "nvcc_path": nvcc,
        "python": platform.python_version(),
    }


# ---- a part and what it may use -----------------------------------------------------------------


class Job:
    """Runs a part's commands: output goes to the part's log, and the part's time is limited."""

    def __init__(self, name: str, machine: dict[str, Any], results: Path, wheels: Path) -> None:
        self.machine = machine
        self.results = results
        self.wheels = wheels
        self.details: dict[str, Any] = {}
        self.log = results / f"{name}.log"
        self.log.write_bytes(b"")
        self.deadline = time.monotonic() + PART_SECONDS
        self.environment = {
            **os.environ,
            "PYTHONPATH": prepended([SITE], "PYTHONPATH"),
            "PATH": prepended([SITE / "bin", Path(machine["nvcc_path"]).parent], "PATH"),
            "PYTHONUNBUFFERED": "1",  # what was printed is in the log, even of what is killed
            "FEDKERN_COMMIT": machine["commit"],
            "FEDKERN_TEST_EMULATOR": "off",  # the device itself is here
        }

    def run(self, command: list[str], **environment: str) -> tuple[int, str]:
        """The command's exit status and output."""
        start = self.log.stat().st_size
        with self.log.open("ab") as log:
            log.write(f"$ {shlex.join(command)}\n".encode())
            log.flush()
            # Not in ROOT: there, the source folder fedkern/ would be found before the built one.
            process = subprocess.Popen(
                command,
                cwd=FOLDER,
                env={**self.environment, **environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # so that the children can be stopped with it
            )
            try:
                status = process.wait(max(0.0, self.deadline - time.monotonic()))
            except BaseException:
                stop(process)
                raise
        return status, self.log.read_bytes()[start:].decode(errors="replace")

    def python(self, *arguments: str | Path, **environment: str) -> tuple[int, str]:
        return self.run([sys.executable, *map(str, arguments)], **environment)

    def pip(self, *arguments: str | Path, **environment: str) -> tuple[int, str]:
        return self.python("-m", "pip", "--disable-pip-version-check", *arguments, **environment)

    def pytest(
        self, label: str, *arguments: str | Path, prefix: Sequence[str] = (), **environment: str
    ) -> tuple[int, str]:
        """Exit status and output; the details get the counts of tests under `label`."""
        xml = FOLDER / "junit.xml"
        xml.unlink(missing_ok=True)
        command = [*prefix, sys.executable, "-m", "pytest", "-q", f"--junit-xml={xml}"]
        try:
            return self.run([*command, *map(str, arguments)], **environment)
        finally:  # pytest writes down what it did even when its time is up
            self.details[label] = read_junit(xml)


def prepended(folders: list[Path], variable: str) -> str:
    there = [os.environ[variable]] if os.environ.get(variable) else []
    return os.pathsep.join([*map(str, folders), *there])


def stop(process: "subprocess.Popen[bytes]") -> None:
    """End a process and its children: politely at first, so that pytest sums up what it did."""
    for sent in (signal.SIGINT, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
            os.killpg(process.pid, sent)
            process.wait(5)


def read_junit(xml: Path) -> dict[str, int]:
    """Counts of tests; none where pytest did not come to write them."""
    counts = {"passed": 0, "failed": 0, "skipped": 0}
    with contextlib.suppress(OSError, ElementTree.ParseError):
        for suite in ElementTree.parse(xml).iter("testsuite"):
            tests, failures, errors, skipped = (
                int(suite.get(key, 0)) for key in ("tests", "failures", "errors", "skipped")
            )
            counts["failed"] += failures + errors
            counts["skipped"] += skipped
            counts["passed"] += tests - failures - errors - skipped
    return counts


# ---- the parts ----------------------------------------------------------------------------------


def build(job: Job) -> None:
    BUILT.unlink(missing_ok=True)
    shutil.rmtree(SITE, ignore_errors=True)
    install_missing(job, declared_requirements())
    path = job.environment["PATH"]
    if not importlib.util.find_spec("cmake") and not shutil.which("cmake", path=path):
        raise PartError(f"missing: cmake. {WAY_OUT}")
    install_fedkern(job)
    status, output = job.python("-c", _BUILD_INFO)
    if status:
        raise PartError("fedkern was built, but cannot be imported")
    facts = json.loads(output.splitlines()[-1])
    job.details["build_info"] = facts["build_info"]
    print(json.dumps(facts["build_info"], indent=2))
    if not facts["build_info"]["cuda_architectures"]:
        raise PartError(f"the CUDA kernels are not loaded: {facts['build_info']['cuda_reason']}")
    install_missing(job, facts["requires"])
    BUILT.write_text(digest_of_sources(), encoding="utf-8")


def install_fedkern(job: Job) -> None:
    # setuptools packs whatever lies in its build folder: it gets an empty one.
    package = FOLDER / "package"
    shutil.rmtree(package, ignore_errors=True)
    settings = FOLDER / "setuptools.cfg"
    settings.write_text(f"[build]\nbuild_base = {package}\n", encoding="utf-8")
    status, _ = job.pip(
        *("install", "--verbose", "--no-build-isolation", "--no-deps", "--no-index"),
        *("--target", SITE, ROOT),
        FEDKERN_CUDA="on",
        FEDKERN_CUDA_ARCHITECTURES=f"{job.machine['architecture']}-real",
        DIST_EXTRA_CONFIG=str(settings),
    )
    if status:
        raise PartError("fedkern does not build")


def install_missing(job: Job, requirements: list[str]) -> None:
    """Install from the folder of wheels what this Python lacks, or has in too old a version."""
    wheels = sorted(job.wheels.glob("*.whl"))
    # The names of all wheels stand for what the requirements need in turn.
    names = [wheel.name.split("-")[0] for wheel in wheels]
    urls = resolve(job, [*requirements, *names])
    if urls is None:
        missing = [one for one in requirements if resolve(job, [one]) is None]
        raise PartError(f"missing: {', '.join(missing)}. {WAY_OUT}")
    if urls and job.pip("install", "--no-index", "--no-deps", "--target", SITE, *urls)[0]:
        raise PartError("wheels could not be installed")


def resolve(job: Job, requirements: list[str]) -> list[str] | None:
    """The wheels that would have to be installed, or None if one is neither here nor a wheel."""
    report = FOLDER / "resolved.json"
    status, _ = job.pip(
        *("install", "--dry-run", "--quiet", "--no-index", "--no-deps", "--report", report),
        *("--find-links", job.wheels),
        *requirements,
    )
    if status:
        return None
    items = json.loads(report.read_text(encoding="utf-8"))["install"]
    return [item["download_info"]["url"] for item in items]


def digest_of_sources() -> str:
    """Changes with whatever goes into the build."""
    build = ["build_support/backend.py", "build_support/torch_probe.py", "CMakeLists.txt"]
    paths = [ROOT / name for name in (*build, "pyproject.toml", "setup.py")]
    for folder in ("csrc", "fedkern"):
        paths += sorted(path for path in (ROOT / folder).rglob("*") if path.is_file())
    digest = hashlib.sha256()
    for path in paths:
        if path.suffix not in (".pyc", ".so"):
            digest.update(str(path.relative_to(ROOT)).encode() + path.read_bytes())
    return digest.hexdigest()


def tests(job: Job) -> None:
    status, _ = job.pytest("tests", "-ra", ROOT / "tests")
    if status:
        raise PartError(f"pytest's exit status is {status}")


def sanitize(job: Job) -> None:
    tool_path = shutil.which("compute-sanitizer", path=job.environment["PATH"])
    if not tool_path:
        raise PartError("compute-sanitizer was not found: it comes with the CUDA toolkit")
    kernels = sorted(path.stem for path in (ROOT / "csrc" / "ops" / "cuda").glob("*_kernel.cu"))
    # The contract reaches every operator; an operator's own tests, where it has some, go further.
    stems = ["operator_contract", *(stem.removesuffix("_kernel") for stem in kernels)]
    files = [ROOT / "tests" / f"test_{stem}.py" for stem in stems]
    failed = []
    for tool, options in SANITIZERS.items():
        prefix = [tool_path, "--tool", tool, *options]
        # Tests start processes that stop in a device assert, on purpose: only pytest is watched.
        # Loading torch takes long under the tools.
        prefix += ["--target-processes", "application-only", "--launch-timeout", "120"]
        status, output = job.pytest(
            *(tool, "-k", "cuda", *(str(file) for file in files if file.is_file())),
            prefix=prefix,
            # Each tensor is an allocation of its own: its bounds are seen, and that it is fresh.
            PYTORCH_NO_CUDA_MEMORY_CACHING="1",
        )
        errors = sanitizer_errors(tool, output)
        job.details[tool]["errors"] = errors
        if status or errors != 0:
            failed.append(tool)
    if failed:
        raise PartError(", ".join(failed))


def sanitizer_errors(tool: str, output: str) -> int | None:
    """The errors that a tool saw in our kernels; None where it did not come to a summary."""
    summary = re.search(r"^=+ (?:ERROR|RACECHECK) SUMMARY: (\d+)", output, re.MULTILINE)
    if not summary:
        return None
    if tool == "initcheck":  # saw torch's kernels, too: what it says there is not ours to mend
        return len(re.findall(r"^=+ +at .*fedkern", output, re.MULTILINE))
    return int(summary[1])


def bench(job: Job) -> None:
    before = {path: path.stat().st_size for path in BENCHMARK_RESULTS.glob("*.jsonl")}
    try:
        options = ["-s", "-k", "cuda", "-o", "python_files=bench_*.py"]
        status, _ = job.pytest("benchmarks", *options, ROOT / "benchmarks")
    finally:  # rows that were measured before the time was up count
        job.details["rows"] = keep_new_rows(before, job.results)
    if status:
        raise PartError(f"pytest's exit status is {status}")


def keep_new_rows(before: dict[Path, int], results: Path) -> dict[str, int]:
    """Copy what benchmarks have appended since; the number of rows of each."""
    rows = {}
    for path in sorted(BENCHMARK_RESULTS.glob("*.jsonl")):
        new = path.read_bytes()[before.get(path, 0) :]
        if new:
            (results / path.name).write_bytes(new)
            rows[path.stem] = new.count(b"\n")
    return rows


PARTS: dict[str, Callable[[Job], None]] = {
    "build": build,
    "tests": tests,
    "sanitize": sanitize,
    "bench": bench,
}


# ---- all of it ----------------------------------------------------------------------------------


def perform(name: str, job: Job) -> dict[str, Any]:
    """Run a part; its outcome, and what it found out."""
    print(f"gpu-check: {name} ...", flush=True)
    started = time.monotonic()
    outcome, reason = "passed", ""
    try:
        if name != "build" and not is_built():
            raise PartError(f"{FOLDER} holds no build of these sources: PART=build comes first")
        PARTS[name](job)
    except PartError as error:
        outcome, reason = "failed", str(error)
    except subprocess.TimeoutExpired:
        outcome, reason = "timed out", f"stopped after {PART_SECONDS:.0f} s"
    if outcome != "passed":
        lines = job.log.read_text(encoding="utf-8", errors="replace").splitlines()
        print("\n".join(lines[-LOG_LINES:]))
    seconds = round(time.monotonic() - started, 1)
    return {"outcome": outcome, "reason": reason, "seconds": seconds, **job.details}


def is_built() -> bool:
    return BUILT.is_file() and BUILT.read_text(encoding="utf-8") == digest_of_sources()


def summarise(path: Path, machine: dict[str, Any], parts: dict[str, Any]) -> dict[str, Any]:
    """Write the summary; parts that ran before, on the same build and machine, stay in it."""
    facts = {key: value for key, value in machine.items() if key != "nvcc_path"}
    earlier = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    same = "build" not in parts and all(earlier.get(k) == value for k, value in facts.items())
    summary = {
        **facts,
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "parts": {**(earlier["parts"] if same else {}), **parts},
    }
    path.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    return summary


def row_of(name: str, part: dict[str, Any]) -> list[str]:
    """A part's row in the table; the numbers it found are shown as they stand in the summary."""
    found = {k: v for k, v in part.items() if k not in ("outcome", "seconds", "build_info")}
    reason = found.pop("reason")
    notes = [reason] if reason else []
    notes += [
        f"{key}: " + ", ".join(f"{count} {what}" for what, count in counts.items())
        for key, counts in found.items()
    ]
    return [name, part["outcome"], f"{part['seconds']:.0f}", "\n".join(notes)]


def show(summary: dict[str, Any]) -> None:
    title = "{gpu}, driver {driver}, torch {torch}, nvcc {nvcc}, commit {commit}".format_map(
        summary
    )
    rows = [row_of(name, part) for name, part in summary["parts"].items()]
    sys.path.append(str(SITE))
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:  # it may be among what is missing
        print(title, *(" | ".join(row) for row in rows), sep="\n")
        return
    table = Table("part", "outcome", "seconds", "found", title=title, show_lines=True)
    for row in rows:
        table.add_row(*row)
    # A log has no width of its own, and nothing should be cut there.
    Console(width=None if sys.stdout.isatty() else 120).print(table)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", choices=["all", *PARTS], default="all")
    parser.add_argument("--results", type=Path, default=FOLDER / "results")
    parser.add_argument("--wheels", type=Path, default=ROOT / "build" / "gpu_wheels")
    parser.add_argument("--commit", default="", help="where git cannot tell")
    options = parser.parse_args()

    machine = describe_machine(options.commit)
    results = options.results.resolve()
    results.mkdir(parents=True, exist_ok=True)
    FOLDER.mkdir(parents=True, exist_ok=True)
    names = list(PARTS) if options.part == "all" else [options.part]
    done: dict[str, Any] = {}
    summary: dict[str, Any] = {}
    for name in names:
        job = Job(name, machine, results, options.wheels.resolve())
        done[name] = perform(name, job)
        summary = summarise(results / "gpu_check.json", machine, done)
    show(summary)
    wrong = [
        f"{name} {part['outcome']}" for name, part in done.items() if part["outcome"] != "passed"
    ]
    print(
        f"gpu-check: {'FAILED: ' + ', '.join(wrong) if wrong else 'passed'}; results in {results}"
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
