"""Bitswap 1.2 over our own host: blocks from and to any peer of the IPFS world. Page: protocols/bitswap.md.

    bitswap = Bitswap(host, store, pace=pace)          # the handler is registered here; serves what the store has
    await nursery.start(bitswap.run)
    block = await bitswap.block(peer_id, cid)          # verified bytes
    await bitswap.fetch(peer_id, [(cid, size_bytes), ...], arrived)   # arrived(cid, view) as they come, verified
    held = await bitswap.have(peer_id, cids)           # which of them the peer has

Serving and asking use streams of their own towards a peer, so that neither waits for the other; what a peer sends us
may come on any stream. A block is taken only if it was asked of that peer and its sha2-256 is right.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import trio

from octonode.errors import OctonodeError, RemoteProtocolError, Unreachable
from octonode.ids import BITSWAP_PROTOCOL, PeerId
from octonode.ipfs.bitswap_client import PeerSession
from octonode.ipfs.bitswap_limits import BitswapLimits
from octonode.ipfs.bitswap_messages import MESSAGE_BYTES_MAX, Message, MessageReader
from octonode.ipfs.bitswap_orders import Arrived, Order, outcome
from octonode.ipfs.bitswap_server import PeerServer, Serving
from octonode.ipfs.bitswap_streams import Paced, read_messages
from octonode.ipfs.blocks import BlockSource
from octonode.ipfs.cid import Cid
from octonode.ipfs.gateway import Pace
from octonode.network.host import Host, Stream, StreamReset

__all__ = ["Bitswap", "BitswapLimits"]

log = logging.getLogger(__name__)


class _Peer:
    """What we have with one peer: what it wants, what we want, its streams."""

    def __init__(self, session: PeerSession, server: PeerServer, limits: BitswapLimits) -> None:
        self.session = session
        self.server = server
        self.parts = Pace(limits.parts_per_second_max)
        self.streams = 0
        """That the peer opened."""
        self.readers: set[MessageReader] = set()
        """Of these and of ours."""

    @property
    def idle(self) -> bool:
        return not (self.streams or self.session.running or self.server.running)


class Bitswap:
    """A service: constructor without I/O, then `run`. `blocks` gives public blocks alone and is read in threads."""

    def __init__(
        self,
        host: Host,
        blocks: BlockSource,
        limits: BitswapLimits | None = None,
        *,
        pace: Paced | None = None,
        on_sent: Callable[[PeerId, int], None] | None = None,
    ) -> None:
        self._host = host
        self.limits = limits or BitswapLimits()
        self._on_sent = on_sent
        self.counts: Counter[str] = Counter()
        """Faults of peers by error code; `unsolicited` and `late` blocks, `wants refused`, `slow readers cut`, parts
        and messages `passed over`."""
        self.sent_bytes = 0
        self._serving = Serving(host, blocks, self.limits, pace, self.counts, self._sent)
        self._peers: dict[PeerId, _Peer] = {}
        self._nursery: trio.Nursery | None = None
        host.handle(BITSWAP_PROTOCOL, self._handle)

    @property
    def wants_waiting(self) -> int:
        """Of all peers, not yet answered."""
        return self._serving.wants

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve and ask until cancelled; the host must run."""
        assert self._nursery is None, "bitswap runs once at a time"
        try:
            async with trio.open_nursery() as self._nursery:
                task_status.started()
                await trio.sleep_forever()
        finally:
            self._nursery = None
            self._peers.clear()

    # Asking. All of it raises Unreachable (Stalled for silence), ProtocolNotSupported, NotFound, VerificationFailed.

    async def block(self, peer_id: PeerId, cid: Cid) -> bytes:
        """One verified block."""
        found: list[bytes] = []
        await self.fetch(peer_id, [(cid, self.limits.block_bytes_guess)], lambda _, block: found.append(bytes(block)))
        return found[0]

    async def fetch(self, peer_id: PeerId, wants: Sequence[tuple[Cid, int]], arrived: Arrived) -> None:
        """Blocks with their sizes, as far as those are known; `arrived` gets each as it comes, in the peer's order.

        NotFound comes after all that the peer does have. What `arrived` raises ends it, and is raised here.
        """
        await self._order(peer_id, wants, Order(arrived), presence=False)

    async def have(self, peer_id: PeerId, cids: Iterable[Cid]) -> frozenset[Cid]:
        """Those of `cids` that the peer says it has. It costs the peer a look-up each: ask for what is missing."""
        order = Order(lambda _, __: None)
        asked = list(cids)
        wants = [(cid, self.limits.small_block_bytes_max) for cid in asked]
        await self._order(peer_id, wants, order, presence=True)
        missing = {cid.digest for cid in order.missing}
        return frozenset(cid for cid in asked if cid.digest not in missing)

    async def _order(self, peer_id: PeerId, wants: Sequence[tuple[Cid, int]], order: Order, *, presence: bool) -> None:
        if self._nursery is None:
            raise Unreachable("bitswap does not run on this node")
        session = self._peer(peer_id).session
        session.add(order, wants, presence=presence)
        if not session.running and not order.done.is_set():
            session.running = True
            self._nursery.start_soon(self._run, session)
        try:
            await order.done.wait()
        finally:
            session.drop(order)
        outcome(order, peer_id, presence=presence)

    # What both sides need.

    def _peer(self, peer_id: PeerId) -> _Peer:
        peer = self._peers.get(peer_id)
        if peer is None:
            for gone in [each for each, it in self._peers.items() if it.idle and each not in self._host.connected]:
                del self._peers[gone]
            session = PeerSession(self._host, peer_id, self.limits, self._read, self.counts)
            server = PeerServer(self._serving, peer_id, self._read)
            peer = self._peers[peer_id] = _Peer(session, server, self.limits)
        return peer

    async def _run(self, task: PeerSession | PeerServer) -> None:
        try:
            await task.run()
        except Exception:
            log.exception("bitswap with %s failed", task.peer_id)

    def _read(self, stream: Stream) -> trio.Event:
        """Read a stream of ours to its end: some peers answer on it, and all must be drained."""
        assert self._nursery is not None
        was_read = trio.Event()
        self._nursery.start_soon(self._read_own, stream, was_read)
        return was_read

    async def _read_own(self, stream: Stream, was_read: trio.Event) -> None:
        peer = self._peer(stream.peer_id)
        try:
            await self._read_stream(stream, peer)
        except OctonodeError as error:
            log.debug("a stream to %s ended: %s", stream.peer_id, error.message)
            peer.session.reset(stream)
            await stream.reset()
        except Exception:
            log.exception("reading a stream of %s failed", stream.peer_id)
            await stream.reset()
        finally:
            was_read.set()

    async def _handle(self, stream: Stream) -> None:
        """A stream that the peer opened, for as long as it likes."""
        peer = self._peer(stream.peer_id)
        if self._nursery is None or peer.streams >= self.limits.streams_per_peer_max:
            self.counts["RATE_LIMITED"] += 1
            await stream.reset()
            return
        peer.streams += 1
        try:
            await self._read_stream(stream, peer, inbound=True)
        except (RemoteProtocolError, StreamReset) as error:
            log.debug("a stream of %s ended: %s", stream.peer_id, error.message)
            await stream.reset()
        finally:
            peer.streams -= 1

    async def _read_stream(self, stream: Stream, peer: _Peer, *, inbound: bool = False) -> None:
        reader = MessageReader(self.limits.unasked_bytes_max)

        def moved(size_bytes: int) -> None:
            begun = sum(each.pending_bytes for each in peer.readers)
            expected = peer.session.expects_blocks and begun < self.limits.receiving_bytes_max
            reader.keep_bytes_max = MESSAGE_BYTES_MAX if expected else self.limits.unasked_bytes_max
            peer.session.moved(size_bytes)

        async def take(message: Message) -> None:
            await self._take(peer, message)

        peer.readers.add(reader)
        try:
            await read_messages(stream, reader, self.limits, take, moved)
        except RemoteProtocolError as error:
            self.counts[error.code] += 1
            peer.session.lost()
            raise
        except StreamReset:
            if inbound or reader.in_message or stream.peer_id not in self._host.connected:
                peer.session.lost()
            raise
        finally:
            peer.readers.discard(reader)
            self._passed_over(reader.read_past)

    async def _take(self, peer: _Peer, message: Message) -> None:
        self._passed_over(message.passed_over)
        if message.presences or message.blocks:
            await peer.session.take(message)
        if message.entries or message.full:
            peer.server.take(message)
            if peer.server.busy and not peer.server.running and self._nursery is not None:
                peer.server.running = True
                self._nursery.start_soon(self._run, peer.server)
        await peer.parts.take(len(message.entries) + len(message.presences) + len(message.blocks))

    def _passed_over(self, count: int) -> None:
        if count:
            self.counts["passed over"] += count

    def _sent(self, peer_id: PeerId, size_bytes: int) -> None:
        self.sent_bytes += size_bytes
        if self._on_sent is not None:
            self._on_sent(peer_id, size_bytes)
