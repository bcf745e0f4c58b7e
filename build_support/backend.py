"""PEP 517 build backend: scikit-build-core's, which asks for torch only where none is installed.

A plain `requires = ["torch"]` would download gigabytes into pip's build environment and compile
against another torch than the one that is going to import the extension.
"""

import torch_probe
from scikit_build_core.setuptools import build_meta
from scikit_build_core.setuptools.build_meta import *  # noqa: F403

Settings = dict[str, "str | list[str]"]


def _torch_if_missing() -> list[str]:
    return [] if torch_probe.find() else ["torch>=2.11"]


def get_requires_for_build_wheel(  # type: ignore[no-redef]
    config_settings: Settings | None = None,
) -> list[str]:
    return build_meta.get_requires_for_build_wheel(config_settings) + _torch_if_missing()


def get_requires_for_build_editable(  # type: ignore[no-redef]
    config_settings: Settings | None = None,
) -> list[str]:
    return build_meta.get_requires_for_build_editable(config_settings) + _torch_if_missing()
