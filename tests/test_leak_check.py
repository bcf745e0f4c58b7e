"""build_support/leak_check.py sees what a call leaves behind, if it is 16 bytes."""

import ctypes
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "build_support"))
import leak_check
from operators import OPERATORS

C = ctypes.CDLL(None)
C.malloc.argtypes, C.malloc.restype = [ctypes.c_size_t], ctypes.c_void_p
C.free.argtypes, C.free.restype = [ctypes.c_void_p], None


def measure(call: leak_check.Call) -> leak_check.Row:
    return leak_check.measure("planted", "forward", call)


def test_sixteen_bytes_a_call_are_a_leak() -> None:
    row = measure(lambda: C.malloc(16))
    assert row.growth.heap >= 16 * leak_check.CALLS
    assert row.leaks


def test_an_object_a_call_is_a_leak() -> None:
    kept: list[object] = []
    row = measure(lambda: kept.append(object()))
    assert row.growth.blocks >= leak_check.CALLS
    assert row.leaks


def test_what_is_given_back_is_none() -> None:
    assert not measure(lambda: C.free(C.malloc(16))).leaks


def test_a_leak_fails_the_check(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = [("clean", "forward", int), ("leaky", "errors", lambda: C.malloc(16))]
    monkeypatch.setattr(leak_check, "everything", lambda: calls[:1])
    assert leak_check.main() == 0
    assert "passed: 1 times 100,000 calls" in capsys.readouterr().out
    monkeypatch.setattr(leak_check, "everything", lambda: calls)
    assert leak_check.main() == 1
    assert "FAILED: memory grows in leaky (errors)" in capsys.readouterr().out


def test_every_operator_is_called_in_every_way() -> None:
    every = list(leak_check.everything())
    for name, operator in OPERATORS.items():
        ways = {way for called, way, _ in every if called == name}
        has_derivatives = not isinstance(operator.differentiable, str)
        assert ways == {"forward", "errors"} | ({"derivatives"} if has_derivatives else set())
    for *_, call in every:
        call()


def test_an_error_that_does_not_come_is_one() -> None:
    good = OPERATORS["class_counts"].samples(torch.int64)[0]
    with pytest.raises(AssertionError, match="class_counts took"):
        leak_check.refused(OPERATORS["class_counts"], ValueError, good)()
