"""What messages hold, and how it is written and read.

A message to a client, and its reply:

    arrays            the model's parameters and buffers by name; of a question the answer
    config            what the strategy's user sends along
    metrics           of a reply: figures
    fedkern           the job: round, client; of a reply: what the client knows of itself
    fedkern.method    name and options of the method
    fedkern.training  the settings of local training
    fedkern.state     what the server keeps with this client

There is one record of arrays in each, as Flower's mods (clipping, noise) want it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import replace
from io import BytesIO
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from torch import Tensor

from fedkern.fl.config import RunConfig
from fedkern.fl.errors import ConfigError
from fedkern.fl.failures import check_finite
from fedkern.fl.flat import FlatModel, State
from fedkern.fl.methods import METHODS, Method, build_method, describe
from fedkern.fl.training import Trained

T = TypeVar("T")

ARRAYS, METRICS, CONFIG = "arrays", "metrics", "config"  # as in Flower's own strategies
JOB, METHOD, TRAINING, STATE = "fedkern", "fedkern.method", "fedkern.training", "fedkern.state"
ANSWER = "answer"  # the array of a reply to a question

# Kinds of messages: a category of Flower's, and an action of our own.
JOIN, TRAIN, STATISTICS, EVALUATE = "query.join", "train", "train.statistics", "evaluate"

# Settings of a run that a client goes by.
_OF_TRAINING = (
    "local_epochs",
    "batch_size",
    "lr",
    "momentum",
    "weight_decay",
    "clip",
    "buffers",
    "augment",
    "seed",
    "layers",
    "compile",
)


# ---- models --------------------------------------------------------------------------------------


def model_to_record(model: FlatModel, state: State) -> ArrayRecord:
    """A state by the names of the model's parameters and buffers."""
    return ArrayRecord(model.named(state))


def model_from_record(model: FlatModel, record: ArrayRecord) -> State:
    """The state that arrays are, on the model's device.

    Raises:
        ConfigError: they are another model's, or no arrays.
    """
    expected = model.named(model.state)
    tensors = {}
    for name, array in record.items():
        own = expected.get(name, torch.empty(0))
        tensors[name] = tensor_from_array(name, array, (*own.shape,))
    return model.from_named(tensors)


def tensor_from_array(name: str, array: Array, shape: tuple[int, ...]) -> Tensor:
    """An array of a shape, on the CPU.

    Raises:
        ConfigError: it has another one, or is damaged.
    """
    if (*array.shape,) != shape:  # before its numbers are given memory
        raise ConfigError(f"{ARRAYS}: wanted {name} of shape {shape}, got {(*array.shape,)}")
    try:
        return torch.from_numpy(array.numpy())
    except Exception as error:  # whatever comes of bytes that we did not write
        reason = str(error).partition("\n")[0]
        raise ConfigError(f"{ARRAYS}: wanted {name} as NumPy writes it, got: {reason}") from error


# ---- replies -------------------------------------------------------------------------------------


class TrainReply(NamedTuple):
    """What a client sends after its training.

    Attributes:
        trained: its model, all finite, and its training loss.
        samples: it was trained on.
        had, has: the names of the models that it had kept before, and has now.
    """

    trained: Trained
    samples: int
    had: list[str]
    has: list[str]


def train_reply(content: RecordDict, model: FlatModel) -> TrainReply:
    """Reads a reply.

    Raises:
        ConfigError: it is not as it should be.
        FloatingPointError: it has nan or infinity.
    """
    metrics = _record(content, METRICS, MetricRecord)
    loss = torch.tensor(_number(metrics, "train-loss", float))
    state = model_from_record(model, _record(content, ARRAYS, ArrayRecord))
    about = _record(content, JOB, ConfigRecord)
    return TrainReply(
        check_finite(Trained(state, loss)),
        _number(metrics, "num-examples", int, least=1),
        *(_names(about, key) for key in ("had", "has")),
    )


def answer(content: RecordDict, like: Tensor) -> Tensor:
    """Reads an answer to a question, which is to be like a tensor.

    Raises:
        ConfigError: it is not.
    """
    arrays = _record(content, ARRAYS, ArrayRecord)
    if [*arrays] != [ANSWER]:
        raise ConfigError(f"{ARRAYS}: wanted {ANSWER} alone, got {', '.join(arrays) or 'none'}")
    tensor = tensor_from_array(ANSWER, arrays[ANSWER], (*like.shape,))
    if tensor.dtype != like.dtype:
        raise ConfigError(f"{ARRAYS}: wanted {ANSWER} of {like.dtype}, got {tensor.dtype}")
    return tensor.to(like.device)


def introduction(content: RecordDict) -> tuple[int, int, int]:
    """Reads which client a node is, and how many training and test samples it has.

    Raises:
        ConfigError: it is not said.
    """
    about = _record(content, JOB, ConfigRecord)
    number, samples, test_samples = (
        _number(about, key, int, least=0) for key in ("number", "samples", "test-samples")
    )
    return number, samples, test_samples


def figures(content: RecordDict) -> dict[str, float]:
    """Reads figures of an evaluation, among them "num-examples".

    Raises:
        ConfigError: they are none.
        FloatingPointError: one is nan or infinite.
    """
    metrics = _record(content, METRICS, MetricRecord)
    _number(metrics, "num-examples", int, least=1)
    found = {key: float(_number(metrics, key, (int, float))) for key in metrics}
    for key, value in found.items():
        if not math.isfinite(value):
            raise FloatingPointError(f"{METRICS}: wanted a finite {key}, got {value}")
    return found


def _record(content: RecordDict, key: str, kind: type[T]) -> T:
    record = content.get(key)
    if not isinstance(record, kind):
        raise ConfigError(
            f"reply: wanted {key}, a {kind.__name__}, got {', '.join(content) or 'nothing'}"
        )
    return record


def _number(record: Mapping[str, Any], key: str, kind: Any, least: int | None = None) -> Any:
    value = record.get(key)
    wanted = "an integer" if kind is int else "a number"
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ConfigError(f"{key}: wanted {wanted}, got {value!r}")
    if least is not None and value < least:
        raise ConfigError(f"{key}: wanted {wanted} >= {least}, got {value}")
    return value


def _names(record: Mapping[str, Any], key: str) -> list[str]:
    value = record.get(key)
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise ConfigError(f"{key}: wanted a list of names, got {value!r}")
    return value


# ---- what clients keep ---------------------------------------------------------------------------


def state_to_record(state: Mapping[str, Any]) -> ConfigRecord:
    """What `Client.state` holds: numbers, text and tensors."""
    return ConfigRecord(
        {key: _bytes_of(v) if isinstance(v, Tensor) else v for key, v in state.items()}
    )


def state_from_record(record: ConfigRecord) -> dict[str, Any]:
    """The reverse."""
    return {key: _tensor_of(v) if isinstance(v, bytes) else v for key, v in record.items()}


def _bytes_of(tensor: Tensor) -> bytes:
    stream = BytesIO()
    np.save(stream, tensor.cpu().numpy(), allow_pickle=False)
    return stream.getvalue()


def _tensor_of(content: bytes) -> Tensor:
    return torch.from_numpy(np.load(BytesIO(content), allow_pickle=False))


class ContextModels(MutableMapping[str, State]):
    """A client's models (`fedkern.fl.Client.models`) in what Flower keeps for it between messages.

    It lasts as long as the run, and as the SuperNode.
    """

    def __init__(self, state: RecordDict) -> None:
        self._state = state

    def __getitem__(self, name: str) -> State:
        record = self._state[_key(name)]
        assert isinstance(record, ArrayRecord)
        values, *buffers = (torch.from_numpy(array.numpy()) for array in record.values())
        return State(values, buffers)

    def __setitem__(self, name: str, state: State) -> None:
        tensors = [state.values, *state.buffers]
        self._state[_key(name)] = ArrayRecord({str(i): t for i, t in enumerate(tensors)})

    def __delitem__(self, name: str) -> None:
        del self._state[_key(name)]

    def __iter__(self) -> Iterator[str]:
        return (key.removeprefix(_key("")) for key in self._state if key.startswith(_key("")))

    def __len__(self) -> int:
        return sum(1 for _ in self)


def _key(name: str) -> str:
    return f"fedkern.models.{name}"


# ---- settings ------------------------------------------------------------------------------------


def method_to_record(method: Method) -> ConfigRecord:
    """A method's name and options; empty if it is none that fedkern has: clients are given it."""
    for name, kind in METHODS.items():
        if type(method) is kind:
            options = describe(method)
            if build_method(name, **options) == method:
                return ConfigRecord({"name": name, **options})
    return ConfigRecord()


def method_from_record(record: ConfigRecord) -> Method:
    """The reverse.

    Raises:
        ConfigError: it names none, or one that another version of fedkern has.
    """
    options: dict[str, Any] = dict(record)
    name = options.pop("name", None)
    if name is None:
        raise ConfigError(
            "method: wanted the strategy's own one given to `register`, for fedkern has it not"
        )
    return build_method(name, **options)


def training_to_record(config: RunConfig) -> ConfigRecord:
    """What a client must know of the settings."""
    return ConfigRecord({name: getattr(config, name) for name in _OF_TRAINING})


def training_from_record(record: ConfigRecord) -> RunConfig:
    """The reverse: settings, of which those that are not a client's are the defaults.

    Raises:
        ConfigError: one that this version of fedkern does not have or take.
    """
    if missing := {*_OF_TRAINING} ^ {*record}:
        raise ConfigError(
            f"training: wanted the settings {', '.join(_OF_TRAINING)}, got a difference in "
            f"{', '.join(sorted(missing))}: server and client have different versions of fedkern"
        )
    settings: dict[str, Any] = dict(record)
    return replace(RunConfig(), **settings)
