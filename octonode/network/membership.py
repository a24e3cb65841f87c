"""Getting into the network and staying in it: bootstrap and static peers, greeting, learning others, filling up.

Whoever is connected is greeted and asked for others, and others are dialled until there are enough, so the network
outlives every node that it was entered by. `report` says why a node sees nobody.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

import trio

from octonode.config import NetworkConfig
from octonode.errors import ConfigError, OctonodeError
from octonode.ids import ANNOUNCE_TOPIC, PeerId
from octonode.network.addresses import AddressError
from octonode.network.clock import Chance, NowMs
from octonode.network.hello import Hello
from octonode.network.host import Host, ProtocolNotSupported, PubSub
from octonode.network.intake import Intake
from octonode.network.joinline import JoinLine, parse_line
from octonode.network.peerbook import Peerbook
from octonode.network.seeing import Dial, MembershipReport, findings

log = logging.getLogger(__name__)

CONNECTIONS_WANTED = 8
LOOK_EVERY_SECONDS = 0.25
"""How soon a new connection is greeted."""
DIAL_FIRST_SECONDS, DIAL_LAST_SECONDS = 1.0, 60.0
GREET_FIRST_SECONDS, GREET_LAST_SECONDS = 1.0, 30.0
PEER_FIRST_SECONDS, PEER_LAST_SECONDS = 5.0, 300.0
DIALS_AT_ONCE = 4
GREETS_AT_ONCE = 16
REFRESH_SECONDS = 30.0
BACK_OFFS_MAX = 1024
JOINED_MAX = 32
"""Join lines taken while running."""


@dataclass(slots=True)
class _Contact:
    """A connected peer: whether it was greeted and asked for others, and when to try again."""

    next_at: float = 0.0
    failures: int = 0
    reason: str = ""
    done: bool = False
    busy: bool = False
    is_stranger: bool = False
    """It speaks other protocols than ours, as a plain IPFS node does: welcome, and no company."""


@dataclass(slots=True)
class _BackOff:
    failures: int = 0
    next_at: float = 0.0
    reason: str = ""


@dataclass(slots=True)
class _Kept:
    """An address that we keep dialling."""

    line: JoinLine
    always: bool
    dial: Dial = field(init=False)

    def __post_init__(self) -> None:
        self.dial = Dial(self.line.addresses[0], self.line.peer_id, "static" if self.always else "bootstrap")


class Membership:
    """A service: constructor without I/O, then `run`. Raises ConfigError for a malformed bootstrap or static peer."""

    def __init__(
        self,
        *,
        host: Host,
        hello: Hello,
        intake: Intake,
        peerbook: Peerbook,
        pubsub: PubSub,
        settings: NetworkConfig,
        now_ms: NowMs,
        random: Chance,
        connections_wanted: int = CONNECTIONS_WANTED,
    ) -> None:
        self._host = host
        self._hello = hello
        self._intake = intake
        self._peerbook = peerbook
        self._pubsub = pubsub
        self._now_ms = now_ms
        self._random = random
        self._wanted = min(connections_wanted, settings.connections_max)
        self._kept = [_Kept(line, False) for line in _lines("network.bootstrap", settings.bootstrap)]
        self._kept += [_Kept(line, True) for line in _lines("network.static_peers", settings.static_peers)]
        self._contacts: dict[PeerId, _Contact] = {}
        self._back_offs: dict[PeerId, _BackOff] = {}
        self._nursery: trio.Nursery | None = None
        self._greets = trio.CapacityLimiter(GREETS_AT_ONCE)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep connected until cancelled; the host must run. `started` at once."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            for kept in self._kept:
                nursery.start_soon(self._keep_dialling, kept)
            nursery.start_soon(self._keep_greeting)
            nursery.start_soon(self._keep_filling)
            nursery.start_soon(self._keep_refreshing)
            nursery.start_soon(self._listen)
            task_status.started()
            await trio.sleep_forever()

    async def join(self, text: str) -> PeerId:
        """Dial a join line or multiaddr now, greet the peer, and keep dialling it like a bootstrap peer.

        Raises JoinLineError or AddressError for the text, Unreachable and the like when nobody answers there.
        """
        line = parse_line(text)
        await self._connect(line)
        await self._hello.greet(line.peer_id)
        if all(kept.line.peer_id != line.peer_id for kept in self._kept):
            kept = _Kept(line, False)
            self._kept = [*self._kept[-JOINED_MAX:], kept]
            if self._nursery is not None:
                self._nursery.start_soon(self._keep_dialling, kept)
        return line.peer_id

    def report(self) -> MembershipReport:
        """How we stand in the network, and why we see nobody, in sentences."""
        connected = self._host.connected
        greeted = {peer for peer in connected if self._hello.greeted_at_ms(peer) is not None}
        failing = {
            peer: contact.reason
            for peer, contact in self._contacts.items()
            if contact.reason and peer in connected - greeted and not (contact.is_stranger and greeted)
        }
        dials = tuple(kept.dial for kept in self._kept)
        known = len(self._peerbook.peers(self._now_ms()))
        refused = {p: b.reason for p, b in self._back_offs.items() if p not in connected}
        said = findings(
            own=self._host.peer_id, dials=dials, connected=connected, greeted=greeted, known=known,
            failing=failing, undialled=refused, counts=self._intake.counts,
        )  # fmt: skip
        return MembershipReport(len(connected), len(greeted), known, dials, tuple(said))

    # Bootstrap and static peers.

    async def _keep_dialling(self, kept: _Kept) -> None:
        peer_id = kept.line.peer_id
        if peer_id == self._host.peer_id:
            return
        while True:
            if peer_id in self._host.connected:
                kept.dial.succeeded()
                await trio.sleep(LOOK_EVERY_SECONDS)
                continue
            if not kept.always and self._octonodes >= self._wanted:
                await trio.sleep(DIAL_FIRST_SECONDS)
                continue
            try:
                await self._connect(kept.line)
            except OctonodeError as error:
                kept.dial.failed(error.message)
                log.log(logging.WARNING if kept.dial.failures == 1 else logging.DEBUG, "%s", kept.dial.sentence)
                await trio.sleep(self._back_off(kept.dial.failures, DIAL_FIRST_SECONDS, DIAL_LAST_SECONDS))
            else:
                kept.dial.succeeded()

    async def _connect(self, line: JoinLine) -> None:
        """Try each address of the line. Raises the last fault."""
        for index, address in enumerate(line.addresses):
            try:
                await self._host.connect(address)
                return
            except (OctonodeError, ValueError) as error:
                if index + 1 == len(line.addresses):
                    if isinstance(error, OctonodeError):
                        raise
                    raise AddressError(str(error)) from None  # a websocket, say: read, and not dialled yet

    def _back_off(self, failures: int, first_seconds: float, last_seconds: float) -> float:
        wait_seconds = min(last_seconds, first_seconds * 2.0 ** min(failures - 1, 16))
        return wait_seconds * (0.75 + 0.5 * self._random.random())

    # Greeting.

    async def _keep_greeting(self) -> None:
        async with trio.open_nursery() as nursery:
            while True:
                connected = self._host.connected
                gone = [peer for peer in self._contacts if peer not in connected]
                for peer in gone:
                    del self._contacts[peer]
                self._hello.forget(gone)
                for peer in connected:
                    contact = self._contacts.setdefault(peer, _Contact())
                    if not contact.done and not contact.busy and contact.next_at <= trio.current_time():
                        contact.busy = True
                        nursery.start_soon(self._meet, peer, contact)
                await trio.sleep(LOOK_EVERY_SECONDS)

    async def _meet(self, peer_id: PeerId, contact: _Contact) -> None:
        async with self._greets:
            try:
                if self._hello.greeted_at_ms(peer_id) is None:
                    await self._hello.greet(peer_id)
                await self._hello.peers(peer_id)
                contact.done, contact.reason = True, ""
            except ProtocolNotSupported:
                contact.done = contact.is_stranger = True
                contact.reason = "it does not speak octonode's hello protocol"
            except OctonodeError as error:
                contact.failures += 1
                contact.reason = f"{error.code}: {error.message}"
                wait_seconds = self._back_off(contact.failures, GREET_FIRST_SECONDS, GREET_LAST_SECONDS)
                contact.next_at = trio.current_time() + wait_seconds
                log.debug("greeting %s failed: %s", peer_id, contact.reason)
            finally:
                contact.busy = False

    # Enough connections.

    @property
    def _octonodes(self) -> int:
        """Connected peers, but for those that are known to be none of ours: these do not keep us in the network."""
        contacts = (self._contacts.get(peer) for peer in self._host.connected)
        return sum(contact is None or not contact.is_stranger for contact in contacts)

    async def _keep_filling(self) -> None:
        while True:
            with trio.move_on_after(5.0 * (0.75 + 0.5 * self._random.random())):
                await self._intake.wait_news()
            await self._fill()
            await trio.sleep(0.1)

    async def _fill(self) -> None:
        missing = self._wanted - self._octonodes
        if missing <= 0:
            return
        now = trio.current_time()
        candidates = [
            announcement.peer_id
            for announcement in self._peerbook.peers(self._now_ms())
            if announcement.peer_id not in self._host.connected and self._may_try(announcement.peer_id, now)
        ]
        chosen = self._random.sample(candidates, min(missing, len(candidates)))
        limiter = trio.CapacityLimiter(DIALS_AT_ONCE)
        async with trio.open_nursery() as nursery:
            for peer_id in chosen:
                nursery.start_soon(self._try, peer_id, limiter)

    def _may_try(self, peer_id: PeerId, now: float) -> bool:
        back_off = self._back_offs.get(peer_id)
        return back_off is None or back_off.next_at <= now

    async def _try(self, peer_id: PeerId, limiter: trio.CapacityLimiter) -> None:
        async with limiter:
            try:
                await self._hello.greet(peer_id)
            except OctonodeError as error:
                back_off = self._back_offs.pop(peer_id, None) or _BackOff()
                back_off.failures += 1
                back_off.reason = f"{error.code}: {error.message}"
                wait_seconds = self._back_off(back_off.failures, PEER_FIRST_SECONDS, PEER_LAST_SECONDS)
                back_off.next_at = trio.current_time() + wait_seconds
                self._back_offs[peer_id] = back_off
                if len(self._back_offs) > BACK_OFFS_MAX:
                    del self._back_offs[next(iter(self._back_offs))]
            else:
                self._back_offs.pop(peer_id, None)

    # Hearing of others.

    async def _keep_refreshing(self) -> None:
        while True:
            await trio.sleep(REFRESH_SECONDS * (0.75 + 0.5 * self._random.random()))
            self._peerbook.expire(self._now_ms())
            greeted = sorted(p for p in self._host.connected if self._hello.greeted_at_ms(p) is not None)
            for peer_id in self._random.sample(greeted, min(1, len(greeted))):
                try:
                    await self._hello.peers(peer_id)
                except OctonodeError as error:
                    log.debug("%s named no peers: %s", peer_id, error.message)

    async def _listen(self) -> None:
        """Announcements by gossip. Only authors' own are taken: nobody speaks for another there."""
        async with await self._pubsub.subscribe(ANNOUNCE_TOPIC) as channel:
            async for author, data in channel:
                try:
                    self._intake.take(data, author, must_be_own=True)
                except OctonodeError as fault:
                    log.debug("gossip of %s dropped: %s", author, fault.message)


def _lines(where: str, texts: Sequence[str]) -> list[JoinLine]:
    """A multiaddr or a join line each. Raises ConfigError."""
    lines = []
    for text in texts:
        try:
            lines.append(parse_line(text))
        except OctonodeError as error:
            raise ConfigError(f"{where}: {error.message}") from None
    return lines
