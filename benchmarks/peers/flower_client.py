"""The client of flower_round.py: a module of its own, which Ray's workers import by its name."""

from functools import cache

import task
import torch
import torch.nn.functional as F
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import nn

from fedkern import fl

app = ClientApp()


@cache
def workers_model() -> nn.Module:
    """One for all messages: to build one for each would cost time."""
    return task.new_model()


@app.train()
def train(message: Message, context: Context) -> Message:
    settings = message.content["config"]
    torch.set_num_threads(settings["threads"])
    model = workers_model()
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    client = task.clients()[message.content["client"]["number"]]
    draws = fl.Draws(task.CONFIG.seed, settings["server-round"], client.number)
    local_training(model, client, draws)
    answer = {
        "arrays": ArrayRecord(model.state_dict()),
        "metrics": MetricRecord({"clients": 1}),  # its weight in the mean
    }
    return Message(content=RecordDict(answer), reply_to=message)


def local_training(model: nn.Module, client: fl.Client, draws: fl.Draws) -> None:
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
