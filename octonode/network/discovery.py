"""Who serves or holds a model, and who can show a manifest: peerbook, connected peers and the DHT, merged.

A record in the DHT is a hint: whoever it names is asked by hello, and only a fresh signed announcement counts.
Searches for one thing at the same time are one search; each ends when all are asked, a moment after the first find, or
at its deadline.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, field

import trio

from octonode.errors import OctonodeError
from octonode.ids import PeerId
from octonode.network import keys
from octonode.network.addresses import GatewayAddress, gateway_of
from octonode.network.clock import Chance, NowMs
from octonode.network.hello import Hello
from octonode.network.host import ContentRouting, Host, ValueStore
from octonode.network.intake import Intake
from octonode.network.peerbook import Peerbook
from octonode.network.roots import root_digest
from octonode.protocol.announcement import Announcement

log = logging.getLogger(__name__)

FIND_TIMEOUT_SECONDS = 15.0
SETTLE_SECONDS = 1.0
"""After the first find: how long others are still waited for."""
ASKED_PEERS_MAX = 8
"""Connected peers asked for one thing, drawn at random."""
ASKED_AT_ONCE = 8
PROVIDERS_MAX = 20
SEARCHES_MAX = 16
"""At the same time; further ones wait."""
MANIFESTS_MAX = 16
WRONG_MANIFESTS_MAX = 4
"""Those that are not what was asked for: enough to say who showed them."""

Genuine = Callable[[bytes], Awaitable[bool]]
"""Whether the bytes that a peer showed are a manifest that was asked for, rightly signed."""


async def any_bytes(data: bytes) -> bool:
    await trio.lowlevel.checkpoint()
    return True


@dataclass(frozen=True, slots=True)
class Holder:
    """Who has blocks of a model, with the address of the gateway to fetch them from; None where there is none."""

    announcement: Announcement
    gateway: GatewayAddress | None


@dataclass(frozen=True, slots=True)
class FoundManifest:
    """A signed manifest as a peer showed it, not verified: several peers may show different ones."""

    data: bytes
    peer_id: PeerId


@dataclass(slots=True)
class _Flight:
    ended: trio.Event = field(default_factory=trio.Event)
    whole: bool = False


class Discovery:
    """Finds. No task of its own. Faults of the network make a search find less; they are not raised."""

    def __init__(
        self,
        *,
        host: Host,
        hello: Hello,
        intake: Intake,
        peerbook: Peerbook,
        routing: ContentRouting,
        values: ValueStore,
        now_ms: NowMs,
        random: Chance,
        timeout_seconds: float = FIND_TIMEOUT_SECONDS,
    ) -> None:
        self._host = host
        self._hello = hello
        self._intake = intake
        self._peerbook = peerbook
        self._routing = routing
        self._values = values
        self._now_ms = now_ms
        self._random = random
        self._timeout_seconds = timeout_seconds
        self._flights: dict[tuple[str, str], _Flight] = {}
        self._searches = trio.CapacityLimiter(SEARCHES_MAX)

    def known(self, root: str) -> list[Announcement]:
        """Fresh announcements at hand of peers that serve `root`. Asks nobody."""
        return self._peerbook.serving(root, self._now_ms())

    async def find(self, root: str) -> list[Announcement]:
        """Peers that serve `root`, asked of the network as well. Raises RootError when `root` is no CID."""
        key = keys.serve_key(root_digest(root))
        await self._search("serve", root, key, lambda: self.known(root))
        with trio.move_on_after(SETTLE_SECONDS):  # changes are announced once a second: one may be on its way
            while not self.known(root):
                await self._intake.wait_news()
        return self.known(root)

    async def serving(self, root: str) -> list[Announcement]:
        """The same as `find`."""
        return await self.find(root)

    async def holders(self, root: str, *, ask: bool = True) -> list[Holder]:
        """Peers that hold blocks of `root`, wholly or in part; connected now, where they can be reached.

        Without `ask` the network is not searched: what peers announced by themselves is what is known.
        Raises RootError.
        """
        key = keys.blocks_key(root_digest(root))

        def known() -> list[Announcement]:
            return self._peerbook.holding(root, self._now_ms())

        if ask:
            await self._search("blocks", root, key, known)
        await self._connect_all([announcement.peer_id for announcement in known()])
        found = []
        for announcement in known():
            observed = self._host.observed_ip(announcement.peer_id)
            gateway = gateway_of(announcement.peer_id, announcement.gateway_port, observed)
            if observed is not None:
                found.append(Holder(announcement, gateway))
        return found

    async def gateways(self, root: str) -> list[GatewayAddress]:
        """Where blocks of `root` can be fetched. Raises RootError."""
        return [holder.gateway for holder in await self.holders(root) if holder.gateway is not None]

    async def find_manifest(self, publisher: PeerId, name: str, genuine: Genuine = any_bytes) -> list[FoundManifest]:
        """Distinct signed manifests under a name, as shown by peers: verify each, take the highest sequence.

        The search settles on what is `genuine` alone, which comes first; a few of the others follow.
        """
        known = [a.peer_id for a in self._peerbook.named(publisher, name, self._now_ms())]
        key = keys.name_key(publisher, name)
        return await self._gather_manifests(
            known, key, lambda peer: self._hello.manifest(peer, publisher, name), genuine
        )

    async def find_manifest_by_cid(self, cid: str, genuine: Genuine = any_bytes) -> list[FoundManifest]:
        """Distinct answers of peers to a manifest CID: the caller checks which one has it. Raises RootError."""
        known = [a.peer_id for a in self._peerbook.manifest(cid, self._now_ms())]
        key = keys.blocks_key(root_digest(cid))
        return await self._gather_manifests(known, key, lambda peer: self._hello.manifest_by_cid(peer, cid), genuine)

    # Models.

    async def _search(self, kind: str, root: str, key: bytes, found: Callable[[], Sequence[Announcement]]) -> None:
        async def ask(peer_id: PeerId) -> None:
            await self._hello.providers(peer_id, root)

        async def search() -> None:
            async with self._searches:
                await self._until_settled(
                    lambda: bool(found()),
                    lambda: self._ask_around(ask, self._some_connected(), key, lambda: {a.peer_id for a in found()}),
                )

        await self._once((kind, root), search)

    async def _once(self, what: tuple[str, str], search: Callable[[], Awaitable[None]]) -> None:
        """Run `search`, or wait for the one that runs; when that one is cancelled, run our own."""
        while (running := self._flights.get(what)) is not None:
            await running.ended.wait()
            if running.whole:
                return
        flight = self._flights[what] = _Flight()
        try:
            await search()
            flight.whole = True
        finally:
            del self._flights[what]
            flight.ended.set()

    async def _until_settled(self, found: Callable[[], bool], work: Callable[[], Awaitable[None]]) -> None:
        with trio.move_on_after(self._timeout_seconds):
            async with trio.open_nursery() as nursery:

                async def settle() -> None:
                    while not found():
                        await self._intake.wait_news()
                    await trio.sleep(SETTLE_SECONDS)
                    nursery.cancel_scope.cancel()

                nursery.start_soon(settle)
                await work()
                nursery.cancel_scope.cancel()

    async def _ask_around(
        self,
        ask: Callable[[PeerId], Awaitable[None]],
        first: Collection[PeerId],
        key: bytes,
        enough: Callable[[], Collection[PeerId]],
    ) -> None:
        """Ask the `first` peers, and at the same time those whom the DHT names for `key`, except `enough`."""
        limiter = trio.CapacityLimiter(ASKED_AT_ONCE)
        asked: set[PeerId] = {self._host.peer_id}

        async def ask_one(peer_id: PeerId) -> None:
            async with limiter:
                await self._ask_peer(peer_id, ask)

        async def ask_named(nursery: trio.Nursery) -> None:
            for peer_id in (await self._named_by_dht(key))[:PROVIDERS_MAX]:
                if peer_id not in asked and peer_id not in enough():
                    asked.add(peer_id)
                    nursery.start_soon(ask_one, peer_id)

        async with trio.open_nursery() as nursery:
            for peer_id in first:
                asked.add(peer_id)
                nursery.start_soon(ask_one, peer_id)
            nursery.start_soon(ask_named, nursery)

    def _some_connected(self) -> list[PeerId]:
        connected = sorted(self._host.connected)
        return self._random.sample(connected, min(ASKED_PEERS_MAX, len(connected)))

    async def _named_by_dht(self, key: bytes) -> tuple[PeerId, ...]:
        try:
            return await self._routing.find_providers(key)
        except OctonodeError as error:
            log.debug("the DHT gave no providers: %s", error.message)
            return ()

    async def _ask_peer(self, peer_id: PeerId, ask: Callable[[PeerId], Awaitable[None]]) -> None:
        """Ask; where the peer cannot be dialled, learn its addresses from its value record and ask again."""
        for attempt in range(2):
            try:
                await ask(peer_id)
                return
            except OctonodeError as error:
                log.debug("%s was asked in vain: %s: %s", peer_id, error.code, error.message)
                if error.code != "UNREACHABLE" or attempt or not await self._learn_from_record(peer_id):
                    return

    async def _learn_from_record(self, peer_id: PeerId) -> bool:
        if peer_id in self._host.connected:
            return False
        try:
            data = await self._values.get(keys.record_key(peer_id))
            if data is None:
                return False
            self._intake.take(data, peer_id, must_be_own=True)
        except OctonodeError as error:
            log.debug("the record of %s is of no use: %s", peer_id, error.message)
            return False
        return True

    async def _connect_all(self, peers: Sequence[PeerId]) -> None:
        """A gateway's host is known from a connection alone."""
        limiter = trio.CapacityLimiter(ASKED_AT_ONCE)

        async def greet(peer_id: PeerId) -> None:
            await self._hello.greet(peer_id)

        async def connect(peer_id: PeerId) -> None:
            async with limiter:
                await self._ask_peer(peer_id, greet)

        with trio.move_on_after(self._timeout_seconds):
            async with trio.open_nursery() as nursery:
                for peer_id in peers[:PROVIDERS_MAX]:
                    if self._host.observed_ip(peer_id) is None:
                        nursery.start_soon(connect, peer_id)

    # Manifests.

    async def _gather_manifests(
        self, known: Sequence[PeerId], key: bytes, fetch: Callable[[PeerId], Awaitable[bytes | None]], genuine: Genuine
    ) -> list[FoundManifest]:
        found: dict[bytes, FoundManifest] = {}
        wrong: dict[bytes, FoundManifest] = {}
        first = trio.Event()

        async def ask(peer_id: PeerId) -> None:
            data = await fetch(peer_id)
            if data is None or data in found or data in wrong:
                return
            if not await genuine(data):
                if len(wrong) < WRONG_MANIFESTS_MAX:
                    wrong[data] = FoundManifest(data, peer_id)
            elif len(found) < MANIFESTS_MAX:
                found[data] = FoundManifest(data, peer_id)
                first.set()

        async def settle(scope: trio.CancelScope) -> None:
            await first.wait()
            await trio.sleep(SETTLE_SECONDS)
            scope.cancel()

        asked = tuple(dict.fromkeys([*known[:ASKED_PEERS_MAX], *self._some_connected()]))
        with trio.move_on_after(self._timeout_seconds):
            async with self._searches, trio.open_nursery() as nursery:
                nursery.start_soon(settle, nursery.cancel_scope)
                await self._ask_around(ask, asked, key, tuple)
                nursery.cancel_scope.cancel()
        return [*found.values(), *wrong.values()]
