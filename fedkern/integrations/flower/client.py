"""The client's side: what a ClientApp does with the strategy's messages."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import Mod
from torch import Tensor, nn

from fedkern.fl.client import Client
from fedkern.fl.evaluation import cross_entropy, predict
from fedkern.fl.failures import check_finite
from fedkern.fl.flat import FlatModel, State
from fedkern.fl.heap import keep_freed_memory
from fedkern.fl.methods import Method
from fedkern.fl.own_models import kept_of, personal_logits, start_of
from fedkern.fl.seeding import Draws, generator
from fedkern.fl.training import Job, LocalWork, Trained, Trainer

from . import records
from .records import ARRAYS, CONFIG, METRICS


def register(
    app: ClientApp,
    new_model: Callable[[Context], nn.Module],
    own_client: Callable[[Context], Client],
    method: Method | None = None,
    mods: list[Mod] | None = None,
) -> None:
    """Lets an app answer all messages of `MethodStrategy`.

    Args:
        app: has no handlers of its own for `train` and `evaluate`.
        new_model: makes the model that the strategy was given; of its values only those that are
            not trained matter. It goes where the client's data are, and serves for all messages
            that come to a process.
        own_client: the client that the node is: its data, and the number by which the strategy
            knows it, whatever node it is on (``context.node_config["partition-id"]``, say). It is
            called for every message: what is slow, cache. Its state and models are not looked at:
            what it keeps lasts in the context.
        method: the strategy's, if it is not one of `fedkern.fl.METHODS`.
        mods: of the training, as of ``app.train``: Flower's for differential privacy, say. What a
            client answers to a question of the method's (Floco's statistics) does not go through.
    """
    node = _Node(new_model, own_client, method)
    app.query("join")(node.join)
    app.train(mods=mods)(node.train)
    app.train("statistics")(node.answer)
    app.evaluate()(node.evaluate)


class _Node:
    """A model, which serves for all messages that come to this process, and whose they are."""

    def __init__(
        self,
        new_model: Callable[[Context], nn.Module],
        own_client: Callable[[Context], Client],
        method: Method | None,
    ) -> None:
        self._new_model, self._own_client, self._given_method = new_model, own_client, method
        self._model: FlatModel | None = None
        self._prepared_by: Method | None = None

    def join(self, message: Message, context: Context) -> Message:
        """Who is there."""
        client = self._own_client(context)
        about = {"number": client.number, "samples": len(client)}
        about["test-samples"] = len(client.test_indices)
        return Message(RecordDict({CONFIG: ConfigRecord({**about})}), reply_to=message)

    def train(self, message: Message, context: Context) -> Message:
        """A round's training."""
        job = _Job(self, message, context)
        trained = job.train()
        content = RecordDict(
            {
                # Flower's mods want them in the order in which they came.
                ARRAYS: records.model_to_record(job.model, trained.state, message.content[ARRAYS]),
                METRICS: MetricRecord(
                    {
                        "num-examples": len(job.client),
                        "train-loss": trained.train_loss.item(),
                    }
                ),
                CONFIG: ConfigRecord({"had": job.had, "has": [*job.client.models]}),
            }
        )
        return Message(content, reply_to=message)

    def answer(self, message: Message, context: Context) -> Message:
        """The answer to the method's question."""
        answer = _Job(self, message, context).answer()
        content = RecordDict({ARRAYS: ArrayRecord({records.ANSWER: answer})})
        return Message(content, reply_to=message)

    def evaluate(self, message: Message, context: Context) -> Message:
        """The global model, and the client's own, on its local test data."""
        metrics = _Job(self, message, context).evaluate()
        return Message(RecordDict({METRICS: MetricRecord({**metrics})}), reply_to=message)

    def client(self, context: Context) -> Client:
        return self._own_client(context)

    def method(self, options: dict[str, Any]) -> Method:
        return self._given_method or records.method_of(options)

    def model(self, context: Context, method: Method, device: torch.device) -> FlatModel:
        """One that is the method's."""
        if self._model is None or self._prepared_by != method:
            keep_freed_memory()
            module = self._new_model(context).to(device)
            method.prepare(module, generator(0, "method"))  # values come with the message
            self._model, self._prepared_by = FlatModel(module), method
        return self._model


class _Job:
    """What a message asks of the client that the node is.

    Attributes:
        client: with what it has kept, and what the server keeps with it.
        model: of the method.
        had: the names of the models that it had kept when the message came.
    """

    def __init__(self, node: _Node, message: Message, context: Context) -> None:
        content = message.content
        config = cast(ConfigRecord, content[CONFIG])
        self._method = node.method(records.read_section("method", config))
        self._config = records.training_of(records.read_section("training", config))
        self._round = records.read_section("job", config)["round"]
        self.client = replace(
            node.client(context),
            state=records.read_section("state", config),
            models=records.ContextModels(context.state),
        )
        self.had = [*self.client.models]
        device = self.client.dataset.x_train.device
        self.model = node.model(context, self._method, device)
        self._shared = records.model_from_record(self.model, cast(ArrayRecord, content[ARRAYS]))

    def train(self) -> Trained:
        """Trains what the method says; returns what the server is to get."""
        trainer = self._trainer()
        for work in self._method.local_work(self.client):
            start = start_of(self.client, work, self._shared, None)
            trained = self._train(trainer, work, start)
            kept = kept_of(work, trained.state, self._config.buffers, None)
            self.client.models.update(kept)
        return trained  # the server's share comes last

    def answer(self) -> Tensor:
        """Trains a throw-away copy of the global model."""
        question = self._method.question
        assert question is not None  # else the server would not ask
        trained = self._train(self._trainer(), question.work, self._shared)
        layout = self.model.layout
        return question.answer(self.client, layout, self._shared.values, trained.state)

    def evaluate(self) -> dict[str, int | float]:
        """Accuracy and cross entropy; of the client's own model, too, if it may have one."""
        client, data = self.client, self.client.dataset
        self.model.load(self._shared)
        logits = predict(self.model.module, data.x_test, client.test_indices)
        targets = data.y_test[client.test_indices].cpu()
        metrics: dict[str, int | float] = {"num-examples": len(targets)}
        metrics |= _figures("", logits, targets)
        if self._method.personalises or self._config.buffers == "local":
            own = personal_logits(self._method, self.model, client, logits, None)
            metrics |= _figures("personal-", own, targets)
        return metrics

    def _trainer(self) -> Trainer:
        return Trainer(self.model, self.client.dataset, self._config)

    def _train(self, trainer: Trainer, work: LocalWork, start: State) -> Trained:
        draws = Draws(self._config.seed, self._round, self.client.number, work.purpose)
        job = Job(self.client, work, start, draws)
        return check_finite(trainer.train(job, self._shared.values))


def _figures(prefix: str, logits: Tensor, targets: Tensor) -> dict[str, float]:
    correct = (logits.argmax(1) == targets).double().mean()
    return {
        f"{prefix}accuracy": correct.item(),
        f"{prefix}loss": cross_entropy(logits, targets).item(),
    }
