"""The settings of a run, their defaults for each data set, and their validation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from .augment import parse_augment
from .data import DATASETS
from .errors import ConfigError, check_not_negative, check_positive, unknown_name
from .models import MODELS
from .partition import PARTITIONS

ENGINES = ("serial", "vmap", "auto")
LAYERS = ("fast", "plain")
BUFFERS = ("aggregate", "local", "frozen")


def setting(default: Any, help: str) -> Any:
    """A dataclass field that is a command-line option too, with this `help`."""
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class RunConfig:
    """Everything that determines a run, except the method. The defaults are those of digits.

    `RunConfig.for_dataset` gives the defaults of another data set. All values are checked.

    Raises:
        ConfigError: one line that names the setting, what was wanted and what came.
    """

    dataset: str = setting("digits", f"{', '.join(DATASETS)} or a path of an .npz file")
    model: str = setting("auto", ", ".join(MODELS))
    partition: str = setting("dirichlet", f"how the clients' data differ: {', '.join(PARTITIONS)}")
    alpha: float = setting(0.1, "Dirichlet concentration; smaller is more skewed")
    least_samples: int = setting(10, "dirichlet-by-class: of each client")
    folds: int = setting(5, "fold: groups of clients, each with classes of its own")
    fold_share: float = setting(0.8, "fold: part of a client's samples from its group's classes")
    shards: int = setting(2, "shards: of each client, from samples sorted by class")
    clients: int = setting(20, "number of clients; all but digits: 100")
    clients_per_round: int = setting(5, "clients sampled each round; femnist: 30, others: 10")
    min_clients: int = setting(
        1, "of a round, that have not failed; the run stops with fewer, and with 0 never"
    )
    fail_rate: float = setting(0.0, "part of a round's clients that are made to fail, at random")
    rounds: int = setting(50, "rounds; mnist, fashion-mnist: 100, femnist: 500, others: 200")
    local_epochs: int = setting(2, "epochs of each client in a round; femnist: 5")
    batch_size: int = setting(32, "samples a local step; femnist: 50, others: 64")
    lr: float = setting(0.1, "learning rate of local SGD")
    momentum: float = setting(0.0, "momentum of local SGD; starts anew every round")
    weight_decay: float = setting(0.0, "weight decay of local SGD")
    clip: float = setting(5.0, "largest norm of a local gradient; inf for no clipping")
    buffers: str = setting(
        "aggregate",
        "batch norm's statistics: aggregate; local, each client trains and tests with its own; "
        "frozen, as they are in the initial model",
    )
    normalize: bool = setting(False, "inputs to mean 0 and deviation 1 by channel or feature")
    augment: str = setting("", "of training images: crop, flip or crop,flip; none by default")
    eval_every: int = setting(1, "rounds from one evaluation to the next; the last has one too")
    checkpoint_every: int = setting(
        10, "rounds from one checkpoint to the next; the last has one too; 0 for no checkpoints"
    )
    target_accuracy: float = setting(0.85, "accuracy whose first round is reported")
    seed: int = setting(0, "seed of everything random: partition, model, sampling, batches")
    threads: int = setting(1, "CPU threads of each worker; part of what determines the bits")
    workers: int | None = setting(None, "clients trained side by side; as the CPU has room for")
    engine: str = setting(
        "serial", "serial; vmap, a round's clients as one batch; auto, what is faster in round 1"
    )
    layers: str = setting("fast", f"implementations of layers: {', '.join(LAYERS)}")
    compile: bool = setting(False, "torch.compile the serial engine's models")
    device: str = setting("auto", "auto (cuda where there is one), cpu, cuda or cuda:N")
    data_root: str | None = setting(None, "folder of the data sets; else FEDKERN_DATA")
    download: bool = setting(False, "download a missing data set")

    @classmethod
    def for_dataset(cls, dataset: str = "digits", **given: Any) -> RunConfig:
        """The published settings of a data set, with those `given` that are not None put over."""
        chosen = {key: value for key, value in given.items() if value is not None}
        return cls(dataset=dataset, **{**_DEFAULTS.get(dataset, {}), **chosen})

    def __post_init__(self) -> None:
        if self.model not in MODELS:
            raise unknown_name("model", self.model, MODELS)
        if self.partition not in PARTITIONS:
            raise unknown_name("partition", self.partition, PARTITIONS)
        for name in _COUNTS:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name}: wanted an integer >= 1, got {value}")
        if self.buffers not in BUFFERS:
            raise unknown_name("buffers", self.buffers, BUFFERS)
        if self.engine not in ENGINES:
            raise unknown_name("engine", self.engine, ENGINES)
        if self.layers not in LAYERS:
            raise unknown_name("layers", self.layers, LAYERS)
        if self.compile and self.engine == "vmap":
            raise ConfigError("compile: wanted engine serial or auto, got vmap")
        for name in ("least_samples", "checkpoint_every", "min_clients"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name}: wanted an integer >= 0, got {getattr(self, name)}")
        for name in ("fold_share", "target_accuracy"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name}: wanted a number in [0, 1], got {getattr(self, name)}")
        if not 0 <= self.fail_rate < 1:
            raise ConfigError(f"fail_rate: wanted a number in [0, 1), got {self.fail_rate}")
        for name in ("alpha", "lr"):
            check_positive(name, getattr(self, name))
        for name in ("momentum", "weight_decay"):
            check_not_negative(name, getattr(self, name))
        if not self.clip > 0:
            raise ConfigError(f"clip: wanted a number > 0 (inf for no clipping), got {self.clip}")
        if self.clients_per_round > self.clients:
            raise ConfigError(
                f"clients_per_round: wanted at most clients = {self.clients}, "
                f"got {self.clients_per_round}"
            )
        if self.min_clients > self.clients_per_round:
            raise ConfigError(
                f"min_clients: wanted at most clients_per_round = {self.clients_per_round}, "
                f"got {self.min_clients}"
            )
        parse_augment(self.augment)
        self.torch_device()

    @property
    def augmentations(self) -> tuple[str, ...]:
        """The kinds that `augment` names."""
        return parse_augment(self.augment)

    def evaluates_after(self, number: int) -> bool:
        """Whether an evaluation is due after round `number`, counted from 1."""
        return number % self.eval_every == 0 or number == self.rounds

    def torch_device(self) -> torch.device:
        """The device that `device` names."""
        if self.device == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        wanted = "device: wanted auto, cpu, cuda or cuda:N"
        try:
            device = torch.device(self.device)
        except RuntimeError as error:
            raise ConfigError(f"{wanted}, got {self.device!r}") from error
        if device.type not in ("cpu", "cuda"):
            raise ConfigError(f"{wanted}, got {self.device!r}")
        if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
            raise ConfigError(
                f"{wanted}, got {self.device!r}, but PyTorch sees "
                f"{torch.cuda.device_count()} CUDA devices"
            )
        return device


_COUNTS = (
    "clients",
    "clients_per_round",
    "rounds",
    "local_epochs",
    "batch_size",
    "eval_every",
    "threads",
    "workers",
    "folds",
    "shards",
)

_FEDGA = {"clients": 100, "clients_per_round": 10, "batch_size": 64}  # arXiv 2412.16582
_FLOCO = {  # arXiv 2403.03333
    "clients": 100,
    "clients_per_round": 30,
    "batch_size": 50,
    "local_epochs": 5,
    "rounds": 500,
    "lr": 0.02,
    "momentum": 0.5,
    "weight_decay": 5e-4,
}
_DEFAULTS: dict[str, dict[str, Any]] = {  # those of digits are RunConfig's own
    "mnist": {**_FEDGA, "rounds": 100},
    "fashion-mnist": {**_FEDGA, "rounds": 100},
    "cifar10": {**_FEDGA, "rounds": 200},
    "cifar100": {**_FEDGA, "rounds": 200, "model": "resnet20"},
    "svhn": {**_FEDGA, "rounds": 200},
    "tiny-imagenet": {**_FEDGA, "rounds": 200, "model": "resnet20"},
    "femnist": {**_FLOCO, "model": "cnn", "partition": "natural"},
}
