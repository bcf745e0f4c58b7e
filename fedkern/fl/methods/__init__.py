"""Federated-learning methods: one file each, all run by the same loop (`fedkern.fl.simulate`)."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import Field, fields
from typing import Any, get_type_hints

from ..aggregation import AGGREGATIONS
from ..errors import ConfigError, unknown_name
from ..losses import LOSSES
from ..server_optimizers import SERVER_OPTIMIZERS
from .balanced_softmax import BalancedSoftmax
from .base import Method, Shared, Update
from .climb import Climb
from .ditto import Ditto
from .fedavg import FedAvg
from .fedga import FedGA
from .fedlc import FedLC
from .fedntd import FedNTD
from .fedper import FedPer
from .fedprox import FedProx
from .fedrl import FedRL
from .fedrod import FedRoD
from .floco import Floco
from .floco_plus import FlocoPlus

__all__ = [
    "METHODS",
    "PARTS",
    "BalancedSoftmax",
    "Climb",
    "Ditto",
    "FedAvg",
    "FedGA",
    "FedLC",
    "FedNTD",
    "FedPer",
    "FedProx",
    "FedRL",
    "FedRoD",
    "Floco",
    "FlocoPlus",
    "Method",
    "Shared",
    "Update",
    "build_method",
    "build_methods",
    "describe",
    "settings_of",
]

# Dataclasses that are a `Method`; their fields are options on the command line.
METHODS: dict[str, type[Any]] = {
    "fedavg": FedAvg,
    "fedga": FedGA,
    "floco": Floco,
    "floco+": FlocoPlus,
    "ditto": Ditto,
    "fedprox": FedProx,
    "climb": Climb,
    "fedntd": FedNTD,
    "fedrl": FedRL,
    "fedper": FedPer,
    "fedrod": FedRoD,
    "balanced_softmax": BalancedSoftmax,
    "fedlc": FedLC,
}

# Fields of every method that are chosen by name and have options of their own.
PARTS: dict[str, dict[str, type[Any]]] = {
    "loss": LOSSES,
    "aggregation": AGGREGATIONS,
    "server_optimizer": SERVER_OPTIMIZERS,
}


def build_method(name: str, **options: Any) -> Method:
    """The method called `name`, with those `options` that it or its parts have and are not None.

    Args:
        name: from `METHODS`.
        options: fields of the method and of its parts; ``loss``, a name from `LOSSES`;
            ``aggregation``, one from `AGGREGATIONS`; ``server_optimizer``, one from
            `SERVER_OPTIMIZERS`.

    Raises:
        ConfigError: an unknown name, or an option's value that is refused.
    """
    owner, parts = _types(name, options)
    given = {key: value for key, value in options.items() if value is not None}

    def built(kind: type[Any], **more: Any) -> Any:
        own = {key: given[key] for key in _option_names(kind) if key in given}
        return kind(**own, **more)

    method: Method = built(owner, **{part: built(kind) for part, kind in parts.items()})
    return method


def build_methods(texts: Iterable[str], **options: Any) -> dict[str, Method]:
    """Methods by what they are called in reports.

    Args:
        texts: names, each perhaps with options of its own: ``"floco --loss calibrated_ce"``.
        options: of all of them; one that is not None must suit at least one.

    Raises:
        ConfigError: as `build_method`; the same text twice; an option that no method has.
    """
    compat = options.get("compat")
    faulty = {name for kind in METHODS.values() for name in kind.faults}
    if compat and compat not in faulty:
        raise unknown_name("compat", compat, faulty)
    methods: dict[str, Method] = {}
    used: set[str] = set()
    for text in texts:
        name, own = _parse(text)
        title = " ".join(shlex.split(text))
        if title in methods:
            raise ConfigError(f"methods: wanted each method once, got {title!r} again")
        shared = {key: value for key, value in options.items() if _suits(key, value, name)}
        chosen = {**shared, **own}
        methods[title] = build_method(name, **chosen)
        owner, parts = _types(name, chosen)
        known = {*parts}.union(*map(_option_names, (owner, *parts.values())))
        _check_known(own, known, name)
        used |= {key for key in known if _suits(key, options.get(key), name)}
    if not methods:
        raise ConfigError("methods: wanted at least one, got none")
    _check_known(options, used, ", ".join(methods))
    return methods


def describe(method: Method) -> dict[str, Any]:
    """A method's options and those of its parts, for a file."""
    options = {key: value for key, value in vars(method).items() if key not in PARTS}
    for part, kinds in PARTS.items():
        chosen = vars(method)[part]
        options[part] = next(name for name, kind in kinds.items() if type(chosen) is kind)
        options |= vars(chosen)
    return options


def settings_of(owner: type[Any]) -> Iterator[Field[Any]]:
    """The fields of a method or of a part that are options."""
    return (field for field in fields(owner) if "help" in field.metadata)


def _option_names(owner: type[Any]) -> set[str]:
    return {field.name for field in settings_of(owner)}


def _types(name: str, options: Mapping[str, Any]) -> tuple[type[Any], dict[str, type[Any]]]:
    """The classes of the method and of its parts."""
    if name not in METHODS:
        raise unknown_name("method", name, METHODS)
    owner, parts = METHODS[name], {}
    for part, kinds in PARTS.items():
        chosen = options.get(part)
        if chosen is None:
            parts[part] = type(getattr(owner(), part))
        elif chosen in kinds:
            parts[part] = kinds[chosen]
        else:
            raise unknown_name(part, chosen, kinds)
    return owner, parts


def _owners() -> dict[str, type[Any]]:
    """Who has options, and how each is chosen."""
    owners = dict(METHODS)
    for part, kinds in PARTS.items():
        flag = part.replace("_", "-")
        owners |= {f"--{flag} {name}": kind for name, kind in kinds.items()}
    return owners


def _suits(key: str, value: Any, name: str) -> bool:
    """Whether an option of all methods is for this one: faults are not published of all."""
    if key != "compat" or not value or name not in METHODS:
        return True
    return value in METHODS[name].faults


def _parse(text: str) -> tuple[str, dict[str, Any]]:
    """A method's name and the options behind it, converted to their types."""
    try:
        name, *words = shlex.split(text)
    except ValueError as error:
        raise ConfigError(f"method: wanted a name and options, got {text!r}") from error
    kinds: dict[str, Any] = dict.fromkeys(PARTS, str)
    for owner in _owners().values():
        hints = get_type_hints(owner)
        kinds |= {field.name: hints[field.name] for field in settings_of(owner)}
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
            owners = _owners()
            if key == "compat":
                takers = [name for name, kind in METHODS.items() if value in kind.faults]
            else:
                takers = [name for name, kind in owners.items() if key in _option_names(kind)]
            raise ConfigError(
                f"{key}: wanted only with {' or '.join(takers)}, got it with {chosen}"
            )
