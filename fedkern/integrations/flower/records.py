"""What messages hold, and how it is written and read.

A message to a client, and its reply, have at most one record of each kind, as Flower's mods
(clipping, noise) want it:

    arrays   the model's parameters and buffers by name; of the reply to a question, the answer
    config   what the strategy's user sends along; by names that begin with "fedkern." the round,
             the method, the settings of local training, and what the server keeps with this
             client; of a reply, what the client says of itself
    metrics  of a reply: figures
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
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
ANSWER = "answer"  # the array of a reply to a question
_STYPE = Array(np.zeros(0)).stype  # of arrays that NumPy has written

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


def model_to_record(
    model: FlatModel, state: State, names: Iterable[str] | None = None
) -> ArrayRecord:
    """A state by the names of the model's parameters and buffers, in the order of `names`."""
    parts = model.named(state)
    return ArrayRecord({name: parts[name] for name in names or parts})


class StateReader:
    """Reads the states that arrays are, of a model's parameters and buffers.

    All go to the same memory: a state is valid until the next one is read.
    """

    def __init__(self, model: FlatModel) -> None:
        self._state = model.state.copy()
        self._parts = model.named(self._state)
        self._types = {name: _numpy_type(part) for name, part in self._parts.items()}
        self._headers = {name: _header(part) for name, part in self._parts.items()}

    def __call__(self, record: ArrayRecord) -> State:
        """The state.

        Raises:
            ConfigError: other names, shapes or types, or no arrays; it says which.
        """
        if different := self._parts.keys() ^ record.keys():
            name = min(different)
            got = "which was not there" if name in self._parts else "which was there, too"
            raise ConfigError(
                f"{ARRAYS}: wanted the model's names, got a difference: {name}, {got}"
            )
        for name, own in self._parts.items():
            array, header = record[name], self._headers[name]
            whole = len(header) + own.numel() * own.element_size()
            if array.stype == _STYPE and len(array.data) == whole and array.data.startswith(header):
                numbers = np.frombuffer(array.data, self._types[name], offset=len(header))
                _fill(own, numbers.reshape(own.shape))
            else:  # not as we write it
                own.copy_(tensor_from_array(name, array, own))
        return self._state


def _header(part: Tensor) -> bytes:
    """What NumPy writes before the numbers of an array like a tensor."""
    stream = BytesIO()
    kind = np.lib.format.dtype_to_descr(_numpy_type(part))
    shape = {"descr": kind, "fortran_order": False, "shape": (*part.shape,)}
    np.lib.format.write_array_header_1_0(stream, shape)
    return stream.getvalue()


def _numpy_type(part: Tensor) -> np.dtype[Any]:
    return torch.empty(0, dtype=part.dtype).numpy().dtype


def _fill(own: Tensor, array: np.ndarray[Any, Any]) -> None:
    if own.is_cpu:
        own.numpy()[...] = array
    else:
        own.copy_(torch.from_numpy(array.copy()))


def tensor_from_array(name: str, array: Array, like: Tensor) -> Tensor:
    """An array as a tensor on the CPU, of the shape and type of another one.

    Raises:
        ConfigError: it is not like that, or damaged.
    """
    wanted = f"{name} of {like.dtype}, shape {(*like.shape,)}"
    if (*array.shape,) != (*like.shape,):  # before its numbers are given memory
        raise ConfigError(f"{ARRAYS}: wanted {wanted}, got shape {(*array.shape,)}")
    try:
        tensor = torch.from_numpy(array.numpy())
    except Exception as error:  # whatever comes of bytes that we did not write
        reason = str(error).partition("\n")[0]
        raise ConfigError(
            f"{ARRAYS}: wanted {wanted}, as NumPy writes it, got: {reason}"
        ) from error
    if tensor.dtype != like.dtype or tensor.shape != like.shape:
        got = f"{tensor.dtype}, shape {(*tensor.shape,)}"
        raise ConfigError(f"{ARRAYS}: wanted {wanted}, got {got}")
    return tensor


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


def train_reply(content: RecordDict, read: StateReader) -> TrainReply:
    """Reads a reply.

    Raises:
        ConfigError: it is not as it should be.
        FloatingPointError: it has nan or infinity.
    """
    metrics = _record(content, METRICS, MetricRecord)
    loss = torch.tensor(_number(metrics, "train-loss"))
    state = read(_record(content, ARRAYS, ArrayRecord))
    about = _record(content, CONFIG, ConfigRecord)
    return TrainReply(
        check_finite(Trained(state, loss)),
        _count(metrics, "num-examples", least=1),
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
    return tensor_from_array(ANSWER, arrays[ANSWER], like).to(like.device)


def introduction(content: RecordDict, clients: int) -> tuple[int, int, int]:
    """Reads which of so many clients a node is, and how many training and test samples it has.

    Raises:
        ConfigError: it is not said, or it is none of them.
    """
    about = _record(content, CONFIG, ConfigRecord)
    number = _count(about, "number", most=clients - 1)
    return number, _count(about, "samples"), _count(about, "test-samples")


def figures(content: RecordDict) -> dict[str, float]:
    """Reads figures of an evaluation, among them "num-examples".

    Raises:
        ConfigError: they are none.
        FloatingPointError: one is nan or infinite.
    """
    metrics = _record(content, METRICS, MetricRecord)
    _count(metrics, "num-examples", least=1)
    found = {key: _number(metrics, key) for key in metrics}
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


def _number(record: Mapping[str, Any], key: str) -> float:
    value = record.get(key)
    if not isinstance(value, int | float):
        raise ConfigError(f"{key}: wanted a number, got {value!r}")
    return float(value)


def _count(record: Mapping[str, Any], key: str, least: int = 0, most: int = 2**40) -> int:
    """An integer; sums of what is no larger are exact."""
    value = record.get(key)
    if not isinstance(value, int) or not least <= value <= most:
        raise ConfigError(f"{key}: wanted an integer from {least} to {most}, got {value!r}")
    return value


def _names(record: Mapping[str, Any], key: str) -> list[str]:
    value = record.get(key)
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise ConfigError(f"{key}: wanted a list of names, got {value!r}")
    return value


# ---- jobs ----------------------------------------------------------------------------------------

ROUND, METHOD, TRAINING, STATE = (
    "fedkern.round",
    "fedkern.method",
    "fedkern.training",
    "fedkern.state.",
)


def state_config(state: Mapping[str, Any]) -> dict[str, Any]:
    """What `Client.state` holds, numbers, text and tensors, as part of a config."""
    return {
        STATE + key: _bytes_of(value) if isinstance(value, Tensor) else value
        for key, value in state.items()
    }


def state_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """The reverse."""
    return {
        key.removeprefix(STATE): _tensor_of(value) if isinstance(value, bytes) else value
        for key, value in config.items()
        if key.startswith(STATE)
    }


def _bytes_of(tensor: Tensor) -> bytes:
    stream = BytesIO()
    np.save(stream, tensor.cpu().numpy(), allow_pickle=False)
    return stream.getvalue()


def _tensor_of(content: bytes) -> Tensor:
    return torch.from_numpy(np.load(BytesIO(content), allow_pickle=False))


def method_config(method: Method) -> str:
    """A method's name and options; empty if fedkern has it not: clients are given it."""
    for name, kind in METHODS.items():
        if type(method) is kind:
            options = describe(method)
            if build_method(name, **options) == method:
                return json.dumps({"name": name, **options})
    return ""


def method_of(text: str) -> Method:
    """The reverse.

    Raises:
        ConfigError: it names none, or one that another version of fedkern has.
    """
    if not text:
        raise ConfigError(
            "method: wanted the strategy's own one given to `register`, for fedkern has it not"
        )
    return build_method(**json.loads(text))


def training_config(config: RunConfig) -> str:
    """What a client must know of the settings."""
    return json.dumps({name: getattr(config, name) for name in _OF_TRAINING})


def training_of(text: str) -> RunConfig:
    """The reverse: settings, of which those that are not a client's are the defaults.

    Raises:
        ConfigError: one that this version of fedkern does not have or take.
    """
    settings: dict[str, Any] = json.loads(text)
    if different := {*_OF_TRAINING} ^ settings.keys():
        raise ConfigError(
            f"training: wanted the settings {', '.join(_OF_TRAINING)}, got a difference in "
            f"{', '.join(sorted(different))}: server and client have different versions of fedkern"
        )
    return replace(RunConfig(), **settings)


# ---- what clients keep ---------------------------------------------------------------------------


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
