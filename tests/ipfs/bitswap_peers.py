"""Ends of bitswap for tests: blocks in memory, nodes that speak it, and a peer that says what the test says."""

from __future__ import annotations

import hashlib
import itertools
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import trio

from octonode.config import NetworkConfig
from octonode.identity import NodeKey
from octonode.ids import BITSWAP_PROTOCOL, PeerId
from octonode.ipfs.bitswap import Bitswap, BitswapLimits
from octonode.ipfs.bitswap_messages import Block, Message, MessageReader, WantEntry, decode, frame, prefix_of
from octonode.ipfs.blocks import Body, FoundFile
from octonode.ipfs.cid import Cid, raw_cid
from octonode.network.host import Host, Stream
from octonode.network.libp2p.host import Libp2pHost
from octonode.testing.network import MemoryNetwork

_SERIAL = itertools.count(1)


class Blocks:
    """A block source in memory. `looked_up` counts what was asked of it."""

    def __init__(self, blocks: Iterable[bytes] = ()) -> None:
        self.by_digest = {raw_cid(block).digest: block for block in blocks}
        self.looked_up = 0

    def block(self, cid: Cid) -> Body | None:
        self.looked_up += 1
        block = self.by_digest.get(cid.digest)
        return None if block is None else Body([block])

    def run(self, root: Cid, first_byte: int, last_byte: int | None, *, nodes: bool) -> Body | None:
        return None

    def file(self, root: Cid, path: tuple[str, ...]) -> FoundFile | None:
        return None

    def have(self, root: Cid) -> bytes | None:
        return None


def made(count: int, size: int, seed: int = 1) -> list[bytes]:
    rng = random.Random(seed)
    return [rng.randbytes(size) for _ in range(count)]


def wanted(blocks: Iterable[bytes]) -> list[tuple[Cid, int]]:
    return [(raw_cid(block), len(block)) for block in blocks]


def new_key() -> NodeKey:
    return NodeKey(hashlib.sha256(f"bitswap {next(_SERIAL)}".encode()).digest())


@dataclass
class Node:
    host: Host
    bitswap: Bitswap
    blocks: Blocks

    @property
    def id(self) -> PeerId:
        return self.host.peer_id

    async def get(self, peer_id: PeerId, blocks: list[bytes]) -> list[bytes]:
        """What came of these, in the order of coming."""
        came: list[bytes] = []
        await self.bitswap.fetch(peer_id, wanted(blocks), lambda _, block: came.append(bytes(block)))
        return came


class RawPeer:
    """A peer without a bitswap of ours: what is said to it waits in `heard`, what it says the test writes."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self._send, self.heard = trio.open_memory_channel[Message](10_000)
        self.streams: list[Stream] = []
        self.on_message: Callable[[Message], Any] | None = None
        host.handle(BITSWAP_PROTOCOL, self._handle)

    @property
    def id(self) -> PeerId:
        return self.host.peer_id

    async def _handle(self, stream: Stream) -> None:
        self.streams.append(stream)
        reader = MessageReader()
        while data := await stream.receive():
            for body in reader.feed(data):
                message = decode(body)
                if self.on_message is not None:
                    await self.on_message(message)
                await self._send.send(message)

    async def open(self, to: PeerId) -> Stream:
        return await self.host.open(to, BITSWAP_PROTOCOL)

    async def next_wants(self, *, cancels: bool = False) -> tuple[WantEntry, ...]:
        """The entries of the next message with wants, or with cancels; never with both."""
        while True:
            entries = (await self.heard.receive()).entries
            kinds = {entry.cancel for entry in entries}
            assert len(kinds) < 2
            if kinds == {cancels}:
                return entries


async def say(stream: Stream, message: Message) -> None:
    await stream.send(b"".join(frame(message)))


def carrying(*blocks: bytes) -> Message:
    return Message(blocks=tuple(Block(prefix_of(raw_cid(block)), block) for block in blocks))


def wanting(*cids: bytes, **how: Any) -> Message:
    return Message(tuple(WantEntry(cid, send_dont_have=True, **how) for cid in cids))


@dataclass
class World:
    """Makes running nodes of one kind of host: memory, own or stock."""

    kind: str
    nursery: trio.Nursery
    memory: MemoryNetwork = field(default_factory=MemoryNetwork)

    async def host(self) -> Host:
        key = new_key()
        if self.kind == "memory":
            node = self.memory.node(key.peer_id)
            await self.nursery.start(node.run)
            return node.host
        host = Libp2pHost(key, NetworkConfig(listen="127.0.0.1:0", muxer="stock" if self.kind == "stock" else "own"))
        await self.nursery.start(host.run)
        return host

    async def node(self, blocks: Iterable[bytes] = (), limits: BitswapLimits | None = None, **more: Any) -> Node:
        host, held = await self.host(), Blocks(blocks)
        bitswap = Bitswap(host, more.pop("source", held), limits, **more)
        await self.nursery.start(bitswap.run)
        return Node(host, bitswap, held)

    async def pair(self, blocks: Iterable[bytes] = (), limits: BitswapLimits | None = None) -> tuple[Node, Node]:
        """(one that holds nothing, one that holds `blocks`), connected."""
        asker, holder = await self.node((), limits), await self.node(blocks, limits)
        await asker.host.connect(holder.host.addresses[0])
        return asker, holder

    async def raw(self) -> RawPeer:
        return RawPeer(await self.host())


async def node_and_raw(world: World, blocks: list[bytes] | None = None, **limits: float) -> tuple[Node, RawPeer]:
    """A node with these limits, and a peer that is connected to it."""
    node, raw = await world.node(blocks or (), BitswapLimits(**limits)), await world.raw()  # type: ignore[arg-type]
    await raw.host.connect(node.host.addresses[0])
    return node, raw
