"""A small world of nodes on the in-memory network, under a virtual clock."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import trio

from octonode.config import NetworkConfig
from octonode.identity import NodeKey, Signer
from octonode.ids import ANNOUNCE_TOPIC, PeerId
from octonode.network.announcer import Announcer
from octonode.network.clock import Chance, NowMs
from octonode.network.dialback import Probe
from octonode.network.discovery import Discovery
from octonode.network.fanout import Fanout
from octonode.network.hello import Hello, Manifests
from octonode.network.hello_messages import HelloLimits, Outcome
from octonode.network.host import Network
from octonode.network.intake import Intake
from octonode.network.membership import Membership
from octonode.network.own_announcement import Facts, NodeFacts, OwnAnnouncement
from octonode.network.peerbook import Peerbook
from octonode.network.records import RecordRules
from octonode.network.sequence import Sequence
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


class Peers:
    """Peerbook, hello, announcer, membership and discovery of one node, put together as the daemon does."""

    def __init__(
        self,
        *,
        network: Network,
        signer: Signer,
        settings: NetworkConfig,
        facts: Facts,
        manifests: Manifests | None = None,
        random: Chance,
        limits: HelloLimits | None = None,
        probe: Probe,
        sequence: Sequence,
        now_ms: NowMs = now_ms,
    ) -> None:
        host = network.host
        self.book = Peerbook(host.peer_id, settings.peerbook_peers_max)
        self.intake = Intake(host, self.book, now_ms)
        self.own = OwnAnnouncement(
            signer=signer, host=host, facts=facts, sequence=sequence, settings=settings,
            now_ms=now_ms,
        )  # fmt: skip
        self.hello = Hello(
            host=host, own=self.own, peerbook=self.book, intake=self.intake, now_ms=now_ms, random=random,
            manifests=manifests, limits=limits, probe=probe,
        )  # fmt: skip
        self.fanout = Fanout(host=host, settings=settings, now_ms=now_ms)
        self.fanout.hear(ANNOUNCE_TOPIC, partial(self.intake.take, must_be_own=True))
        self.announcer = Announcer(
            own=self.own, host=host, hello=self.hello, fanout=self.fanout, routing=network.routing,
            values=network.values, pubsub=network.pubsub, settings=settings, now_ms=now_ms, random=random,
        )  # fmt: skip
        self.membership = Membership(
            host=host, hello=self.hello, intake=self.intake, peerbook=self.book, pubsub=network.pubsub,
            settings=settings, now_ms=now_ms, random=random,
        )  # fmt: skip
        self.discovery = Discovery(
            host=host, hello=self.hello, intake=self.intake, peerbook=self.book, routing=network.routing,
            values=network.values, now_ms=now_ms, random=random,
        )  # fmt: skip

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Join, announce and listen until cancelled. The network must be running."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self.membership.run)
            await nursery.start(self.fanout.run)
            await nursery.start(self.announcer.run)
            task_status.started()


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
    memory: MemoryNetwork = field(default_factory=MemoryNetwork)
    numbers: dict[str, Numbers] = field(default_factory=dict)
    random: random.Random = field(default_factory=lambda: random.Random(0))

    def make(
        self, name: str, *, ip: str = "127.0.0.1", limits: HelloLimits | None = None, facts: NodeFacts | None = None,
        outcome: Outcome = "reached", **settings: Any,
    ) -> Node:  # fmt: skip
        key, rules = key_of(name), RecordRules(now_ms)
        config = NetworkConfig(**settings)
        network = self.memory.node(key.peer_id, config, validator=rules.validate, select=rules.select, ip=ip)
        told, shown, probed = [facts or NodeFacts()], Shown(), []

        async def probe(host: str, port: int) -> Outcome:
            probed.append((host, port))
            return outcome

        peers = Peers(
            network=network, signer=key, settings=config, facts=lambda: told[0], manifests=shown,
            random=random.Random(name), limits=limits, probe=probe,
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
