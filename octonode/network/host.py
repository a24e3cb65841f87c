"""What the rest of the house knows of the network: four small Protocol classes.

`network/libp2p/` implements them on py-libp2p, `testing/network.py` in memory; one conformance suite runs on both.
A multiaddr is text here, such as `/ip4/127.0.0.1/tcp/4808/p2p/12D3KooW...`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

import trio

from octonode.errors import OctonodeError, Unreachable
from octonode.ids import PeerId


class StreamReset(Unreachable):
    """The stream was cut: by the peer, by the loss of the connection, or by us. What was read is not the whole."""

    code = "PROVIDER_LOST"


class ProtocolNotSupported(OctonodeError):
    """The peer is there and does not speak this protocol."""

    code = "UNSUPPORTED"


class Stream(Protocol):
    """A two-way byte stream to one authenticated peer. Both ends must call `finish` or `reset` in the end."""

    @property
    def peer_id(self) -> PeerId:
        """The peer at the other end, proven by the transport's handshake."""
        ...

    @property
    def protocol(self) -> str: ...

    async def send(self, data: bytes) -> None:
        """Write all of `data`. Raises StreamReset. Bring your own deadline: a peer that does not read blocks us."""
        ...

    async def receive(self, max_bytes: int = 65536) -> bytes:
        """At least one byte, or b"" once the peer has finished. Raises StreamReset.

        Some transports show a killed peer as b"": framing above carries an explicit last frame, and b"" before
        that frame is a loss.
        """
        ...

    async def finish(self) -> None:
        """We send no more; reading goes on. Never raises."""
        ...

    async def reset(self) -> None:
        """Cut both directions now. Never raises; may be called at any time, more than once."""
        ...


StreamHandler = Callable[[Stream], Awaitable[None]]


class Host(Protocol):
    """Dials and accepts authenticated peers, and opens streams to them."""

    @property
    def peer_id(self) -> PeerId: ...

    @property
    def addresses(self) -> tuple[str, ...]:
        """Multiaddrs we listen on, each ending in /p2p/<our id>. Empty before `run` has started."""
        ...

    @property
    def muxer(self) -> str:
        """What carries the streams, found by looking: `own`, `stock`, or the name of a stranger among them."""
        ...

    @property
    def connected(self) -> frozenset[PeerId]: ...

    def handle(self, protocol: str, handler: StreamHandler) -> None:
        """Serve `protocol`. A handler that raises has its stream reset and is logged; nothing else happens."""
        ...

    async def connect(self, address: str) -> PeerId:
        """Dial a multiaddr that ends in /p2p/<id>. Raises Unreachable; ValueError for a malformed address."""
        ...

    async def open(self, peer_id: PeerId, protocol: str) -> Stream:
        """A new stream; dials known addresses if not connected. Raises Unreachable or ProtocolNotSupported."""
        ...

    async def disconnect(self, peer_id: PeerId) -> None: ...

    def learn(self, peer_id: PeerId, addresses: tuple[str, ...]) -> None:
        """Remember where a peer may be dialled. Bounded; bad addresses are dropped."""
        ...

    def observed_ip(self, peer_id: PeerId) -> str | None:
        """The IP address of the authenticated connection to a peer, or None when there is none."""
        ...

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Listen until cancelled; `started` once addresses are known. Raises ConfigError when a port is taken."""
        ...


class ContentRouting(Protocol):
    """Who has what, by 32-byte keys (the sha256 digest inside a multihash). A record is a hint, never the truth."""

    async def provide(self, key: bytes) -> bool:
        """Say that we have `key`. False when no peer took the record: try again later."""
        ...

    async def find_providers(self, key: bytes) -> tuple[PeerId, ...]:
        """Always asks the network and merges with what is known here. At most 20; empty when there is none."""
        ...


class ValueStore(Protocol):
    """Signed records by key, such as `/octo/<peer id>`. Validators of the namespace decide what is accepted."""

    async def put(self, key: str, value: bytes) -> bool:
        """False when no peer took it, and when a better one is kept here or by all of them.

        Raises LocalProtocolError for a key of no namespace of ours, and what the validator raises for our own record.
        """
        ...

    async def get(self, key: str, timeout_seconds: float = 30.0) -> bytes | None:
        """The best that is known here or by the peers nearest to the key and that our validator accepts, of those that
        answered in time."""
        ...


class PubSub(Protocol):
    """Small signed gossip, at most 4 KiB a message; messages may be lost and may come twice.

    Our own messages do not come back to us.
    """

    @property
    def dropped(self) -> int:
        """Messages so far that found the channel of a subscriber full."""
        ...

    async def publish(self, topic: str, data: bytes) -> None:
        """Hand a message to our neighbours. Raises LocalProtocolError over 4 KiB."""
        ...

    async def subscribe(self, topic: str) -> trio.MemoryReceiveChannel[tuple[PeerId, bytes]]:
        """(author, data) pairs. The channel holds at most 256; new ones are dropped at the bound."""
        ...


ValidateRecord = Callable[[str, bytes], None]
"""(key, value): raises anything to refuse a record of the value store."""

SelectRecord = Callable[[str, list[bytes]], int]
"""(key, values that passed the validator): the index of the best one."""


class Network(Protocol):
    """The four services over one identity, and the task that keeps them alive."""

    @property
    def host(self) -> Host: ...

    @property
    def routing(self) -> ContentRouting: ...

    @property
    def values(self) -> ValueStore: ...

    @property
    def pubsub(self) -> PubSub: ...

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled; `started` once the addresses are known. Raises ConfigError when a port is taken."""
        ...
