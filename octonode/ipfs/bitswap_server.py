"""Serving blocks: a bounded ledger of wants a peer, and one task a peer that answers them on a stream of its own.

Blocks are read and hashed in threads, while the message before them is on its way. What a peer that does not read can
hold is two messages, and no longer than others can do without that memory.
"""

from __future__ import annotations

import itertools
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import trio

from octonode.errors import OctonodeError, Unreachable, one_error
from octonode.ids import BITSWAP_PROTOCOL, PeerId
from octonode.ipfs.bitswap_limits import BitswapLimits
from octonode.ipfs.bitswap_messages import Block, Message, Presence, WantEntry, prefix_of, read_cid
from octonode.ipfs.bitswap_streams import Paced, end, send_message
from octonode.ipfs.blocks import BlockSource
from octonode.ipfs.dagpb import BLOCK_BYTES_MAX
from octonode.network.host import Host, Stream

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Answer:
    cid: bytes
    block: Block | None = None
    presence: Presence | None = None

    @property
    def block_bytes(self) -> int:
        return len(self.block.data) if self.block else 0


class Serving:
    """What the servers of all peers share: counts, threads, the pace, and the memory of messages.

    `hold` gives room for one message out of `batches_max`. Who waits for it has the slowest reader cut, once that one
    has taken nothing for `pressure_seconds`.
    """

    def __init__(
        self,
        host: Host,
        blocks: BlockSource,
        limits: BitswapLimits,
        pace: Paced | None,
        counts: Counter[str],
        on_sent: Callable[[PeerId, int], None],
    ) -> None:
        self.host = host
        self.blocks = blocks
        self.limits = limits
        self.pace = pace
        self.counts = counts
        self.on_sent = on_sent
        self.wants = 0
        """Of all peers, and not yet answered."""
        self.threads = trio.CapacityLimiter(limits.look_ups_max)
        self.sending: dict[PeerServer, None] = {}
        self.free = limits.batches_max
        self._room = trio.lowlevel.ParkingLot()

    async def hold(self) -> None:
        while not self.free:
            with trio.move_on_after(self.limits.pressure_seconds / 4):
                await self._room.park()
                continue
            slowest = min(self.sending, key=lambda each: each.progress_at, default=None)
            if slowest and trio.current_time() - slowest.progress_at > self.limits.pressure_seconds:
                slowest.cut()
        self.free -= 1

    def release(self) -> None:
        self.free += 1
        self._room.unpark()

    def answers(self, entries: Sequence[WantEntry]) -> list[_Answer]:
        """In a thread: the answers to the first of the wants, up to `batch_bytes` of blocks."""
        found: list[_Answer] = []
        size_bytes = 0
        for entry in entries:
            found.append(self._answer(entry))
            size_bytes += found[-1].block_bytes
            if size_bytes >= self.limits.batch_bytes:
                break
        return found

    def _answer(self, entry: WantEntry) -> _Answer:
        """A block that does not hash to its CID is not sent, and counts as one that is not here."""
        missing = _Answer(entry.cid, presence=Presence(entry.cid, False) if entry.send_dont_have else None)
        cid = read_cid(entry.cid)
        try:
            body = self.blocks.block(cid) if cid else None
        except (OctonodeError, OSError) as error:
            log.warning("looking for %s failed: %s", cid, error)
            return missing
        if cid is None or body is None:
            return missing
        try:
            if body.size_bytes > BLOCK_BYTES_MAX:
                return missing
            if entry.wants_have and body.size_bytes > self.limits.small_block_bytes_max:
                return _Answer(entry.cid, presence=Presence(entry.cid, True))
            data = body.read()
        except (OSError, EOFError) as error:
            log.warning("reading %s failed: %s", cid, error)
            return missing
        finally:
            body.close()
        if not cid.matches(data):
            log.warning("what is stored for %s is another block; it is not sent", cid)
            return missing
        return _Answer(entry.cid, block=Block(prefix_of(cid), data))


class PeerServer:
    """The wants of one peer. `run` is started when the first one comes, and ends when all is answered and idle."""

    def __init__(self, shared: Serving, peer_id: PeerId, read: Callable[[Stream], trio.Event]) -> None:
        self._shared = shared
        self._limits = shared.limits
        self.peer_id = peer_id
        self._read = read
        """Has a stream of ours read to its end; the event is set then."""
        self._wants: dict[bytes, WantEntry] = {}
        self._under_way: dict[bytes, WantEntry] = {}
        self._refused: dict[bytes, None] = {}
        """To be answered DONT_HAVE without a look, since too much is wanted."""
        self._held = 0
        self._news = trio.Event()
        self._scope = trio.CancelScope()
        self._failures = 0
        """Streams lost in a row, without one message in between."""
        self.progress_at = 0.0
        self.running = False

    @property
    def busy(self) -> bool:
        return bool(self._wants or self._refused or self._under_way)

    @property
    def waiting(self) -> int:
        """Wants that are kept: never more than `wants_per_peer_max`."""
        return len(self._wants) + len(self._under_way)

    def take(self, message: Message) -> None:
        """A wantlist of the peer."""
        if message.full:
            named = {entry.cid for entry in message.entries}
            for cid in [*self._wants, *self._under_way, *self._refused]:
                if cid not in named:
                    self._drop(cid)
        for entry in message.entries:
            if entry.cancel:
                self._drop(entry.cid)
            else:
                self._add(entry)
        if self._wants or self._refused:
            self._news.set()

    def _add(self, entry: WantEntry) -> None:
        known = self._wants.get(entry.cid) or self._under_way.get(entry.cid)
        if known is not None and (entry.wants_have or not known.wants_have):
            return  # what is under way is sent anew should it not get through
        if entry.cid in self._wants:
            self._wants[entry.cid] = entry
        elif self.waiting < self._limits.wants_per_peer_max and self._shared.wants < self._limits.wants_max:
            self._wants[entry.cid] = entry
            self._shared.wants += 1
        else:
            self._shared.counts["wants refused"] += 1
            if entry.send_dont_have and len(self._refused) < self._limits.wants_per_peer_max:
                self._refused[entry.cid] = None

    def _drop(self, cid: bytes) -> None:
        for kept in (self._wants, self._under_way):
            if kept.pop(cid, None) is not None:
                self._shared.wants -= 1
        self._refused.pop(cid, None)

    def clear(self) -> None:
        self._shared.wants -= self.waiting
        self._wants.clear()
        self._under_way.clear()
        self._refused.clear()

    def cut(self) -> None:
        """Others need the memory: the stream ends."""
        self._scope.cancel()

    # The task.

    async def run(self) -> None:
        """Raises nothing of the world's. Wants of a peer that is gone, or takes nothing, are dropped."""
        self.running = True
        self._failures = 0
        try:
            while self.busy and self._failures < self._limits.tries_max:
                if self.peer_id not in self._shared.host.connected:
                    return
                self._shared.wants -= len(self._under_way.keys() & self._wants.keys())
                self._wants, self._under_way = {**self._under_way, **self._wants}, {}
                try:
                    await self._serve()
                except Unreachable as error:
                    self._failures += 1
                    log.debug("answering %s failed: %s", self.peer_id, error.message)
        except OctonodeError as error:
            log.debug("%s cannot be answered: %s", self.peer_id, error.message)
        finally:
            self.running = False
            self.clear()

    async def _serve(self) -> None:
        """Answer until all is answered and a while has passed. Raises Unreachable, ProtocolNotSupported."""
        stream = await self._shared.host.open(self.peer_id, BITSWAP_PROTOCOL)
        was_read = self._read(stream)
        ended = False
        try:
            with one_error(), trio.CancelScope() as self._scope:
                async with trio.open_nursery() as nursery:
                    send, receive = trio.open_memory_channel[list[_Answer]](0)
                    nursery.start_soon(self._read_batches, send)
                    ended = await self._send_batches(stream, receive)
                    nursery.cancel_scope.cancel()
            if not ended:
                self._shared.counts["slow readers cut"] += 1
                raise Unreachable(f"{self.peer_id} takes nothing of what it asked for", code="DEADLINE")
            await end(stream, was_read)
        finally:
            for _ in range(self._held):
                self._shared.release()
            self._held = 0
            if not ended:
                with trio.CancelScope(shield=True):
                    await stream.reset()

    async def _read_batches(self, send: trio.MemorySendChannel[list[_Answer]]) -> None:
        while True:
            while not (self._wants or self._refused):
                self._news = trio.Event()
                await self._news.wait()
            await self._shared.hold()
            self._held += 1
            entries = list(itertools.islice(self._wants.values(), self._limits.batch_wants_max))
            answers = await trio.to_thread.run_sync(self._shared.answers, entries, limiter=self._shared.threads)
            current = [answer for entry, answer in zip(entries, answers, strict=False) if self._starts(entry)]
            refused = list(itertools.islice(self._refused, self._limits.batch_wants_max))
            for cid in refused:
                del self._refused[cid]
            await send.send([*current, *(_Answer(cid, presence=Presence(cid, False)) for cid in refused)])

    def _starts(self, entry: WantEntry) -> bool:
        """Its answer is about to go; False when it was taken back or became another want while it was looked up."""
        if self._wants.get(entry.cid) is not entry:
            return False
        del self._wants[entry.cid]
        self._shared.wants -= entry.cid in self._under_way
        self._under_way[entry.cid] = entry
        return True

    async def _send_batches(self, stream: Stream, receive: trio.MemoryReceiveChannel[list[_Answer]]) -> bool:
        """True when nothing was wanted for `idle_seconds`."""
        while True:
            with trio.move_on_after(self._limits.idle_seconds) as idle:
                answers = await receive.receive()
            if idle.cancelled_caught:
                if self.busy:
                    continue
                return True
            await self._send(stream, answers)
            for answer in answers:
                if self._under_way.pop(answer.cid, None) is not None:
                    self._shared.wants -= 1
            self._held -= 1
            self._shared.release()

    async def _send(self, stream: Stream, answers: Sequence[_Answer]) -> None:
        """One message; what was cancelled meanwhile is left out of it."""
        kept = [each for each in answers if each.cid in self._under_way or not each.block]
        blocks = tuple(each.block for each in kept if each.block)
        presences = tuple(each.presence for each in kept if each.presence)
        if not blocks and not presences:
            return
        self._moved()
        self._shared.sending[self] = None
        try:
            message = Message(blocks=blocks, presences=presences)
            await send_message(stream, message, self._limits, pace=self._shared.pace, moved=self._moved)
        finally:
            self._shared.sending.pop(self, None)
        self._failures = 0
        self._shared.on_sent(self.peer_id, sum(each.block_bytes for each in kept))

    def _moved(self) -> None:
        self.progress_at = trio.current_time()
