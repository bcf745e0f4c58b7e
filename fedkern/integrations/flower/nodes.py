"""A server whose clients are on nodes of Flower's."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from time import sleep
from typing import Any, TypeVar

import torch
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid
from torch import Tensor

from fedkern.fl.client import Client
from fedkern.fl.config import RunConfig
from fedkern.fl.data import Dataset
from fedkern.fl.errors import ConfigError
from fedkern.fl.failures import ERROR, NO_REPLY, NOT_FINITE, REFUSED, Failure
from fedkern.fl.flat import FlatModel
from fedkern.fl.methods import Method
from fedkern.fl.server import Server
from fedkern.fl.training import Question

from . import records

T = TypeVar("T")

log = logging.getLogger("flwr")  # Flower's, whose lines are a run's log

JOIN_SECONDS = 60.0  # at least, for who does not answer then is not in: it may have to start first

_NOTHING = torch.empty(0)
ELSEWHERE = Dataset("elsewhere", _NOTHING, _NOTHING, _NOTHING, _NOTHING, num_classes=0)


class NodeServer(Server):
    """A server whose clients are on nodes of Flower's.

    A client is known by its number, whatever node it is on: what is kept with it here outlasts the
    node.

    Attributes:
        clients: all that have ever been connected, in the order of their numbers. Their data are
            `ELSEWHERE`; how many they have is known.
        timeout: seconds to wait for replies.
        arrays: the global state as it is sent.
        user_config: what the strategy's user sends along.
    """

    def __init__(self, method: Method, model: FlatModel, config: RunConfig) -> None:
        super().__init__(model, [], config)
        self.timeout = 3600.0
        self.arrays = records.model_to_record(model, model.state)
        self.user_config = ConfigRecord()
        self._settings = {
            records.METHOD: records.method_config(method),
            records.TRAINING: records.training_config(config),
        }
        self._grid: Grid | None = None
        self._known: dict[int, Client] = {}  # by number
        self._nodes: dict[int, int] = {}  # of the clients, by their numbers
        self._met: set[int] = set()  # nodes that have said who they are
        self._connected: set[int] = set()  # nodes, when they were last looked for
        self._barred: set[int] = set()  # nodes whose answer was no good

    @property
    def present(self) -> list[Client]:
        """The clients that are connected, in the order of their numbers."""
        return [c for c in self.clients if self._nodes.get(c.number) in self._connected]

    def remember(self, states: Mapping[int, dict[str, Any]]) -> None:
        """Takes on what was kept with clients that have not come yet, by their numbers."""
        for number, state in states.items():
            self._take_in(number, 0, 0)
            self._known[number].state.update(state)
        self._list_clients()

    def gather(self, grid: Grid, least: int) -> None:
        """Looks who is connected, and waits until there are at least so many clients."""
        self._grid = grid
        waiting_with = -1
        while True:
            self._connected = {*grid.get_node_ids()}
            self._barred &= self._connected  # who comes back may have been mended
            if len(self._connected) >= least:  # all at once, not one after the other
                self._meet(sorted(self._connected - self._met - self._barred))
            if (there := len(self.present)) >= least:
                return
            if there != waiting_with:
                waiting_with = there
                log.info("waiting for %d clients, %d are there", least, there)
            sleep(1)

    def _meet(self, nodes: Sequence[int]) -> None:
        """Asks nodes which client they are."""
        timeout = max(self.timeout, JOIN_SECONDS)
        messages = [self._message(node, records.JOIN, RecordDict(), timeout) for node in nodes]
        introduced = partial(records.introduction, clients=self._config.clients)
        for node, reply in zip(nodes, self._exchange(messages, timeout), strict=True):
            found = self.read(node, reply, introduced)
            if isinstance(found, Failure):
                log.warning("node %d is not let in: %s: %s", node, found.cause, found.message)
                if found.cause != NO_REPLY:  # who was slow is asked again
                    self._barred.add(node)
                continue
            number, samples, test_samples = found
            if (before := self._nodes.get(number)) is not None:
                log.warning("client %d is on node %d now, no longer on %d", number, node, before)
            elif self.number > 1:
                log.info("client %d is new, or back: on node %d", number, node)
            self._met.add(node)
            self._nodes[number] = node
            self._take_in(number, samples, test_samples)
        self._list_clients()

    def _take_in(self, number: int, samples: int, test_samples: int) -> None:
        indices, test_indices = (
            torch.empty(count, dtype=torch.int64, device="meta")
            for count in (samples, test_samples)
        )
        state = self._known[number].state if number in self._known else {}
        self._known[number] = Client(number, ELSEWHERE, indices, test_indices, state, {})

    def _list_clients(self) -> None:
        self.clients = [client for _, client in sorted(self._known.items())]

    def messages(self, clients: Iterable[Client], kind: str) -> list[Message]:
        """One to each client: the global state, the settings, and what is kept with it here."""
        shared = {**self.user_config, **self._settings, records.ROUND: self.number}
        messages = []
        for client in clients:
            config = ConfigRecord({**shared, **records.state_config(client.state)})
            content = RecordDict({records.ARRAYS: self.arrays, records.CONFIG: config})
            messages.append(self._message(self._nodes[client.number], kind, content, self.timeout))
        return messages

    def ask_all(self, question: Question) -> list[tuple[Client, Tensor]]:
        """See `Server`; it asks those that are connected."""
        layout, before = self.model.layout, self.model.state
        clients = self.reach([client for client in self.present if len(client) > 0])
        replies = self._exchange(self.messages(clients, records.STATISTICS), self.timeout)
        answers = []
        for client, reply in zip(clients, replies, strict=True):
            like = question.answer(client, layout, before.values, before)
            answer = self.read(client.number, reply, partial(records.answer, like=like))
            if isinstance(answer, Failure):
                self.note(answer)
            else:
                answers.append((client, answer))
        return answers

    def read(
        self, number: int, reply: Message | None, content: Callable[[RecordDict], T]
    ) -> T | Failure:
        """What a reply holds, or why it is refused.

        Args:
            number: of the client.
            reply: if one has come.
            content: reads it; raises ConfigError, or FloatingPointError for nan.
        """
        if reply is None:
            return Failure(number, NO_REPLY, f"none within {self.timeout:g} s")
        if reply.has_error():
            return Failure(number, ERROR, str(reply.error.reason).partition("\n")[0])
        try:
            return content(reply.content)
        except ConfigError as error:
            return Failure(number, REFUSED, str(error))
        except FloatingPointError as error:
            return Failure(number, NOT_FINITE, str(error))
        except Exception as error:  # nothing that a client sends ends the run
            return Failure(number, REFUSED, f"{type(error).__name__}: {error}")

    def _message(self, node: int, kind: str, content: RecordDict, timeout: float) -> Message:
        # What nobody waits for any longer is not begun.
        return Message(content, node, kind, ttl=timeout, group_id=str(self.number))

    def _exchange(self, messages: Sequence[Message], timeout: float) -> list[Message | None]:
        if not messages:
            return []
        assert self._grid is not None
        return in_order(messages, self._grid.send_and_receive(messages, timeout=timeout))


def in_order(messages: Sequence[Message], replies: Iterable[Message]) -> list[Message | None]:
    """The reply to each message, if it has one; one that the sender did not get is left out."""
    by_message = {reply.metadata.reply_to_message_id: reply for reply in replies}
    return [by_message.get(message.metadata.message_id) for message in messages]
