"""Federated learning on tensors in memory: data, partitions, local training, methods, the loop.

A run in a few lines::

    from fedkern import fl

    config = fl.RunConfig.for_dataset("digits")
    dataset = fl.load_dataset("digits")
    clients = fl.make_clients(dataset, fl.make_partition(dataset, config))
    model = fl.build_model("auto", dataset, fl.generator(config.seed, "model"))
    for round in fl.simulate(fl.FedGA(), model, clients, config):
        print(round.number, round.train_loss, round.evaluation)

The command line (`fedkern run`, `fedkern compare`) does this, with files and plots.
"""

from .aggregation import AGGREGATIONS, ClippedMean, Mean, Median, TrimmedMean
from .augment import AUGMENTATIONS, draw_windows, through_windows
from .checkpoint import Checkpoint, Checkpoints, read_checkpoint
from .client import Client, make_clients
from .config import RunConfig
from .data import DATASETS, Dataset, load_dataset
from .errors import ConfigError, NonFiniteModelError, RunError
from .evaluation import (
    Evaluation,
    LocalEvaluation,
    error_asymmetry,
    evaluate,
    measure,
    measure_local,
    predict,
)
from .failures import CAUSES, Failure
from .losses import LOSSES, BalancedSoftmaxLoss, CalibratedCE, CrossEntropy, FedLCLoss
from .methods import (
    METHODS,
    BalancedSoftmax,
    Climb,
    Ditto,
    FedAvg,
    FedGA,
    FedLC,
    FedNTD,
    FedPer,
    FedProx,
    FedRL,
    FedRoD,
    Floco,
    FlocoPlus,
    Method,
    Update,
    build_method,
    build_methods,
)
from .model_store import ModelStore
from .models import MLP, MODELS, FlocoCNN, LeNet, ResNet20, build_model
from .partition import (
    PARTITIONS,
    Partition,
    dirichlet,
    dirichlet_by_class,
    fold,
    iid,
    local_test_indices,
    make_partition,
    natural,
    shards,
)
from .ranks import Ranks, joined_ranks
from .reading import Reader, scaled
from .rounds import Round, sample_clients
from .seeding import Draws, generator
from .server import Server
from .server_optimizers import (
    SERVER_OPTIMIZERS,
    ServerAdam,
    ServerAverage,
    ServerMomentum,
    ServerYogi,
)
from .simulation import simulate
from .snapshot import Snapshot

__all__ = [
    "AGGREGATIONS",
    "AUGMENTATIONS",
    "CAUSES",
    "DATASETS",
    "LOSSES",
    "METHODS",
    "MLP",
    "MODELS",
    "PARTITIONS",
    "SERVER_OPTIMIZERS",
    "BalancedSoftmax",
    "BalancedSoftmaxLoss",
    "CalibratedCE",
    "Checkpoint",
    "Checkpoints",
    "Client",
    "Climb",
    "ClippedMean",
    "ConfigError",
    "CrossEntropy",
    "Dataset",
    "Ditto",
    "Draws",
    "Evaluation",
    "Failure",
    "FedAvg",
    "FedGA",
    "FedLC",
    "FedLCLoss",
    "FedNTD",
    "FedPer",
    "FedProx",
    "FedRL",
    "FedRoD",
    "Floco",
    "FlocoCNN",
    "FlocoPlus",
    "LeNet",
    "LocalEvaluation",
    "Mean",
    "Median",
    "Method",
    "ModelStore",
    "NonFiniteModelError",
    "Partition",
    "Ranks",
    "Reader",
    "ResNet20",
    "Round",
    "RunConfig",
    "RunError",
    "Server",
    "ServerAdam",
    "ServerAverage",
    "ServerMomentum",
    "ServerYogi",
    "Snapshot",
    "TrimmedMean",
    "Update",
    "build_method",
    "build_methods",
    "build_model",
    "dirichlet",
    "dirichlet_by_class",
    "draw_windows",
    "error_asymmetry",
    "evaluate",
    "fold",
    "generator",
    "iid",
    "joined_ranks",
    "load_dataset",
    "local_test_indices",
    "make_clients",
    "make_partition",
    "measure",
    "measure_local",
    "natural",
    "predict",
    "read_checkpoint",
    "sample_clients",
    "scaled",
    "shards",
    "simulate",
    "through_windows",
]
