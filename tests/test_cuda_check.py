"""build_support/cuda_check.py understands ptxas, and passes no spill that nobody listed."""

import dataclasses
import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "build_support"))
import cuda_check

# nvcc 13.0 -Xptxas=-v: a kernel that spills; one with an array in local memory, and its function
PTXAS = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_ZN7fedkern36_GLOBAL__N__f299b238_4_t_cu_7a0d654a6spillsIfEEvPT_i' for 'sm_80'
ptxas info    : Function properties for _ZN7fedkern36_GLOBAL__N__f299b238_4_t_cu_7a0d654a6spillsIfEEvPT_i
    880 bytes stack frame, 980 bytes spill stores, 1584 bytes spill loads
ptxas info    : Used 32 registers, used 1 barriers, 880 bytes cumulative stack size, 364 bytes cmem[0]
ptxas info    : Compile time = 43.181 ms
ptxas info    : Compiling entry function '_ZN7fedkern36_GLOBAL__N__f299b238_4_t_cu_7a0d654a5localEPfi' for 'sm_80'
ptxas info    : Function properties for _ZN7fedkern36_GLOBAL__N__f299b238_4_t_cu_7a0d654a5localEPfi
    256 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 62 registers, used 1 barriers, 256 bytes cumulative stack size, 128 bytes smem, 364 bytes cmem[0]
ptxas info    : Compile time = 12.293 ms
ptxas info    : Function properties for _ZN34_INTERNAL_f299b238_4_t_cu_7a0d654a7fedkern36_GLOBAL__N__f299b238_4_t_cu_7a0d654a6helperEPfi
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
"""  # noqa: E501

SPILLS = cuda_check.Usage(
    "spills<float>",
    kernel=True,
    registers=32,
    stack=880,
    local=880,
    spill_stores=980,
    spill_loads=1584,
    file="t.cu",
    architecture="sm_80",
)
CLEAN = dataclasses.replace(SPILLS, spill_stores=0, spill_loads=0, architecture="sm_90")


@pytest.mark.skipif(not shutil.which("c++filt"), reason="c++filt makes names readable")
def test_ptxas_is_understood() -> None:
    compiled = cuda_check.Compiled("t.cu", "sm_80", True, PTXAS)
    spills, local, helper = cuda_check.read_all([compiled])
    assert spills == SPILLS
    assert (local.function, local.kernel, local.registers) == ("local", True, 62)
    assert (local.shared, local.stack, local.local) == (128, 256, 256)
    assert not local.spills
    assert (helper.function, helper.kernel) == ("helper", False)


@pytest.mark.parametrize(
    ("demangled", "short"),
    [
        ("fedkern::(anonymous namespace)::count(long const*, long)", "count"),
        ("void fedkern::run<__half>(fedkern::Arguments<__half>)", "run<__half>"),
        ("void f::run<float, (f::Reduction)1, 4>(float (*)(int))", "run<float, (Reduction)1, 4>"),
        ("float fedkern::sum<f::P<float, int> >(f::P<float, int>)", "sum<P<float, int> >"),
    ],
)
def test_short_names(demangled: str, short: str) -> None:
    assert cuda_check.short_name(demangled) == short


def test_a_spill_must_be_listed() -> None:
    (error,) = cuda_check.spill_errors([SPILLS, CLEAN], {})
    assert error == "t.cu: spills<float> spills registers on sm_80"
    assert cuda_check.spill_errors([SPILLS, CLEAN], {"t.cu: spills<float>": "why"}) == []


def test_a_listed_kernel_must_spill() -> None:
    (error,) = cuda_check.spill_errors([CLEAN], {"t.cu: spills<float>": "why"})
    assert error.startswith("t.cu: spills<float> does not spill any more")


def test_an_architecture_without_kernels_is_an_error() -> None:
    compiled = [cuda_check.Compiled("t.cu", t, True, "") for t in ("sm_80", "sm_90", "compute_90")]
    assert cuda_check.missing_kernel_errors(compiled, [SPILLS]) == ["no kernel was found for sm_90"]


def test_compile_errors_name_the_file_once() -> None:
    compiled = [cuda_check.Compiled("t.cu", t, t == "sm_75", f"no {t}") for t in ("sm_75", "sm_80")]
    assert cuda_check.compile_errors(compiled) == [
        "t.cu does not compile for sm_80; sm_80:\nno sm_80"
    ]


def test_the_table_names_the_worst_architecture() -> None:
    more = dataclasses.replace(CLEAN, registers=40)
    assert cuda_check.most([SPILLS, more], "registers") == "40 (sm_90)"
    assert cuda_check.most([SPILLS, more], "stack") == "880"


def test_commands_lose_their_architectures_and_output() -> None:
    entry = {
        "file": "/r/k.cu",
        "directory": "/r/build",
        "command": "nvcc -O3 --generate-code=arch=compute_80,code=[sm_80] -c /r/k.cu -o k.o",
    }
    assert cuda_check.read_command(entry).command == ["nvcc", "-O3", "-c", "/r/k.cu"]


def test_code_for_every_architecture_and_ptx_of_the_newest() -> None:
    assert cuda_check.code_generation([75, 120]) == {
        "sm_75": "arch=compute_75,code=sm_75",
        "sm_120": "arch=compute_120,code=sm_120",
        "compute_120": "arch=compute_120,code=compute_120",
    }
