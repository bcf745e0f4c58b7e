"""The clients of flower_round.py: a module of its own, which Ray's workers import by its name."""

from functools import cache
from time import perf_counter

import task
import torch
import torch.nn.functional as F
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import nn

from fedkern import fl
from fedkern.fl.flat import FlatModel
from fedkern.fl.training import Job, LocalWork, Trainer
from fedkern.integrations.flower import register

SECONDS = "seconds"  # in a reply's metrics: of the training alone


# ---- of Flower's FedAvg --------------------------------------------------------------------------

app = ClientApp()


@cache
def workers_model() -> nn.Module:
    """One for all messages: to build one for each would cost time."""
    return task.new_model()


@cache
def workers_trainer() -> Trainer:
    """fedkern's, with a model of its own."""
    return Trainer(FlatModel(task.new_model()), task.dataset(), task.CONFIG)


@app.train()
def train(message: Message, context: Context) -> Message:
    settings = message.content["config"]
    torch.set_num_threads(settings["threads"])
    by_fedkern = settings["training"] == "fedkern"
    model = workers_trainer().model.module if by_fedkern else workers_model()
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    client = task.clients()[message.content["client"]["number"]]
    draws = fl.Draws(task.CONFIG.seed, settings["server-round"], client.number)
    started = perf_counter()
    (fedkerns_training if by_fedkern else plain_training)(model, client, draws)
    metrics = {"clients": 1, SECONDS: perf_counter() - started}  # its weight in the mean
    answer = {"arrays": ArrayRecord(model.state_dict()), "metrics": MetricRecord(metrics)}
    return Message(content=RecordDict(answer), reply_to=message)


def fedkerns_training(model: nn.Module, client: fl.Client, draws: fl.Draws) -> None:
    """As long as with fedkern's strategy: what is left of a round can be compared."""
    trainer = workers_trainer()
    start = trainer.model.state.copy()
    trainer.train(Job(client, LocalWork(fl.CrossEntropy()), start, draws), start.values)


def plain_training(model: nn.Module, client: fl.Client, draws: fl.Draws) -> None:
    """Plain PyTorch, on the batches that fedkern takes.

    They are slices of the client's data, copied in a new order. With a DataLoader, which collects
    each sample by itself, the training takes a fourth longer.
    """
    config = task.CONFIG
    optimizer = torch.optim.SGD(model.parameters(), lr=config.lr)
    shuffling = draws("batches")
    for _ in range(config.local_epochs):
        inputs, targets = task.shuffled(client, shuffling)
        batches = zip(
            inputs.split(config.batch_size), targets.split(config.batch_size), strict=True
        )
        for batch, labels in batches:
            optimizer.zero_grad()
            F.cross_entropy(model(batch), labels).backward()
            nn.utils.clip_grad_norm_(model.parameters(), config.clip)
            optimizer.step()


# ---- of fedkern's strategy -----------------------------------------------------------------------

fedkern_app, _inner = ClientApp(), ClientApp()
_trained: list[float] = []  # seconds


@fedkern_app.query("join")
def join(message: Message, context: Context) -> Message:
    return _inner(message, context)


@fedkern_app.train()
def train_and_measure(message: Message, context: Context) -> Message:
    """The same, and how long the training itself has taken."""
    torch.set_num_threads(message.content["config"]["threads"])
    Trainer.train = _timed  # in this process, which is Ray's
    _trained.clear()
    reply = _inner(message, context)
    reply.content["metrics"][SECONDS] = sum(_trained)
    return reply


def _timed(trainer: Trainer, *arguments: object, train: object = Trainer.train) -> object:
    started = perf_counter()
    trained = train(trainer, *arguments)
    _trained.append(perf_counter() - started)
    return trained


def own_client(context: Context) -> fl.Client:
    return task.clients()[int(context.node_config["partition-id"])]


def new_model(context: Context) -> nn.Module:
    return task.new_model()


register(_inner, new_model, own_client)
