"""Federated-learning methods: one file each, all run by the same loop (`fedkern.fl.simulate`)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields
from typing import Any

from ..errors import ConfigError, unknown_name
from .base import Method, Update
from .fedavg import FedAvg
from .fedga import FedGA

__all__ = ["METHODS", "FedAvg", "FedGA", "Method", "Update", "build_method", "check_options"]

# Dataclasses that are a `Method`; their fields are the method's options on the command line.
METHODS: dict[str, type[Any]] = {"fedavg": FedAvg, "fedga": FedGA}


def build_method(name: str, **options: Any) -> Method:
    """The method called `name`, with those `options` that it has and that are not None.

    Raises:
        ConfigError: an unknown name, or an option's value that the method refuses.
    """
    if name not in METHODS:
        raise unknown_name("method", name, METHODS)
    own = _option_names(name)
    given = {key: value for key, value in options.items() if key in own and value is not None}
    method: Method = METHODS[name](**given)
    return method


def check_options(names: Iterable[str], **options: Any) -> None:
    """Refuses an option that is given (not None) though none of the named methods has it."""
    chosen = list(names)
    own = set[str]().union(*map(_option_names, chosen))
    for key, value in options.items():
        if value is not None and key not in own:
            takers = " or ".join(name for name in METHODS if key in _option_names(name))
            raise ConfigError(f"{key}: wanted only with {takers}, got it with {', '.join(chosen)}")


def _option_names(name: str) -> set[str]:
    return {field.name for field in fields(METHODS[name])}
