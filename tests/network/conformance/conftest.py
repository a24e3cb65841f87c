"""One suite, four networks: in memory, and real hosts on loopback on our muxer, the library's, and on each in turn."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import trio

from octonode.config import NetworkConfig
from octonode.identity import NodeKey
from octonode.network.host import Host, Network, Stream
from octonode.network.libp2p import build_network
from octonode.testing.network import MemoryNetwork


def accept_good(key: str, value: bytes) -> None:
    if not value.startswith(b"good"):
        raise ValueError(f"{value!r} is not good")


def last_in_order(key: str, values: list[bytes]) -> int:
    return max(range(len(values)), key=lambda index: (values[index], index))


@dataclass
class World:
    """Makes running nodes of one kind."""

    kind: str
    nursery: trio.Nursery
    memory: MemoryNetwork = field(default_factory=MemoryNetwork)
    serial: Any = field(default_factory=lambda: itertools.count(1))
    turn: Any = field(default_factory=itertools.count)

    def key(self) -> NodeKey:
        return NodeKey(hashlib.sha256(f"{self.kind} {next(self.serial)}".encode()).digest())

    def network(self, **settings: Any) -> Network:
        key = self.key()
        if self.kind == "memory":
            config = NetworkConfig(listen="127.0.0.1:0", **settings)
            return self.memory.node(key.peer_id, config, validator=accept_good, select=last_in_order)
        muxers = {"mixed": ("own", "stock")[next(self.turn) % 2]}
        config = NetworkConfig(listen="127.0.0.1:0", muxer=muxers.get(self.kind, self.kind), **settings)
        return build_network(key, config, validator=accept_good, select=last_in_order)

    async def running(self, **settings: Any) -> Network:
        network = self.network(**settings)
        await self.nursery.start(network.run)
        return network

    async def pair(self, **settings: Any) -> tuple[Host, Host]:
        """Two hosts, the first connected to the second."""
        a, b = await self.running(**settings), await self.running(**settings)
        await a.host.connect(b.host.addresses[0])
        return a.host, b.host


@pytest.fixture(params=["memory", "own", "stock", "mixed"])
def world(request: pytest.FixtureRequest, nursery: trio.Nursery) -> World:
    return World(request.param, nursery)


async def _echo(stream: Stream) -> None:
    while data := await stream.receive():
        await stream.send(data)


async def _read_all(stream: Stream) -> bytes:
    data = bytearray()
    while piece := await stream.receive():
        data += piece
    return bytes(data)


async def _ask(stream: Stream, data: bytes) -> bytes:
    """Send `data`, finish, and read the answer at the same time."""
    answer = bytearray()

    async def write() -> None:
        await stream.send(data)
        await stream.finish()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(write)
        answer += await _read_all(stream)
    return bytes(answer)


@pytest.fixture
def echo() -> Callable[[Stream], Awaitable[None]]:
    return _echo


@pytest.fixture
def read_all() -> Callable[[Stream], Awaitable[bytes]]:
    return _read_all


@pytest.fixture
def ask() -> Callable[[Stream, bytes], Awaitable[bytes]]:
    return _ask


async def _until(condition: Callable[[], Any]) -> None:
    """Wait for a condition, awaitable or not, that no event tells of. Inside a fail_after."""
    while True:
        holds = condition()
        if isinstance(holds, Awaitable):
            holds = await holds
        if holds:
            return
        await trio.sleep(0.05)


@pytest.fixture
def until() -> Callable[[Callable[[], Any]], Awaitable[None]]:
    return _until
