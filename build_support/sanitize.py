"""Runs the tests of what is compiled under AddressSanitizer and UndefinedBehaviorSanitizer.

`make sanitize` runs it; no GPU is needed: the CUDA kernels run in the emulator, sanitized as well.
fedkern._C is built into build/sanitize, with a package of links to fedkern's Python files: the
ordinary build stays as it is. What the sanitizers find, each process writes to a file of its own in
build/sanitize/reports, forked workers, too, whatever becomes of their exit status and output.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from configured import ROOT, CheckError, configure

FOLDER = ROOT / "build" / "sanitize"
SITE = FOLDER / "site"
REPORTS = FOLDER / "reports"

# Of training, what has compiled parts of its own; of the rest, all but what runs no compiled code.
TRAINING_TESTS = ("test_chain.py", "test_linear.py", "test_reading.py")
OTHER_TESTS = ("build", "cli", "cuda_check", "examples", "gpu_check", "leak_check", "sanitize")

# The functions of tests/planted_faults.cpp.
PLANTED = (
    "heap_buffer_overflow",
    "heap_use_after_free",
    "signed_integer_overflow",
    "float_cast_overflow",
)
# In a worker whose end nobody looks at.
_CALL_PLANTED = """
import ctypes, os, sys
planted = ctypes.CDLL(sys.argv[1])
if os.fork() == 0:
    planted[sys.argv[2]](16)
    os._exit(0)
os.wait()
"""
_IMPORT_ORDINARY = "import sys; sys.path.insert(0, sys.argv[1]); import fedkern"


# ---- what others run sanitized code with, too ---------------------------------------------------


def libraries() -> list[Path]:
    """The libraries that a process must start with to load what is sanitized, where they are."""
    paths = []
    for name in ("libasan.so", "libubsan.so"):
        command = ["g++", f"-print-file-name={name}"]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        paths.append(Path(done.stdout.strip()))
    return [path for path in paths if path.is_absolute()]


def environment(reports: Path | None = None) -> dict[str, str]:
    """For a process that is to load what is sanitized; its reports go to stderr or a folder."""
    log = f":log_path={reports / 'report'}" if reports else ""
    return {
        **os.environ,
        "LD_PRELOAD": " ".join(map(str, libraries())),
        # Python never frees some of its memory; torch's templates are in both its library and ours;
        # tests ask for more memory than there is. UBSan writes to stderr only: it aborts, for ASan
        # to report that, with the stack.
        "ASAN_OPTIONS": "detect_leaks=0:detect_odr_violation=0:allocator_may_return_null=1"
        f":handle_abort=2{log}",
        "UBSAN_OPTIONS": f"print_stacktrace=1:abort_on_error=1{log}",
    }


# ---- the build ----------------------------------------------------------------------------------


def build() -> None:
    if shutil.which("g++") is None or len(libraries()) < 2:
        raise CheckError("g++ with libasan and libubsan was not found")
    print(f"sanitize: building into {FOLDER} (minutes, the first time)", flush=True)
    cmake = configure(FOLDER, "off", "-DSANITIZE=ON", "-DCMAKE_CXX_COMPILER=g++")
    if subprocess.run([cmake, "--build", str(FOLDER)]).returncode:
        raise CheckError("the sanitized build failed")


def link_package() -> None:
    """A package of our Python files and the sanitized module, and the guard of its imports."""
    shutil.rmtree(SITE, ignore_errors=True)
    package = SITE / "fedkern"
    package.mkdir(parents=True)
    sources = [path for path in (ROOT / "fedkern").iterdir() if path.suffix != ".so"]
    for path in (*sources, *FOLDER.glob("_C*.so")):
        (package / path.name).symlink_to(path)
    (SITE / "sitecustomize.py").symlink_to(ROOT / "build_support" / "sanitized_import.py")


# ---- running ------------------------------------------------------------------------------------


def python(*arguments: str, capture_output: bool = False) -> "subprocess.CompletedProcess[str]":
    """Run this interpreter where fedkern is the sanitized one, in all processes it starts, too."""
    path = os.pathsep.join([str(SITE), os.environ.get("PYTHONPATH", "")])
    shutil.rmtree(REPORTS, ignore_errors=True)
    REPORTS.mkdir()
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=SITE,
        env={
            **environment(REPORTS),
            "PYTHONPATH": path,
            "FEDKERN_EMULATOR_SANITIZE": "1",
            "PYTEST_ADDOPTS": "--capture=sys",  # stderr is lost with a process that is ended
        },
        capture_output=capture_output,
        text=True,
    )


def reports() -> list[str]:
    return [path.read_text(errors="replace") for path in sorted(REPORTS.iterdir())]


def check_guards() -> None:
    """Whether a planted fault is reported, and the ordinary module refused."""
    (planted,) = FOLDER.glob("libplanted_faults*.so")
    for function in PLANTED:
        python("-c", _CALL_PLANTED, str(planted), function, capture_output=True)
        if not any(f"in {function} " in report for report in reports()):
            raise CheckError(f"the sanitizers did not report {function} of planted_faults.cpp")
    done = python("-c", _IMPORT_ORDINARY, str(ROOT), capture_output=True)
    if "wanted the sanitized fedkern._C" not in done.stderr:
        raise CheckError(f"the ordinary fedkern._C was not refused:\n{done.stderr.strip()}")


def test_files() -> list[Path]:
    others = [f"test_{name}.py" for name in OTHER_TESTS]
    files = [path for path in sorted((ROOT / "tests").glob("test_*.py")) if path.name not in others]
    return [*files, *(ROOT / "tests" / "fl" / name for name in TRAINING_TESTS)]


def main() -> int:
    try:
        build()
        link_package()
        check_guards()
    except CheckError as stopped:
        print(f"sanitize: FAILED: {stopped}")
        return 1
    files = [str(file) for file in test_files()]
    tests = python("-m", "pytest", "-q", "-p", "no:cacheprovider", *files)
    found = reports()
    for report in found:
        print(report)
    if tests.returncode or found:
        print(f"sanitize: FAILED: pytest's exit status {tests.returncode}, {len(found)} reports")
        return 1
    print(f"sanitize: passed: {len(PLANTED)} planted faults were reported, and none by the tests")
    return 0


if __name__ == "__main__":
    sys.exit(main())
