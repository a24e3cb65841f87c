"""Askers with their own hands on the stream, for tests of the provider."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

from octonode.config import TasksConfig
from octonode.identity import NodeKey
from octonode.ids import AGENT_PROTOCOL
from octonode.network.host import Stream
from octonode.protocol.exchange import Exchange
from octonode.protocol.messages import ErrorReport, Message, StatusUpdate, TaskRequest
from octonode.tasks.orders import task_request
from octonode.tasks.slots import new_id
from octonode.testing.engine import TwinEngine
from tests.tasks.nodes import Node, ask, nodes, now_ms


class Caller:
    """An asker with its own hands on the stream."""

    def __init__(self, stream: Stream, exchange: Exchange) -> None:
        self.stream = stream
        self.exchange = exchange
        self.messages: list[Message] = []

    async def send(self, message: Message, **options: object) -> None:
        await self.stream.send(self.exchange.send(message, now_ms(), **options))  # type: ignore[arg-type]

    async def until(self, done: Callable[[Message], bool] = lambda message: False) -> Message:
        """Reads to the message that is `done`, or to the terminal frame."""
        while not self.exchange.closed:
            data = await self.stream.receive()
            if not data:
                self.exchange.receive_end(now_ms())
            for event in self.exchange.receive(data, now_ms()):
                self.messages.append(event.message)
                if done(event.message):
                    return event.message
        return self.messages[-1]

    async def error(self) -> ErrorReport:
        last = await self.until()
        assert isinstance(last, ErrorReport), last
        return last

    @property
    def text(self) -> str:
        return "".join(piece for m in self.messages if isinstance(m, StatusUpdate) for piece in m.pieces)


async def call(asker: Node, provider: Node, key: NodeKey | None = None) -> Caller:
    stream = await asker.host.open(provider.peer, AGENT_PROTOCOL)
    return Caller(stream, Exchange("asker", key or asker.key, provider.peer, new_id=new_id))


def request(**changes: object) -> TaskRequest:
    return replace(task_request(ask(), ""), **changes)  # type: ignore[arg-type]


@asynccontextmanager
async def pair(home: Path, settings: TasksConfig | None = None) -> AsyncIterator[tuple[Node, Node, TwinEngine]]:
    async with nodes(home, 2, settings) as (asker, provider):
        yield asker, provider, await provider.serve()


def has_pieces(message: Message) -> bool:
    return isinstance(message, StatusUpdate) and bool(message.pieces)


async def read_all(stream: Stream) -> bytes:
    data = b""
    while chunk := await stream.receive():
        data += chunk
    return data
