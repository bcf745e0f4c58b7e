"""Fetches the wheels that a GPU machine without network needs for `make gpu-check`.

`make gpu-wheels` runs it where fedkern is installed and there is a network. What is needed is read
from pyproject.toml and from fedkern's own metadata; torch and what it brings must be there already.
"""

import argparse
import importlib
import re
import subprocess
import sys
import tempfile
import zipfile
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).parent.parent

# What the benchmarks compare with where it is installed.
COMPETITORS = ["liger-kernel"]

# Comes with torch, in the version that torch wants.
WITH_TORCH = ["torch", "triton"]


def declared_requirements() -> list[str]:
    """What pyproject.toml names for the build and for the tests."""
    tomllib = importlib.import_module("tomllib")  # Python 3.11
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    build: list[str] = project["build-system"]["requires"]
    tests: list[str] = project["project"]["optional-dependencies"]["test"]
    return list(dict.fromkeys([*build, *tests]))


def without(requirements: list[str], names: list[str]) -> list[str]:
    """The requirements of other distributions than these."""
    return [r for r in requirements if re.split(r"[^\w.-]", r)[0].lower() not in names]


def stand_in(name: str, folder: Path) -> str:
    """Write an empty wheel, which pip takes for the installed `name`; its exact version."""
    version = metadata.version(name).partition("+")[0] + "+stand.in"
    stem = f"{name.replace('-', '_')}-{version}"
    with zipfile.ZipFile(folder / f"{stem}-py3-none-any.whl", "w") as wheel:
        info = f"{stem}.dist-info"
        wheel.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        )
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")
    return f"{name}=={version}"


def download(out: Path, python: str, platforms: list[str], skip: list[str]) -> None:
    needed = [*declared_requirements(), *(metadata.requires("fedkern") or []), *COMPETITORS]
    left_out = [*WITH_TORCH, *skip]
    with tempfile.TemporaryDirectory() as scratch:
        # pip resolves with these in the place of what is left out: nothing of it is downloaded.
        stand_ins = [stand_in(name, Path(scratch)) for name in left_out if installed(name)]
        constraints = Path(scratch) / "constraints.txt"
        constraints.write_text("\n".join(stand_ins), encoding="utf-8")
        subprocess.run(
            [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet"]
            + ["--only-binary=:all:", "--implementation=cp", f"--python-version={python}"]
            + [f"--platform={platform}" for platform in platforms]
            + [f"--find-links={scratch}", f"--constraint={constraints}", f"--dest={out}"]
            + without(needed, left_out),
            check=True,
        )
    for wheel in out.glob("*+stand.in-*.whl"):
        wheel.unlink()


def installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="the folder to fill")
    parser.add_argument("--python", required=True, help="version of the GPU machine's Python")
    parser.add_argument("--platform", nargs="+", required=True, help="wheel tags it can use")
    parser.add_argument("--skip", nargs="*", default=[], help="packages it has anyhow")
    options = parser.parse_args()

    options.out.mkdir(parents=True, exist_ok=True)
    for wheel in options.out.glob("*.whl"):
        wheel.unlink()  # of two versions pip might take the wrong one
    try:
        download(options.out, options.python, options.platform, options.skip)
    except subprocess.CalledProcessError:
        return 1  # pip has said why
    wheels = sorted(options.out.glob("*.whl"))
    megabytes = sum(wheel.stat().st_size for wheel in wheels) / 1e6
    for wheel in wheels:
        print(wheel.name)
    print(f"gpu-wheels: {len(wheels)} wheels, {megabytes:.1f} MB, in {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
