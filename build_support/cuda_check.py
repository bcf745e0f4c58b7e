"""Compiles every CUDA kernel for every architecture nvcc knows, then runs the emulator's tests.

`make cuda-check` runs it; no GPU is needed. Warnings are errors. What ptxas says of each kernel
(registers, shared memory, stack, spills) is shown and kept in build/cuda_check/kernels.json. A
spill is an error, too: a kernel that may spill stands in SPILLS_ALLOWED with the reason.
"""

import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

from configured import ROOT, CheckError, configure
from rich.console import Console
from rich.table import Table

FOLDER = ROOT / "build" / "cuda_check"
OLDEST_ARCHITECTURE = 75

# "file.cu: kernel", as in the table, and why it may spill. An entry that no longer spills is an
# error.
_LONG_ROWS = (
    "holds the longest rows in nearly all of the 128 registers that 512 threads can have each; a "
    "thread spills at most 44 bytes a row of at least 128 KB, and with fewer vectors as much"
)
SPILLS_ALLOWED = {
    "calibrated_ce_kernel.cu: run_teams<float, 512, float>": _LONG_ROWS,
    "calibrated_ce_kernel.cu: run_teams<__half, 512, float>": _LONG_ROWS,
    "calibrated_ce_kernel.cu: run_teams<__nv_bfloat16, 512, float>": _LONG_ROWS,
    "calibrated_ce_kernel.cu: run_walk<double, double>": "8 bytes; float64 is not there for speed",
    **{
        f"not_true_distillation_kernel.cu: run_teams<double, {team}, true>": (
            "8 bytes on sm_120; float64 is not there for speed"
        )
        for team in (8, 32, 256)
    },
    "simplex_project_kernel.cu: project_rows<double, Team<256> >": (
        "4 bytes on sm_100; float64 is not there for speed"
    ),
    "simplex_project_kernel.cu: project_rows<double, Team<512> >": (
        "8 bytes on sm_75; float64 is not there for speed"
    ),
    "simplex_sample_ball_kernel.cu: sample<double>": "16 bytes; float64 is not there for speed",
    "simplex_project_kernel.cu: project_rows<__half, Team<256> >": (
        "16 bytes on sm_90 around the division in double, once a round"
    ),
}

WARNINGS_ARE_ERRORS = ["-Werror", "all-warnings", "-Xcompiler=-Wall,-Wextra,-Werror"]


class Source(NamedTuple):
    """A .cu file and the command that compiles it, without architectures and output."""

    file: Path
    folder: str
    command: list[str]


class Compiled(NamedTuple):
    """What came of compiling one file for one target: "sm_90", or "compute_121" for PTX."""

    file: str
    target: str
    succeeded: bool
    output: str


@dataclass
class Usage:
    """What one function costs on one architecture, in bytes and registers of a thread.

    Shared memory is a block's. `stack` is the function's own frame in local memory, `local` the
    deepest stack of the kernel with all that it calls. Only kernels have registers of their own:
    `kernel` is False for a function that was not inlined.
    """

    function: str
    kernel: bool
    registers: int = 0
    shared: int = 0
    stack: int = 0
    local: int = 0
    spill_stores: int = 0
    spill_loads: int = 0
    file: str = ""
    architecture: str = ""

    @property
    def label(self) -> str:
        return f"{self.file}: {self.function}"

    @property
    def spills(self) -> bool:
        return self.spill_stores > 0 or self.spill_loads > 0


# ---- what is compiled, and for which architectures ----------------------------------------------


def sources() -> list[Source]:
    """Have CMake say which .cu files there are and how they are compiled."""
    configure(FOLDER, "on")
    commands = json.loads((FOLDER / "compile_commands.json").read_text(encoding="utf-8"))
    return [read_command(entry) for entry in commands if entry["file"].endswith(".cu")]


def read_command(entry: Mapping[str, str]) -> Source:
    """An entry of compile_commands.json, free of its architectures and its output file."""
    words = shlex.split(entry["command"])
    output = words.index("-o")
    words = [*words[:output], *words[output + 2 :]]
    return Source(
        file=Path(entry["file"]),
        folder=entry["directory"],
        command=[word for word in words if not word.startswith("--generate-code")],
    )


def known_architectures(nvcc: str) -> list[int]:
    """The architectures that this nvcc knows, from the oldest that is supported."""
    listed = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True, check=True)
    numbers = sorted(map(int, re.findall(r"^compute_(\d+)$", listed.stdout, re.MULTILINE)))
    return [number for number in numbers if number >= OLDEST_ARCHITECTURE]


def code_generation(architectures: list[int]) -> dict[str, str]:
    """nvcc's option for each target: machine code for all, and PTX of the newest."""
    options = {f"sm_{n}": f"arch=compute_{n},code=sm_{n}" for n in architectures}
    newest = f"compute_{architectures[-1]}"
    return {**options, newest: f"arch={newest},code={newest}"}


def compile_for(source: Source, target: str, generate: str) -> Compiled:
    with tempfile.TemporaryDirectory() as scratch:
        output = str(Path(scratch) / "object.o")
        options = [f"--generate-code={generate}", "-Xptxas=-v", *WARNINGS_ARE_ERRORS, "-o", output]
        done = subprocess.run(
            [*source.command, *options],
            cwd=source.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
    return Compiled(source.file.name, target, done.returncode == 0, done.stdout)


def compile_all(sources: list[Source]) -> list[Compiled]:
    if not sources:
        raise CheckError("CMake compiles no .cu file")
    targets = code_generation(known_architectures(sources[0].command[0]))
    jobs = [(source, *target) for source in sources for target in targets.items()]
    print(f"cuda-check: {len(sources)} files, each for {', '.join(targets)}", flush=True)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(lambda job: compile_for(*job), jobs))


# ---- what ptxas says ----------------------------------------------------------------------------


def short_name(demangled: str) -> str:
    """`run_rows<float>` of `void fedkern::(anonymous namespace)::run_rows<float>(float*, int)`."""
    name = re.sub(r"\(anonymous namespace\)::|\b\w+::", "", demangled)
    depth = start = 0
    for i, character in enumerate(name):
        depth += (character == "<") - (character == ">")
        if depth == 0 and character == " ":  # what stood before was the type of the result
            start = i + 1
        if depth == 0 and character == "(":
            return name[start:i]
    return name[start:]


def demangle(names: Iterable[str]) -> dict[str, str]:
    """Short readable names of mangled ones."""
    mangled = sorted(set(names))
    done = subprocess.run(
        ["c++filt"], input="\n".join(mangled), capture_output=True, text=True, check=True
    )
    return dict(zip(mangled, map(short_name, done.stdout.splitlines()), strict=True))


def read_ptxas(output: str) -> list[Usage]:
    """The functions in the output of `ptxas -v`, by their mangled names."""
    usages: list[Usage] = []
    kernel = ""
    for line in output.splitlines():
        if match := re.search(r"Compiling entry function '(\S+)'", line):
            kernel = match[1]
        elif match := re.search(r"Function properties for (\S+)", line):
            usages.append(Usage(match[1], kernel=match[1] == kernel))
        elif match := re.search(
            r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line
        ):
            usage = usages[-1]
            usage.stack, usage.spill_stores, usage.spill_loads = map(int, match.groups())
        elif match := re.search(r"Used (\d+) registers", line):
            usage = next(u for u in usages if u.function == kernel)
            usage.registers = int(match[1])
            usage.shared = _bytes("smem", line)
            usage.local = _bytes("cumulative stack size", line)
    return usages


def _bytes(of: str, line: str) -> int:
    match = re.search(rf"(\d+) bytes {of}", line)
    return int(match[1]) if match else 0


def read_all(compiled: list[Compiled]) -> list[Usage]:
    usages = []
    for one in compiled:
        for usage in read_ptxas(one.output):
            usage.file, usage.architecture = one.file, one.target
            usages.append(usage)
    names = demangle(usage.function for usage in usages)
    for usage in usages:
        usage.function = names[usage.function]
    return usages


# ---- the verdict --------------------------------------------------------------------------------


def spill_errors(usages: list[Usage], allowed: Mapping[str, str]) -> list[str]:
    """Spills that nobody allowed, and permissions that nobody needs."""
    spilling: dict[str, list[str]] = {}
    for usage in usages:
        if usage.spills:
            spilling.setdefault(usage.label, []).append(usage.architecture)
    errors = [
        f"{label} spills registers on {', '.join(architectures)}"
        for label, architectures in spilling.items()
        if label not in allowed
    ]
    errors += [
        f"{label} does not spill any more: take it out of SPILLS_ALLOWED"
        for label in allowed
        if label not in spilling
    ]
    return errors


def compile_errors(compiled: list[Compiled]) -> list[str]:
    """One error a file, with what nvcc said for the first target that failed."""
    failed: dict[str, list[Compiled]] = {}
    for one in compiled:
        if not one.succeeded:
            failed.setdefault(one.file, []).append(one)
    return [
        f"{file} does not compile for {', '.join(one.target for one in ones)}; "
        f"{ones[0].target}:\n{ones[0].output.strip()}"
        for file, ones in failed.items()
    ]


def missing_kernel_errors(compiled: list[Compiled], usages: list[Usage]) -> list[str]:
    """Architectures without any kernel: then ptxas was not understood, and nothing was checked."""
    seen = {usage.architecture for usage in usages if usage.kernel}
    wanted = dict.fromkeys(one.target for one in compiled if one.target.startswith("sm_"))
    return [f"no kernel was found for {target}" for target in wanted if target not in seen]


def most(usages: list[Usage], quantity: str) -> str:
    """The largest value over architectures, and where it occurs unless all are the same."""
    values = {usage.architecture: getattr(usage, quantity) for usage in usages}
    largest = max(values, key=lambda architecture: values[architecture])
    same = len(set(values.values())) == 1
    return f"{values[largest]}" if same else f"{values[largest]} ({largest})"


def show(usages: list[Usage]) -> None:
    quantities = ["registers", "shared", "stack", "local", "spill_stores", "spill_loads"]
    table = Table(title="The most over all architectures, and where (bytes but for registers)")
    table.add_column("kernel")
    for quantity in quantities:
        table.add_column(quantity.replace("_", " "), justify="right")
    by_label: dict[str, list[Usage]] = {}
    for usage in usages:
        by_label.setdefault(usage.label, []).append(usage)
    for label, ones in sorted(by_label.items()):
        note = "" if ones[0].kernel else " (a function)"
        table.add_row(label + note, *(most(ones, quantity) for quantity in quantities))
    # A log has no width of its own, and nothing should be cut there.
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def check_kernels() -> tuple[int, list[str]]:
    """The number of kernels, and what is wrong with them."""
    compiled = compile_all(sources())
    usages = read_all(compiled)
    path = FOLDER / "kernels.json"
    path.write_text(json.dumps([asdict(usage) for usage in usages], indent=1), encoding="utf-8")
    show(usages)
    errors = compile_errors(compiled)
    if not errors:
        errors = missing_kernel_errors(compiled, usages) + spill_errors(usages, SPILLS_ALLOWED)
    return len({usage.label for usage in usages if usage.kernel}), errors


def main() -> int:
    try:
        kernels, errors = check_kernels()
    except CheckError as stopped:
        kernels, errors = 0, [str(stopped)]
    for error in errors:
        print(f"error: {error}")
    sys.stdout.flush()  # pytest writes to the same place
    tests = subprocess.run([sys.executable, "-m", "pytest", "-q", "tests/cuda_emulator"], cwd=ROOT)
    failures = [f"the kernels ({len(errors)} errors above)"] if errors else []
    if tests.returncode:
        failures.append("the emulator's tests")
    if failures:
        print(f"cuda-check: FAILED: {' and '.join(failures)}")
        return 1
    print(f"cuda-check: passed: {kernels} kernels, no unlisted spill, and the emulator's tests")
    return 0


if __name__ == "__main__":
    sys.exit(main())
