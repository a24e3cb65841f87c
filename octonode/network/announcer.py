"""Says what this node is, again and again: to connected peers, by gossip, and in the DHT. Spec: protocols/discovery.md.

On a change at once (debounced), before expiry by the clock, and LEAVING at the end. Each way may fail by itself;
`status` says what was said when, and what failed and why.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import trio

from octonode.config import NetworkConfig
from octonode.errors import OctonodeError
from octonode.ids import ANNOUNCE_TOPIC, PeerId
from octonode.network.clock import Chance, NowMs
from octonode.network.fanout import Fanout
from octonode.network.hello import Hello
from octonode.network.host import ContentRouting, Host, ProtocolNotSupported, PubSub, StreamReset, ValueStore
from octonode.network.keys import record_key
from octonode.network.own_announcement import OwnAnnouncement, Signed
from octonode.network.providing import ProviderRecord, ProvidingTable, wanted

log = logging.getLogger(__name__)

PUSHES_AT_ONCE = 8
"""Of those that need a new stream; what goes over a standing one does not wait for them."""
PROVIDE_TIMEOUT_SECONDS = 20.0
PROVIDE_BURST = 4
PROVIDE_EVERY_SECONDS = 1.0
PUT_TIMEOUT_SECONDS = 20.0
PUBLISH_TIMEOUT_SECONDS = 5.0
DEBOUNCE_SECONDS = 0.1
CHANGES_EVERY_SECONDS = 1.0
"""Changes are announced at most this often."""
GROWTH_OLD_MS = 10_000
"""A record older than this is provided again when new peers appear in a small network."""
SMALL_NETWORK_PEERS = 20


@dataclass(frozen=True, slots=True)
class AnnouncerStatus:
    """For `doctor` and `status`."""

    sequence: int = 0
    announced_at_ms: int = 0
    expires_at_ms: int = 0
    state: str = ""
    trimmed: bool = False
    pushed: int = 0
    """Peers that were told the last announcement: by hello and have answered, or over a fan-out stream that took it."""
    push_failures: tuple[tuple[PeerId, str], ...] = ()
    """Peers that it could not be told, and why. A peer that refuses what comes by fan-out is told by hello next, so
    that its reason is here."""
    gossip_failure: str = ""
    record_put_at_ms: int = 0
    record_failure: str = ""
    records: tuple[ProviderRecord, ...] = ()
    fault: str = ""
    """Why no announcement could be made at all: a full disk, a bug in the facts."""


class Announcer:
    """A service: constructor without I/O, then `run`."""

    def __init__(
        self,
        *,
        own: OwnAnnouncement,
        host: Host,
        hello: Hello,
        fanout: Fanout,
        routing: ContentRouting,
        values: ValueStore,
        pubsub: PubSub,
        settings: NetworkConfig,
        now_ms: NowMs,
        random: Chance,
    ) -> None:
        self._own = own
        self._host = host
        self._hello = hello
        self._fanout = fanout
        self._routing = routing
        self._values = values
        self._pubsub = pubsub
        self._now_ms = now_ms
        self._random = random
        self._ttl_seconds = settings.announcement_ttl_seconds
        self._table = ProvidingTable(int(self._ttl_seconds * 1000 / 2), random)
        self._changed = trio.Event()
        self._to_provide = trio.Event()
        self._material: object = None
        self._leaving = False
        self._saying = trio.CancelScope()
        self._pushed = 0
        self._push_failures: dict[PeerId, str] = {}
        self._gossip_failure = ""
        self._put_at_ms = 0
        self._put_failure = ""
        self._fault = ""

    def changed(self) -> None:
        """Something that we announce has changed. Cheap; call it as often as you like."""
        self._changed.set()

    @property
    def status(self) -> AnnouncerStatus:
        last = self._own.last.announcement if self._own.last else None
        return AnnouncerStatus(
            sequence=last.sequence if last else 0,
            announced_at_ms=last.issued_at_ms if last else 0,
            expires_at_ms=last.expires_at_ms if last else 0,
            state=last.state if last else "",
            trimmed=last.trimmed if last else False,
            pushed=self._pushed,
            push_failures=tuple(self._push_failures.items()),
            gossip_failure=self._gossip_failure,
            record_put_at_ms=self._put_at_ms,
            record_failure=self._put_failure,
            records=self._table.records,
            fault=self._fault,
        )

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Announce until cancelled. `started` at once: nobody need be there yet."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep_announcing, nursery)
            nursery.start_soon(self._keep_providing)
            nursery.start_soon(self._watch_growth)
            task_status.started()

    async def leave(self, timeout_seconds: float) -> None:
        """Say LEAVING on every way and announce no more. Returns when said, at the latest after the time given."""
        self._leaving = True
        self._saying.cancel()
        with trio.move_on_after(timeout_seconds):
            if (signed := await self._renew(leaving=True)) is not None:
                await self._say(signed, gossip=True)

    async def _keep_announcing(self, nursery: trio.Nursery) -> None:
        while not self._leaving:
            self._changed = trio.Event()
            # Before the announcement is made: what changes while it is signed differs from this, and goes next.
            material = self._own.facts().material
            signed = await self._renew(leaving=False)
            if signed is not None and not self._leaving:
                is_news, self._material = material != self._material, material
                self._want_records()
                # A slow peer or table must not hold up the next change: that one takes this one's place.
                self._saying.cancel()
                self._saying = trio.CancelScope()
                nursery.start_soon(self._say_until_told, signed, is_news, self._saying)
            await self._wait_for_change(CHANGES_EVERY_SECONDS)

    async def _say_until_told(self, signed: Signed, gossip: bool, scope: trio.CancelScope) -> None:
        with scope:
            await self._say(signed, gossip=gossip)

    async def _wait_for_change(self, least_seconds: float) -> None:
        """Until a change that peers must hear of, or the time of a refresh: a third of the life, with jitter."""
        with trio.move_on_after(self._ttl_seconds / 3 * (0.8 + 0.4 * self._random.random())):
            await trio.sleep(least_seconds)
            while True:
                await self._changed.wait()
                await trio.sleep(DEBOUNCE_SECONDS)
                self._changed = trio.Event()
                if self._leaving or self._own.facts().material != self._material:
                    return

    async def _renew(self, *, leaving: bool) -> Signed | None:
        try:
            signed = await self._own.renew("leaving" if leaving else "active")
        except OctonodeError as error:
            self._fault = f"no announcement could be made: {error}"
            log.error("%s", self._fault)
            return None
        self._fault = ""
        return signed

    async def _say(self, signed: Signed, *, gossip: bool) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._push_to_all, signed)
            nursery.start_soon(self._put, signed)
            if gossip:
                nursery.start_soon(self._publish, signed)

    async def _push_to_all(self, signed: Signed) -> None:
        limiter = trio.CapacityLimiter(PUSHES_AT_ONCE)
        self._pushed, self._push_failures = 0, {}

        async def push(peer_id: PeerId) -> None:
            try:
                await self._push(peer_id, signed, limiter)
                self._pushed += 1
            except ProtocolNotSupported:
                pass  # connected, and no octonode
            except OctonodeError as error:
                self._push_failures[peer_id] = f"{error.code}: {error.message}"

        async with trio.open_nursery() as nursery:
            for peer_id in self._host.connected:
                nursery.start_soon(push, peer_id)

    async def _push(self, peer_id: PeerId, signed: Signed, limiter: trio.CapacityLimiter) -> None:
        """By fan-out to whom we have greeted; else by hello, whose answer says whether it was taken."""
        if self._fanout.stands(peer_id) and await self._tell(peer_id, signed):
            return
        async with limiter:
            if self._hello.has_greeted(peer_id) and not self._leaving and await self._tell(peer_id, signed):
                return
            await self._hello.greet(peer_id)

    async def _tell(self, peer_id: PeerId, signed: Signed) -> bool:
        """False where nobody knows that it arrived. Our last words are known to be read before we go."""
        try:
            await self._fanout.tell(peer_id, ANNOUNCE_TOPIC, signed.data, last=self._leaving)
        except (ProtocolNotSupported, StreamReset):
            return False
        return True

    async def _publish(self, signed: Signed) -> None:
        async def publish() -> bool:
            await self._pubsub.publish(ANNOUNCE_TOPIC, signed.data)
            return True

        self._gossip_failure = await _attempt(publish, PUBLISH_TIMEOUT_SECONDS)

    async def _put(self, signed: Signed) -> None:
        async def put() -> bool:
            return await self._values.put(record_key(signed.announcement.peer_id), signed.data)

        self._put_failure = await _attempt(put, PUT_TIMEOUT_SECONDS)
        if not self._put_failure:
            self._put_at_ms = self._now_ms()

    def _want_records(self) -> None:
        self._table.want(wanted(self._own.facts(), self._host.peer_id), self._now_ms())
        self._to_provide.set()

    async def _keep_providing(self) -> None:
        """One record at a time, about one a second; a few at once after a quiet time."""
        credit, credited_at = float(PROVIDE_BURST), trio.current_time()
        while not self._leaving:
            self._to_provide = trio.Event()
            record = self._table.next_due(self._now_ms()) if self._host.connected else None
            if record is None:
                wait_seconds = self._table.wait_ms(self._now_ms()) / 1000 if self._host.connected else 1.0
                with trio.move_on_after(max(wait_seconds, 0.05)):
                    await self._to_provide.wait()
                continue
            now = trio.current_time()
            credit = min(float(PROVIDE_BURST), credit + (now - credited_at) / PROVIDE_EVERY_SECONDS)
            credited_at = now
            if credit < 1:
                await trio.sleep((1 - credit) * PROVIDE_EVERY_SECONDS)
                continue
            credit -= 1
            await self._provide(record)

    async def _provide(self, record: ProviderRecord) -> None:
        failure = await _attempt(lambda: self._routing.provide(record.key), PROVIDE_TIMEOUT_SECONDS)
        if failure:
            self._table.failed(record, failure, self._now_ms())
            log.debug("record %s %s was not provided: %s", record.kind, record.label, failure)
        else:
            self._table.done(record, self._now_ms())

    async def _watch_growth(self) -> None:
        """In a small network a record may stand at one node alone, which may leave: new peers get it soon."""
        seen: frozenset[PeerId] = frozenset()
        while not self._leaving:
            connected = self._host.connected
            if connected - seen and len(connected) <= SMALL_NETWORK_PEERS:
                self._table.hurry(self._now_ms(), GROWTH_OLD_MS if seen else 0)
                self._to_provide.set()
                if self._put_failure and self._own.last is not None:
                    await self._put(self._own.last)
            seen = connected
            await trio.sleep(0.5)


async def _attempt(act: Callable[[], Awaitable[bool]], timeout_seconds: float) -> str:
    """Why `act` failed; empty when it did what it should."""
    with trio.move_on_after(timeout_seconds):
        try:
            return "" if await act() else "no peer took it"
        except OctonodeError as error:
            return f"{error.code}: {error.message}"
    return f"no answer within {timeout_seconds:g} s"
