"""Federated learning on tensors in memory: data, partitions, local training, methods, the loop.

A run in a few lines::

    from fedkern import fl

    config = fl.RunConfig.for_dataset("digits")
    dataset = fl.load_dataset("digits")
    partition = fl.dirichlet(dataset.y_train, config.clients, config.alpha, config.seed)
    model = fl.build_model("auto", dataset, fl.generator(config.seed, "model"))
    for round in fl.simulate(fl.FedGA(), model, dataset, partition, config):
        print(round.number, round.train_loss, round.evaluation)

The command line (`fedkern run`, `fedkern compare`) does this, with files and plots.
"""

from .config import RunConfig
from .data import DATASETS, Dataset, load_dataset
from .errors import ConfigError, NonFiniteModelError
from .evaluation import Evaluation, error_asymmetry, evaluate
from .methods import METHODS, FedAvg, FedGA, Method, Update, build_method
from .models import MLP, MODELS, LeNet, build_model
from .partition import PARTITIONS, Partition, dirichlet, iid, make_partition
from .seeding import generator
from .simulation import Round, sample_clients, simulate
from .training import Client, local_sgd

__all__ = [
    "DATASETS",
    "METHODS",
    "MLP",
    "MODELS",
    "PARTITIONS",
    "Client",
    "ConfigError",
    "Dataset",
    "Evaluation",
    "FedAvg",
    "FedGA",
    "LeNet",
    "Method",
    "NonFiniteModelError",
    "Partition",
    "Round",
    "RunConfig",
    "Update",
    "build_method",
    "build_model",
    "dirichlet",
    "error_asymmetry",
    "evaluate",
    "generator",
    "iid",
    "load_dataset",
    "local_sgd",
    "make_partition",
    "sample_clients",
    "simulate",
]
