"""Flower's Grid without Flower's processes: nodes are called where they are, one after the other.

What is sent is written and read as between processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.task_identity import TaskIdentity

from fedkern import fl
from fedkern.integrations.flower import register


@dataclass
class Node:
    """A SuperNode: what Flower gives its app, and what becomes of a message there."""

    app: ClientApp
    context: Context
    tamper: Callable[[Message, Message], Message | None] = field(default=lambda asked, reply: reply)


class LocalGrid(Grid):
    """Nodes by their ids. `log` has each message's kind, node and content, and the replies'."""

    def __init__(self) -> None:
        # Where messages come from, which Flower's processes know of themselves.
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
        self.nodes: dict[int, Node] = {}
        self.log: list[tuple[str, int, RecordDict, Message | None]] = []
        self._ids = count(1)

    def add(self, node_id: int, app: ClientApp, number: int) -> Node:
        config = {"partition-id": number}
        context = Context(0, node_id, config, RecordDict(), {}, series_id=0)
        self.nodes[node_id] = Node(app, context)
        return self.nodes[node_id]

    def get_node_ids(self) -> Iterable[int]:
        return [*self.nodes]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        replies = []
        for message in messages:
            message.metadata.__dict__["_message_id"] = f"message-{next(self._ids)}"
            if (reply := self._reply(message)) is not None:
                replies.append(reply)
        return replies

    def _reply(self, message: Message) -> Message | None:
        kind, node_id = message.metadata.message_type, message.metadata.dst_node_id
        content = sent(message.content)
        reply: Message | None
        if (node := self.nodes.get(node_id)) is None:
            reply = None
        else:
            arrived = Message(content, node_id, kind, group_id=message.metadata.group_id)
            arrived.metadata.__dict__["_message_id"] = message.metadata.message_id
            state = sent(node.context.state)
            try:
                reply = node.app(arrived, node.context)
            except Exception as error:  # as Flower does, whatever it is
                node.context.state = state
                reply = Message(Error(2, f"{type(error)}:<'{error}'>"), reply_to=arrived)
            reply = node.tamper(arrived, reply)
            if reply is not None and reply.has_content():
                reply.content = sent(reply.content)
        self.log.append((kind, node_id, content, reply))
        return reply

    # What our strategy does not use.

    def set_run(self, run: Any) -> None:
        raise NotImplementedError

    @property
    def run(self) -> Any:
        raise NotImplementedError

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        raise NotImplementedError

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        raise NotImplementedError

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        raise NotImplementedError


def sent(content: RecordDict) -> RecordDict:
    """What arrives of it elsewhere."""
    objects = {key: each.deflate() for key, each in get_all_nested_objects(content).items()}
    arrived = inflate_object_from_contents(content.object_id, objects)
    assert isinstance(arrived, RecordDict)
    return arrived


def federation(
    clients: list[fl.Client],
    new_model: Callable[[], Any],
    method: fl.Method | None = None,
    mods: list[Any] | None = None,
) -> LocalGrid:
    """A grid with a node for each client; node ids say nothing of the clients' numbers."""
    grid = LocalGrid()
    for client in clients:
        app = ClientApp()
        register(
            app,
            lambda context: new_model(),
            lambda context: clients[context.node_config["partition-id"]],
            method,
            mods,
        )
        grid.add(1000 - 7 * client.number, app, client.number)
    return grid
