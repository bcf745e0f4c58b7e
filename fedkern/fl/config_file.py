"""Settings in a TOML file: what a run is started with, and what it writes to be repeated.

A file is flat. Its keys are the options of `fedkern run` and `compare`, with underscores::

    methods = ["fedavg", "floco --loss calibrated_ce"]  # or method = "fedga"
    seeds = 3
    clip = inf
    server_optimizer = "adam"
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import Field
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_type_hints

import tomli_w

from .config import RunConfig
from .errors import ConfigError, nearest_name
from .files import write_whole
from .methods import METHODS, PARTS, settings_of

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_WANTED = {
    int: "an integer",
    float: "a number",
    str: "a string",
    bool: "true or false",
    list: "a list of strings",
}


def setting_fields() -> dict[str, tuple[Field[Any], type[Any]]]:
    """Every `setting` of run, methods and parts by name: its field and type.

    Of those that share a name, the first one.
    """
    parts = [kind for kinds in PARTS.values() for kind in kinds.values()]
    owners: list[Any] = [RunConfig, *METHODS.values(), *parts]
    found: dict[str, tuple[Field[Any], type[Any]]] = {}
    for owner in owners:
        hints = get_type_hints(owner)
        for field in settings_of(owner):
            hint = hints[field.name]
            kinds = [kind for kind in get_args(hint) or (hint,) if kind is not NoneType]
            found.setdefault(field.name, (field, kinds[0]))
    return found


def key_types() -> dict[str, type[Any]]:
    """Every key that a file may have, and the type of its value."""
    types: dict[str, type[Any]] = {"method": str, "methods": list, "seeds": int}
    types |= {name: kind for name, (_, kind) in setting_fields().items()}
    return {**types, **dict.fromkeys(PARTS, str), "out": str, "overwrite": bool}


def read(path: Path) -> dict[str, Any]:
    """The settings that a file gives, by key; the methods are always a list, ``"methods"``.

    Raises:
        ConfigError: no TOML file; an unknown key; a value of another type than its option's.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"config: wanted a TOML file, got {path}: {reason}") from error
    types = key_types()
    for key in values:
        if key not in types:
            hint = nearest_name(key, types)
            raise ConfigError(f"config: wanted options as keys, got {key!r} in {path}{hint}")
    settings = {key: _checked(key, value, types[key], path) for key, value in values.items()}
    if "method" in settings:
        if "methods" in settings:
            raise ConfigError(f"method: wanted this or methods, got both in {path}")
        settings["methods"] = [settings.pop("method")]
    return settings


def write(settings: Mapping[str, Any], path: Path) -> None:
    """Writes a file that gives these settings, None for those that are not given."""
    given = {key: settings[key] for key in key_types() if settings.get(key) is not None}
    text = f"# fedkern run --config {path.name}\n{tomli_w.dumps(given)}"
    write_whole(path, text.encode(errors="surrogateescape"))  # paths may be any bytes


def merge(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Settings put over each other: the last one that is not None wins."""
    return {key: value for layer in layers for key, value in layer.items() if value is not None}


def _checked(key: str, value: Any, kind: type[Any], path: Path) -> Any:
    """The value of a key, if it is of its type; integers are numbers, too."""
    if kind is float and type(value) is int and abs(value) <= sys.float_info.max:
        return float(value)
    if not _is(value, kind):
        got = "a table" if isinstance(value, dict) else repr(value)
        raise ConfigError(f"{key}: wanted {_WANTED[kind]}, got {got} in {path}")
    return value


def _is(value: Any, kind: type[Any]) -> bool:
    """Whether a value is of a type itself, not of a derived one: true is no integer."""
    if type(value) is list:
        return kind is list and all(_is(item, str) for item in value)
    return type(value) is kind and not (kind is str and "\0" in value)  # no path has a NUL
