"""A small world of nodes on the in-memory network, under a virtual clock."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import trio

from octonode.config import NetworkConfig
from octonode.identity import NodeKey
from octonode.ids import PeerId
from octonode.network.hello_messages import HelloLimits, Outcome
from octonode.network.own_announcement import NodeFacts
from octonode.network.peers import Peers
from octonode.network.records import RecordRules
from octonode.protocol.announcement import Announcement, sign_announcement
from octonode.testing.network import MemoryNetwork, MemoryNode

START_MS = 1_800_000_000_000
ROOT = "bafybeigdyrzt5sfp7udm7hu76uh7y26nf3efuylqabf3oclgtqy55fbzdi"
OTHER_ROOT = "bafkreigh2akiscaildcqabsyg3dfr6chu3fgpregiymsck7e7aqa4s52zy"


def key_of(name: str) -> NodeKey:
    return NodeKey(hashlib.sha256(b"peers " + name.encode()).digest())


def now_ms() -> int:
    return START_MS + int(trio.current_time() * 1000)


class Numbers:
    """A sequence without a file: threads and a virtual clock do not go together."""

    def __init__(self) -> None:
        self._last = 0

    async def next(self, now_ms: int) -> int:
        self._last = max(self._last + 1, now_ms)
        return self._last


class Shown:
    """Manifests that a node can show."""

    def __init__(self) -> None:
        self.named: dict[tuple[str, str], bytes] = {}
        self.by_cid: dict[str, bytes] = {}

    def manifest(self, publisher: PeerId, name: str) -> bytes | None:
        return self.named.get((publisher, name))

    def manifest_by_cid(self, cid: str) -> bytes | None:
        return self.by_cid.get(cid)


@dataclass
class Node:
    name: str
    key: NodeKey
    network: MemoryNode
    peers: Peers
    facts: list[NodeFacts]
    shown: Shown
    probed: list[tuple[str, int]]
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)

    @property
    def id(self) -> PeerId:
        return self.key.peer_id

    @property
    def address(self) -> str:
        return self.network.host.addresses[0]

    def now(self, **facts: Any) -> None:
        """Change what is true of the node."""
        self.facts[0] = replace(self.facts[0], **facts)
        self.peers.announcer.changed()

    def knows(self, *others: Node) -> bool:
        return {other.id for other in others} <= {a.peer_id for a in self.peers.book.peers(now_ms())}

    def connected(self, *others: Node) -> bool:
        return {other.id for other in others} <= self.network.host.connected


@dataclass
class World:
    nursery: trio.Nursery
    home: Path
    memory: MemoryNetwork = field(default_factory=MemoryNetwork)
    numbers: dict[str, Numbers] = field(default_factory=dict)

    def make(
        self, name: str, *, ip: str = "127.0.0.1", limits: HelloLimits | None = None, facts: NodeFacts | None = None,
        outcome: Outcome = "reached", **settings: Any,
    ) -> Node:  # fmt: skip
        key, rules = key_of(name), RecordRules(now_ms)
        config = NetworkConfig(**settings)
        network = self.memory.node(key.peer_id, config, validator=rules.validate, select=rules.select, ip=ip)
        home = self.home / name
        home.mkdir(exist_ok=True)
        told, shown, probed = [facts or NodeFacts()], Shown(), []

        async def probe(host: str, port: int) -> Outcome:
            probed.append((host, port))
            return outcome

        peers = Peers(
            network=network, signer=key, settings=config, home=home, facts=lambda: told[0], manifests=shown,
            now_ms=now_ms, random=random.Random(name), limits=limits, probe=probe,
            sequence=self.numbers.setdefault(name, Numbers()),
        )  # fmt: skip
        return Node(name, key, network, peers, told, shown, probed)

    async def start(self, name: str, **options: Any) -> Node:
        node = self.make(name, **options)
        await self.nursery.start(self.run, node)
        return node

    async def listen_only(self, name: str, **options: Any) -> Node:
        """A node that answers hello and does nothing by itself."""
        node = self.make(name, **options)
        await self.nursery.start(node.network.run)
        return node

    async def run(self, node: Node, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        with node.scope:
            async with trio.open_nursery() as nursery:
                await nursery.start(node.network.run)
                await nursery.start(node.peers.run)
                task_status.started()

    async def stop(self, node: Node) -> None:
        """The way a daemon is stopped: it says that it leaves."""
        await node.peers.announcer.leave(2.0)
        node.scope.cancel()

    def kill(self, node: Node) -> None:
        self.memory.kill(node.id)
        node.scope.cancel()


async def until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    """Wait for something that tells nobody when it happens; the clock is virtual."""
    with trio.fail_after(seconds):
        while not condition():
            await trio.sleep(0.05)


def announced(name: str, *, at_ms: int = START_MS, sequence: int = 1, **fields: Any) -> tuple[Announcement, bytes]:
    """An announcement of somebody, signed."""
    key = key_of(name)
    life = {"issued_at_ms": at_ms, "expires_at_ms": at_ms + 120_000, **fields}
    announcement = Announcement(peer_id=key.peer_id, sequence=sequence, **life)
    return announcement, sign_announcement(key, announcement)
