"""Federated-learning methods: one file each, all run by the same loop (`fedkern.fl.simulate`)."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any, get_type_hints

from ..errors import ConfigError, unknown_name
from ..losses import LOSSES
from .base import Method, Update
from .ditto import Ditto
from .fedavg import FedAvg
from .fedga import FedGA
from .floco import Floco
from .floco_plus import FlocoPlus

__all__ = [
    "METHODS",
    "Ditto",
    "FedAvg",
    "FedGA",
    "Floco",
    "FlocoPlus",
    "Method",
    "Update",
    "build_method",
    "build_methods",
    "describe",
]

# Dataclasses that are a `Method`; their fields are options on the command line.
METHODS: dict[str, type[Any]] = {
    "fedavg": FedAvg,
    "fedga": FedGA,
    "floco": Floco,
    "floco+": FlocoPlus,
    "ditto": Ditto,
}


def build_method(name: str, **options: Any) -> Method:
    """The method called `name`, with those `options` that it or its loss has and are not None.

    Args:
        name: from `METHODS`.
        options: fields of the method or of its loss, and ``loss``, a name from `LOSSES`.

    Raises:
        ConfigError: an unknown name, or an option's value that is refused.
    """
    owner, loss_type = _types(name, options)
    given = {key: value for key, value in options.items() if value is not None}
    loss = loss_type(**{key: given[key] for key in _options(loss_type) if key in given})
    own = {key: given[key] for key in _options(owner) if key in given}
    method: Method = owner(loss=loss, **own)
    return method


def build_methods(texts: Iterable[str], **options: Any) -> dict[str, Method]:
    """Methods by what they are called in reports.

    Args:
        texts: names, each perhaps with options of its own: ``"floco --loss calibrated_ce"``.
        options: of all of them; one that is not None must suit at least one.

    Raises:
        ConfigError: as `build_method`; the same text twice; an option that no method has.
    """
    methods: dict[str, Method] = {}
    used: set[str] = set()
    for text in texts:
        name, own = _parse(text)
        title = " ".join(shlex.split(text))
        if title in methods:
            raise ConfigError(f"methods: wanted each method once, got {title!r} again")
        chosen = {**options, **own}
        methods[title] = build_method(name, **chosen)
        known = {"loss"}.union(*map(_options, _types(name, chosen)))
        _check_known(own, known, name)
        used |= known
    _check_known(options, used, ", ".join(methods))
    return methods


def describe(method: Method) -> dict[str, Any]:
    """A method's options and its loss's, for a file."""
    options = {key: value for key, value in vars(method).items() if key != "loss"}
    loss = vars(method)["loss"]
    name = next(name for name, kind in LOSSES.items() if type(loss) is kind)
    return {**options, "loss": name, **vars(loss)}


def _types(name: str, options: Mapping[str, Any]) -> tuple[type[Any], type[Any]]:
    """The classes of the method and of its loss."""
    if name not in METHODS:
        raise unknown_name("method", name, METHODS)
    owner = METHODS[name]
    loss = options.get("loss")
    if loss is None:
        return owner, type(owner().loss)
    if loss not in LOSSES:
        raise unknown_name("loss", loss, LOSSES)
    return owner, LOSSES[loss]


def _options(owner: type[Any]) -> set[str]:
    return {field.name for field in fields(owner)} - {"loss"}


def _parse(text: str) -> tuple[str, dict[str, Any]]:
    """A method's name and the options behind it, converted to their types."""
    try:
        name, *words = shlex.split(text)
    except ValueError as error:
        raise ConfigError(f"method: wanted a name and options, got {text!r}") from error
    kinds: dict[str, Any] = {"loss": str}
    for owner in (*METHODS.values(), *LOSSES.values()):
        hints = get_type_hints(owner)
        kinds |= {key: hints[key] for key in _options(owner)}
    words = [part for word in words for part in word.split("=", 1)]
    options: dict[str, Any] = {}
    for flag, value in zip(words[::2], [*words[1::2], None], strict=False):
        key = flag.removeprefix("--").replace("-", "_")
        if not flag.startswith("--") or key not in kinds or value is None:
            raise ConfigError(
                f"method: wanted a name and options of methods (--option value), got {text!r}"
            )
        try:
            options[key] = kinds[key](value)
        except ValueError as error:
            kind = kinds[key].__name__
            raise ConfigError(f"{key}: wanted {kind}, got {value!r} in {text!r}") from error
    return name, options


def _check_known(options: Mapping[str, Any], known: set[str], chosen: str) -> None:
    """Refuses an option that is given (not None) though it is not among the known ones."""
    for key, value in options.items():
        if value is not None and key not in known:
            takers = [n for n, kind in METHODS.items() if key in _options(kind)]
            takers += [f"--loss {n}" for n, kind in LOSSES.items() if key in _options(kind)]
            raise ConfigError(
                f"{key}: wanted only with {' or '.join(takers)}, got it with {chosen}"
            )
