"""The errors of fedkern.fl that a user can cause and mend."""

from __future__ import annotations

import math
from collections.abc import Iterable
from difflib import get_close_matches


class ConfigError(ValueError):
    """A setting or a data set that cannot be used.

    The message is one line: the argument's name, what was wanted and what came.
    """


class RunError(RuntimeError):
    """What ends a run that was well set up; the rounds before it stand."""


class NonFiniteModelError(RunError):
    """The global model holds nan or infinity after an aggregation."""


def check_not_negative(name: str, value: float) -> None:
    """Refuses what is not a finite number >= 0."""
    if not (value >= 0 and math.isfinite(value)):
        raise ConfigError(f"{name}: wanted a finite number >= 0, got {value}")


def check_positive(name: str, value: float) -> None:
    """Refuses what is not a finite number > 0."""
    if not (value > 0 and math.isfinite(value)):
        raise ConfigError(f"{name}: wanted a finite number > 0, got {value}")


def unknown_name(argument: str, name: str, known: Iterable[str]) -> ConfigError:
    """The error for a `name` that is not among the `known` ones; it suggests the nearest."""
    names = sorted(known)
    hint = nearest_name(name, names)
    return ConfigError(f"{argument}: wanted one of {', '.join(names)}, got {name!r}{hint}")


def nearest_name(name: str, known: Iterable[str]) -> str:
    """The end of such a message: which of the `known` names may be meant; empty if none is near."""
    nearest = get_close_matches(name.lower(), known, n=1, cutoff=0.5)
    return f" (did you mean {nearest[0]!r}?)" if nearest else ""
