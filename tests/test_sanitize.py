"""build_support/sanitize.py runs the tests of what is compiled, and trusts no silence."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "build_support"))
import sanitize
from operators import OPERATORS

TESTS = Path(__file__).parent


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a build would be; without sanitizers, which need one."""
    monkeypatch.setattr(sanitize, "FOLDER", tmp_path)
    monkeypatch.setattr(sanitize, "SITE", tmp_path / "site")
    monkeypatch.setattr(sanitize, "REPORTS", tmp_path / "reports")
    monkeypatch.setattr(sanitize, "environment", lambda _: dict(os.environ))
    (tmp_path / "_C.so").write_bytes(b"")
    (tmp_path / "libplanted_faults.so").write_bytes(b"")
    sanitize.link_package()
    return tmp_path


def test_the_package_is_ours_but_for_the_module(folder: Path) -> None:
    linked = {path.name: path.resolve() for path in (folder / "site" / "fedkern").iterdir()}
    assert linked["_C.so"] == folder / "_C.so"
    assert linked["__init__.py"] == sanitize.ROOT / "fedkern" / "__init__.py"
    assert [name for name in linked if name.endswith(".so")] == ["_C.so"]


def test_the_ordinary_module_is_refused(folder: Path) -> None:
    done = sanitize.python("-c", sanitize._IMPORT_ORDINARY, str(sanitize.ROOT), capture_output=True)
    assert done.returncode != 0
    assert f"wanted the sanitized fedkern._C in {folder / 'site'}, got" in done.stderr


def test_a_planted_fault_that_is_not_reported_stops_it(folder: Path) -> None:
    with pytest.raises(sanitize.CheckError, match="did not report heap_buffer_overflow"):
        sanitize.check_guards()


@pytest.mark.parametrize(
    ("status", "found", "expected"),
    [(0, [], 0), (1, [], 1), (0, ["==7==ERROR: AddressSanitizer"], 1)],
)
def test_a_failing_test_and_a_report_are_failures(
    monkeypatch: pytest.MonkeyPatch, status: int, found: list[str], expected: int
) -> None:
    for name in ("build", "link_package", "check_guards"):
        monkeypatch.setattr(sanitize, name, lambda: None)
    done = subprocess.CompletedProcess[str]([], status)
    monkeypatch.setattr(sanitize, "python", lambda *_: done)
    monkeypatch.setattr(sanitize, "reports", lambda: found)
    assert sanitize.main() == expected


def test_every_family_of_operators_is_tested() -> None:
    names = {file.name for file in sanitize.test_files()}
    assert {f"test_{operator.family}.py" for operator in OPERATORS.values()} <= names
    assert {"test_operator_contract.py", "test_chain.py", "test_reading.py"} <= names
    others = {f"test_{name}.py" for name in sanitize.OTHER_TESTS}
    assert others == {path.name for path in TESTS.glob("test_*.py")} - names
