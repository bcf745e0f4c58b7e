"""The client's side: what a ClientApp does with the strategy's messages."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast
from uuid import uuid4

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import Mod
from torch import Tensor, nn

from fedkern.fl.client import Client
from fedkern.fl.config import RunConfig
from fedkern.fl.data import Dataset
from fedkern.fl.evaluation import cross_entropy, predict
from fedkern.fl.failures import check_finite
from fedkern.fl.flat import FlatModel, State
from fedkern.fl.heap import keep_freed_memory
from fedkern.fl.methods import Method
from fedkern.fl.own_models import have_own_models, kept_of, personal_logits, start_of
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
            not trained matter. It goes where the client's data are, and serves for all messages of
            clients with the same data set that come to a process.
        own_client: the client that the node is: its data, and the number by which the strategy
            knows it, whatever node it is on (``context.node_config["partition-id"]``, say). It is
            called for every message: what is slow, cache. Its state and models are not looked at:
            what it keeps lasts in the context.
        method: the strategy's, if it is not one of `fedkern.fl.METHODS`.
        mods: of the training, as of ``app.train``: Flower's for differential privacy, say. What a
            client answers to a question of the method's (Floco's statistics) does not go through.
    """
    node = _node(uuid4().hex, new_model, own_client, method)
    app.query("join")(node.join)
    app.train(mods=mods)(node.train)
    app.train("statistics")(node.answer)
    app.evaluate()(node.evaluate)


class _Node:
    """The handlers of messages. What they need serves for all that come to this process."""

    def __init__(
        self,
        name: str,
        new_model: Callable[[Context], nn.Module],
        own_client: Callable[[Context], Client],
        method: Method | None,
    ) -> None:
        self._new_model, self._own_client, self._given_method = new_model, own_client, method
        self._workplace: _Workplace | None = None
        self._name = name

    def __reduce__(self) -> tuple[Any, ...]:
        """A simulation sends an app anew with each message: it is to find what there is."""
        return _node, (self._name, self._new_model, self._own_client, self._given_method)

    def join(self, message: Message, context: Context) -> Message:
        """Who is there."""
        client = self._own_client(context)
        about = {"number": client.number, "samples": len(client)}
        about["test-samples"] = len(client.test_indices)
        return Message(RecordDict({CONFIG: ConfigRecord({**about})}), reply_to=message)

    def train(self, message: Message, context: Context) -> Message:
        """A round's training."""
        job = self._job(message, context)
        trained = job.train()
        # Flower's mods want them in the order in which they came.
        arrays = records.model_to_record(job.place.model, trained.state, message.content[ARRAYS])
        metrics = {"num-examples": len(job.client), "train-loss": trained.train_loss.item()}
        about = {"had": job.had, "has": [*job.client.models]}
        content = RecordDict({ARRAYS: arrays, METRICS: MetricRecord({**metrics})})
        content[CONFIG] = ConfigRecord({**about})
        return Message(content, reply_to=message)

    def answer(self, message: Message, context: Context) -> Message:
        """The answer to the method's question."""
        answer = self._job(message, context).answer()
        content = RecordDict({ARRAYS: ArrayRecord({records.ANSWER: answer})})
        return Message(content, reply_to=message)

    def evaluate(self, message: Message, context: Context) -> Message:
        """The global model, and the client's own, on its local test data."""
        metrics = self._job(message, context).evaluate()
        return Message(RecordDict({METRICS: MetricRecord({**metrics})}), reply_to=message)

    def _job(self, message: Message, context: Context) -> _Job:
        config = cast(ConfigRecord, message.content[CONFIG])
        client = replace(
            self._own_client(context),
            state=records.state_of(config),
            models=records.ContextModels(context.state),
        )
        place = self._workplace_for(config, client.dataset, context)
        shared = place.read(cast(ArrayRecord, message.content[ARRAYS]))
        return _Job(place, client, shared, int(cast(int, config[records.ROUND])))

    def _workplace_for(
        self, config: ConfigRecord, dataset: Dataset, context: Context
    ) -> _Workplace:
        """The one that there is, if it will do."""
        settings = (config[records.METHOD], config[records.TRAINING])
        place = self._workplace
        if place is None or place.settings != settings or place.dataset is not dataset:
            method_text, training_text = map(str, settings)
            method = self._given_method or records.method_of(method_text)
            module = self._new_model(context).to(dataset.x_train.device)
            method.prepare(module, generator(0, "method"))  # values come with the messages
            training = records.training_of(training_text)
            self._workplace = place = _Workplace(settings, dataset, method, training, module)
        return place


_nodes: dict[str, _Node] = {}


def _node(name: str, *arguments: Any) -> _Node:
    """The one of a name in this process."""
    if name not in _nodes:
        _nodes[name] = _Node(name, *arguments)
    return _nodes[name]


class _Workplace:
    """What clients of the same settings and data set train with."""

    def __init__(
        self,
        settings: tuple[object, object],
        dataset: Dataset,
        method: Method,
        config: RunConfig,
        module: nn.Module,
    ) -> None:
        keep_freed_memory()
        self.settings, self.dataset, self.method, self.config = settings, dataset, method, config
        self.model = FlatModel(module)
        self.read = records.StateReader(self.model)
        self.trainer = Trainer(self.model, dataset, config)


class _Job:
    """What a message asks of a client.

    Attributes:
        place: where it works.
        client: with what it has kept, and what the server keeps with it.
        had: the names of the models that it had kept when the message came.
    """

    def __init__(self, place: _Workplace, client: Client, shared: State, round: int) -> None:
        self.place, self.client, self.had = place, client, [*client.models]
        self._shared, self._round = shared, round

    def train(self) -> Trained:
        """Trains what the method says; returns what the server is to get."""
        place, client = self.place, self.client
        for work in place.method.local_work(client):
            trained = self._train(work, start_of(client, work, self._shared, None))
            client.models.update(kept_of(work, trained.state, place.config.buffers, None))
        return trained  # the server's share comes last

    def answer(self) -> Tensor:
        """Trains a throw-away copy of the global model."""
        question = self.place.method.question
        assert question is not None  # else the server would not ask
        trained = self._train(question.work, self._shared)
        layout = self.place.model.layout
        return question.answer(self.client, layout, self._shared.values, trained.state)

    def evaluate(self) -> dict[str, int | float]:
        """Accuracy and cross entropy; of the client's own model, too, if it may have one."""
        place, client, data = self.place, self.client, self.place.dataset
        place.model.load(self._shared)
        logits = predict(place.model.module, data.x_test, client.test_indices)
        targets = data.y_test[client.test_indices].cpu()
        metrics: dict[str, int | float] = {"num-examples": len(targets)}
        metrics |= _figures("", logits, targets)
        if have_own_models(place.method, place.model, place.config.buffers):
            own = personal_logits(place.method, place.model, client, logits, None)
            metrics |= _figures("personal-", own, targets)
        return metrics

    def _train(self, work: LocalWork, start: State) -> Trained:
        draws = Draws(self.place.config.seed, self._round, self.client.number, work.purpose)
        job = Job(self.client, work, start, draws)
        return check_finite(self.place.trainer.train(job, self._shared.values))


def _figures(prefix: str, logits: Tensor, targets: Tensor) -> dict[str, float]:
    correct = (logits.argmax(1) == targets).double().mean()
    return {
        f"{prefix}accuracy": correct.item(),
        f"{prefix}loss": cross_entropy(logits, targets).item(),
    }
