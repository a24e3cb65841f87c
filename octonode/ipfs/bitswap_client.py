"""Asking one peer: a window in bytes, a stream of our own for the wants, and what becomes of faults.

Several orders may want the same block, which is asked for once. Blocks and presences come on any stream of the peer,
by `take`.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import math
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Final

import trio

from octonode.errors import OctonodeError, Unreachable, VerificationFailed
from octonode.ids import BITSWAP_PROTOCOL, PeerId
from octonode.ipfs.bitswap_limits import BitswapLimits
from octonode.ipfs.bitswap_messages import (
    MESSAGE_BYTES_MAX,
    Block,
    Message,
    Presence,
    WantEntry,
    prefix_of,
    read_cid,
)
from octonode.ipfs.bitswap_orders import Key, Order, Want
from octonode.ipfs.bitswap_streams import end, send_message
from octonode.ipfs.cid import Cid
from octonode.ipfs.gateway_client import Stalled
from octonode.network.host import Host, Stream

log = logging.getLogger(__name__)

PRESENCES_PER_PASS: Final = 512
"""Taken before others have their turn."""
CONNECTED_SECONDS: Final = 0.5
"""Without news while something is wanted, before a look whether the peer is still connected. Where none of its streams
was open when it went, as with Helia between two messages, nothing else tells."""


class PeerSession:
    """All that is wanted of one peer. `run` is started by whoever adds the first order, and ends when all is idle.

    Nothing else may run it. Every fault ends the orders it concerns: Unreachable, Stalled, VerificationFailed,
    ProtocolNotSupported.
    """

    def __init__(
        self,
        host: Host,
        peer_id: PeerId,
        limits: BitswapLimits,
        read: Callable[[Stream], trio.Event],
        counts: Counter[str],
    ) -> None:
        self._host = host
        self.peer_id = peer_id
        self._limits = limits
        self._read = read
        """Has a stream of ours read to its end, since some peers answer on it; the event is set then."""
        self._counts = counts
        self._wants: dict[Key, Want] = {}
        """In the order of asking; those that are sent stand anywhere among them."""
        self._queued: dict[Key, Want] = {}
        self._cancels: dict[bytes, Cid] = {}
        """By digest: a cancel ends whatever was said of a CID."""
        self._recent: dict[bytes, None] = {}
        self._recent_until = -math.inf
        self._outstanding_bytes = 0
        self._moved_bytes = 0
        self._resolved_at = 0.0
        self._tries = 0
        self._stream: Stream | None = None
        self._renew = False
        """What is said next needs a new stream."""
        self._doubtful = False
        """A stream of ours was reset after wants had gone on it: silence may mean that they did not arrive."""
        self._news = trio.Event()
        self.running = False

    @property
    def expects_blocks(self) -> bool:
        """Asked for now, or a moment ago."""
        return bool(self._wants) or trio.current_time() < self._recent_until

    # What callers do.

    def add(self, order: Order, wants: Iterable[tuple[Cid, int]], *, presence: bool = False) -> None:
        for cid, size_bytes in wants:
            key = (cid.digest, presence)
            want = self._wants.get(key)
            if want is None:
                want = self._wants[key] = self._queued[key] = Want(cid, presence, size_bytes)
                self._cancel_the_old(want)
            if key not in order.left:
                want.orders.append(order)
                order.left.add(key)
        if not order.left:
            order.done.set()
        self._wake()

    def drop(self, order: Order) -> None:
        """The caller waits no more; what nobody else wants is cancelled."""
        for key in order.left:
            want = self._wants.get(key)
            if want is None or order not in want.orders:
                continue
            want.orders.remove(order)
            if not want.orders:
                self._forget(want)
                self._cancel(want)
        order.left.clear()
        self._wake()

    # What the peer's streams bring.

    def moved(self, size_bytes: int) -> None:
        self._moved_bytes += size_bytes

    def lost(self) -> None:
        """A stream on which answers came was cut: what was under way is asked for anew."""
        if any(want.sent for want in self._wants.values()):
            self._ask_anew()

    def reset(self, stream: Stream) -> None:
        """The peer has reset a stream of ours between two messages. Helia does so after ten seconds without a word, and
        goes on answering what was said on it."""
        if stream is self._stream:
            self._renew = self._doubtful = True
            self._wake()

    def _ask_anew(self) -> None:
        self._tries += 1
        self._renew, self._doubtful = True, False
        self._outstanding_bytes = 0
        self._queued = dict(self._wants)
        for want in self._queued.values():
            want.sent = False
            if want.was_sent:
                self._cancels[want.cid.digest] = want.cid
        self._wake()

    async def take(self, message: Message) -> None:
        for number, presence in enumerate(message.presences, 1):
            self._take_presence(presence)
            if number % PRESENCES_PER_PASS == 0:
                await trio.lowlevel.checkpoint()
        for block in message.blocks:
            self._take_block(block)
            await trio.lowlevel.checkpoint()

    def _take_presence(self, presence: Presence) -> None:
        cid = read_cid(presence.cid)
        if cid is None:
            return
        asked = self._wants.get((cid.digest, True))
        if asked is not None:
            self._resolve(asked, None if presence.have else cid)
        wanted = self._wants.get((cid.digest, False))
        if wanted is not None and not presence.have:
            self._resolve(wanted, cid)

    def _take_block(self, block: Block) -> None:
        """Only what was wanted, and only when its hash is right. Where nothing is wanted it is not even hashed."""
        if not self._wants:
            self._counts["late" if self._recent else "unsolicited"] += 1
            return
        digest = hashlib.sha256(block.data).digest()
        found = False
        for presence in (False, True):
            want = self._wants.get((digest, presence))
            if want is not None:
                found = True
                self._resolve(want, None, memoryview(block.data))
        if not found and digest in self._recent:
            self._counts["late"] += 1
        elif not found:
            self._unsolicited(block, digest)

    def _unsolicited(self, block: Block, digest: bytes) -> None:
        """A block that was never asked for. One that could pass for a wanted one is a lie about it."""
        self._counts["unsolicited"] += 1
        for want in self._wants.values():
            if want.sent and not want.presence and block.prefix[1:] == prefix_of(want.cid)[1:]:
                self._counts["VERIFICATION_FAILED"] += 1
                error = VerificationFailed(
                    f"{self.peer_id} sent a block with the hash {digest.hex()}, which was not asked for, in place of "
                    f"{want.cid} or another one that was"
                )
                self._fail(error)
                return

    def _resolve(self, want: Want, missing: Cid | None, block: memoryview | None = None) -> None:
        self._forget(want)
        self._tries = 0
        self._resolved_at = trio.current_time()
        for order in want.orders:
            order.left.discard(want.key)
            if missing is not None:
                order.missing.append(want.cid)
            elif block is not None and not want.presence and order.error is None:
                try:
                    order.arrived(want.cid, block)
                except Exception as error:
                    order.fail(error)
            if not order.left:
                order.done.set()
        self._wake()

    def _forget(self, want: Want) -> None:
        del self._wants[want.key]
        self._queued.pop(want.key, None)
        if want.sent:
            self._outstanding_bytes -= want.size_bytes
        if want.was_sent:
            self._recent_until = trio.current_time() + self._limits.message_seconds
            self._recent.pop(want.cid.digest, None)
            self._recent[want.cid.digest] = None
            if len(self._recent) > self._limits.remembered_max:
                del self._recent[next(iter(self._recent))]

    def _fail(self, error: Exception) -> None:
        """Every order ends here; what was sent is cancelled if the stream still stands."""
        wants = tuple(self._wants.values())
        for want in wants:
            self._forget(want)
            for order in want.orders:
                order.fail(error)
        for want in wants:
            self._cancel(want)
        self._wake()

    def _cancel(self, want: Want) -> None:
        digest = want.cid.digest
        if want.was_sent and (digest, not want.presence) not in self._wants:
            self._cancels[digest] = want.cid

    def _cancel_the_old(self, want: Want) -> None:
        """A peer may still have an earlier want of the same block in its books, and passes over a second one for some
        seconds after it sent the block (Helia), or for good after it said that it has none."""
        digest = want.cid.digest
        if digest in self._recent and (digest, not want.presence) not in self._wants:
            self._cancels[digest] = want.cid
        else:
            self._cancels.pop(digest, None)

    def _wake(self) -> None:
        self._news.set()

    # The task.

    async def run(self) -> None:
        """Until nothing was wanted for `idle_seconds`, or the peer cannot be reached."""
        self.running = True
        self._tries, self._doubtful = 0, False
        try:
            while self._wants:
                stream = self._stream = await self._host.open(self.peer_id, BITSWAP_PROTOCOL)
                self._renew = False
                was_read = self._read(stream)
                if await self._speak(stream):
                    await end(stream, was_read)
                elif self._tries >= self._limits.tries_max:
                    raise Unreachable(
                        f"{self.peer_id} lost {self._tries} streams in a row and gave no block", code="PROVIDER_LOST"
                    )
        except OctonodeError as error:
            self._fail(error)
        finally:
            self.running = False
            self._stream = None
            self._cancels.clear()
            self._fail(Unreachable(f"bitswap with {self.peer_id} has ended"))

    async def _speak(self, stream: Stream) -> bool:
        """Say what is wanted until nothing was for a while; False when there is more to say on a new stream."""
        stands = False
        try:
            stands = await self._say(stream)
        except Stalled:
            raise
        except Unreachable as error:
            log.debug("asking %s anew: %s", self.peer_id, error.message)
            self._ask_anew()
        finally:
            if not stands:
                with trio.CancelScope(shield=True):
                    await stream.reset()
        return stands

    async def _say(self, stream: Stream) -> bool:
        check_at = idle_at = math.inf
        while not (self._renew and (self._cancels or self._may_ask)):
            entries = self._next_entries()
            if entries:
                await send_message(stream, Message(entries), self._limits)
                continue
            now = trio.current_time()
            if not self._wants:
                check_at = math.inf
                idle_at = min(idle_at, now + self._limits.idle_seconds)
                if now >= idle_at:
                    return True
            else:
                idle_at = math.inf
                if check_at == math.inf:
                    check_at, self._moved_bytes, self._resolved_at = now + self._limits.stall_seconds, 0, now
                elif now >= check_at:
                    self._check_stall(check_at - self._limits.stall_seconds, now)
                    check_at, self._moved_bytes = now + self._limits.stall_seconds, 0
            with trio.move_on_at(min(check_at, idle_at, now + CONNECTED_SECONDS if self._wants else math.inf)) as quiet:
                await self._news.wait()
            if quiet.cancelled_caught and self._wants and self.peer_id not in self._host.connected:
                self._ask_anew()
            self._news = trio.Event()
        return False

    def _check_stall(self, since: float, now: float) -> None:
        """Raises Stalled for silence since then, and for a peer that talks and never comes to an answer."""
        seconds, pace = self._limits.stall_seconds, self._limits.bytes_per_second_min
        silent = self._moved_bytes < seconds * pace and self._resolved_at <= since
        if silent and self._doubtful:
            self._ask_anew()
        elif silent or now - self._resolved_at > seconds + MESSAGE_BYTES_MAX / pace:
            raise Stalled(f"{self.peer_id} sends nothing of what was asked of it")

    @property
    def _may_ask(self) -> bool:
        """The window is filled again when a quarter of it is free, not for each block that came."""
        return bool(self._queued) and self._outstanding_bytes <= self._limits.window_bytes_max * 3 // 4

    def _next_entries(self) -> tuple[WantEntry, ...]:
        """Cancels, in a message of their own; then wants, as many as the window has room for, and one at least.

        Kubo applies the cancels of a message after its wants.
        """
        window, count_max = self._limits.window_bytes_max, self._limits.wants_per_message_max
        cancelled = list(itertools.islice(self._cancels, count_max))
        if cancelled:
            return tuple(WantEntry(self._cancels.pop(digest).raw, cancel=True) for digest in cancelled)
        if not self._may_ask:
            return ()
        entries: list[WantEntry] = []
        while self._queued and len(entries) < count_max:
            key, want = next(iter(self._queued.items()))
            if self._outstanding_bytes and self._outstanding_bytes + want.size_bytes > window:
                break
            del self._queued[key]
            want.sent = want.was_sent = True
            self._outstanding_bytes += want.size_bytes
            entries.append(WantEntry(want.cid.raw, wants_have=want.presence, send_dont_have=True))
        return tuple(entries)
