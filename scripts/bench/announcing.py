"""What an announcement to connected peers costs: over standing streams, against a hello to each."""

from __future__ import annotations

import hashlib
import random
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import trio

from octonode.config import NetworkConfig
from octonode.identity import NodeKey
from octonode.ids import ANNOUNCE_TOPIC, PeerId
from octonode.network.clock import wall_clock_ms
from octonode.network.fanout import Fanout
from octonode.network.fanout_messages import FanoutLimits
from octonode.network.hello import Hello
from octonode.network.intake import Intake
from octonode.network.libp2p.host import Libp2pHost
from octonode.network.own_announcement import NodeFacts, OwnAnnouncement
from octonode.network.peerbook import Peerbook
from scripts.bench.rows import Goal, Row, median

NODES = 4
WINDOWS = 3
MESSAGES = 60
"""Of one window, which so takes three seconds."""
MESSAGES_PER_SECOND = 20
IDLE_SECONDS = 2.0
SETTLE_SECONDS = 0.3

CPU = Goal(
    "fanout_cpu_ratio",
    "ratio",
    "<=",
    1.0,
    "a hello to each peer; CPU an announcement of 4 nodes in a mesh, signing and taking it included, 20/s, in turn",
)
GOALS = (CPU,)
FACTS = NodeFacts(
    hardware={"cpu_cores": 8, "memory_bytes": 2**34}, engines=("llama",), region="eu", agent_version="octonode/0.1.0"
)


class Numbers:
    """A sequence without a file."""

    def __init__(self) -> None:
        self._last = 0

    async def next(self, now_ms: int) -> int:
        self._last = max(self._last + 1, now_ms)
        return self._last


class Node:
    """What takes part in an announcement to connected peers, put together as in the daemon."""

    def __init__(self, index: int) -> None:
        key = NodeKey(hashlib.sha256(f"announcing bench {index}".encode()).digest())
        settings = NetworkConfig(listen="127.0.0.1:0")
        self.host = Libp2pHost(key, settings)
        self.book = Peerbook(key.peer_id)
        intake = Intake(self.host, self.book, wall_clock_ms)
        self.own = OwnAnnouncement(
            signer=key, host=self.host, facts=lambda: FACTS, sequence=Numbers(), settings=settings, now_ms=wall_clock_ms
        )
        self.hello = Hello(
            host=self.host, own=self.own, peerbook=self.book, intake=intake, now_ms=wall_clock_ms,
            random=random.Random(index),
        )  # fmt: skip
        limits = FanoutLimits(frames_per_second=100.0, frames_burst=1000)
        self.fanout = Fanout(host=self.host, settings=settings, now_ms=wall_clock_ms, limits=limits)
        self.fanout.hear(ANNOUNCE_TOPIC, partial(intake.take, must_be_own=True))

    async def say(self, tell: Callable[[PeerId, bytes], Awaitable[object]]) -> None:
        data = (await self.own.renew()).data
        async with trio.open_nursery() as nursery:
            for peer in self.host.connected:
                nursery.start_soon(tell, peer, data)

    async def by_fanout(self, peer_id: PeerId, data: bytes) -> None:
        await self.fanout.tell(peer_id, ANNOUNCE_TOPIC, data)

    async def by_hello(self, peer_id: PeerId, data: bytes) -> None:
        await self.hello.greet(peer_id)


@asynccontextmanager
async def mesh() -> AsyncIterator[list[Node]]:
    async with trio.open_nursery() as nursery:
        nodes = [Node(index) for index in range(NODES)]
        for index, node in enumerate(nodes):
            await nursery.start(node.host.run)
            await nursery.start(node.fanout.run)
            for other in nodes[:index]:
                await node.host.connect(other.host.addresses[0])
        yield nodes
        nursery.cancel_scope.cancel()


async def window(nodes: list[Node], way: str, count: int) -> float:
    """CPU seconds of `count` announcements. Raises RuntimeError when the last ones have not arrived."""
    used, begun = time.process_time(), trio.current_time()
    for number in range(count):
        node = nodes[number % NODES]
        await node.say(node.by_fanout if way == "fanout" else node.by_hello)
        await trio.sleep_until(begun + (number + 1) / MESSAGES_PER_SECOND)
    await trio.sleep(SETTLE_SECONDS)
    for node in nodes:
        for other in nodes:
            known = node.book.get(other.host.peer_id, wall_clock_ms())
            if node is not other and (known is None or other.own.last is None or known != other.own.last.announcement):
                raise RuntimeError(f"an announcement by {way} was lost")
    return time.process_time() - used


async def measure(folder: Path) -> list[Row]:
    costs: dict[str, list[float]] = {"hello": [], "fanout": []}
    async with mesh() as nodes:
        for way in costs:
            await window(nodes, way, 2 * NODES)
        await trio.sleep(IDLE_SECONDS)
        used = time.process_time()
        await trio.sleep(IDLE_SECONDS)
        idle_share = (time.process_time() - used) / IDLE_SECONDS
        for _ in range(WINDOWS):
            for way, taken in costs.items():
                begun = trio.current_time()
                used = await window(nodes, way, MESSAGES)
                taken.append((used - idle_share * (trio.current_time() - begun)) / MESSAGES)
    hello, fanout = median(costs["hello"]), median(costs["fanout"])
    print(f"announcing: {1000 * fanout:.2f} ms to 3 peers, by hello {1000 * hello:.2f} ms", file=sys.stderr)
    return [CPU.row(fanout / hello, WINDOWS)]
