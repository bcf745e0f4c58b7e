"""What server and clients have in common: settings, model, and who has which data."""

from functools import cache

from flwr.app import UserConfig
from torch import nn

from fedkern import fl


def settings(config: UserConfig) -> fl.RunConfig:
    """The settings of a run, from those of [tool.flwr.app.config]."""
    return fl.RunConfig.for_dataset(
        str(config["dataset"]),
        rounds=config["rounds"],
        clients=config["clients"],
        clients_per_round=config["clients-per-round"],
        alpha=config["alpha"],
        seed=config["seed"],
        eval_every=config["eval-every"],
    )


@cache  # for nodes that share a process, as in a simulation
def dataset(name: str) -> fl.Dataset:
    return fl.load_dataset(name)


@cache
def clients(config: fl.RunConfig) -> list[fl.Client]:
    """All clients. Here they share out a public data set; a real one would read its own."""
    data = dataset(config.dataset)
    return fl.make_clients(data, fl.make_partition(data, config))


def new_model(config: fl.RunConfig) -> nn.Module:
    return fl.build_model(config.model, dataset(config.dataset), fl.generator(config.seed, "model"))
