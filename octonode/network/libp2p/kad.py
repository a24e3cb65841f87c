"""Content routing and values over our own Kademlia network: see protocols/discovery.md."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import trio
from libp2p.kad_dht import kad_dht, peer_routing, provider_store, value_store
from libp2p.kad_dht.kad_dht import DHTMode, KadDHT
from libp2p.peer.id import ID
from libp2p.records.validator import NamespacedValidator, Validator
from libp2p.tools.anyio_service import TrioManager

from octonode.config import NetworkConfig
from octonode.errors import LocalProtocolError
from octonode.ids import KAD_PROTOCOL, PeerId, public_key_from_peer_id
from octonode.network.host import SelectRecord, ValidateRecord
from octonode.network.keys import KEY_BYTES, VALUE_NAMESPACES, in_namespace, multihash
from octonode.network.libp2p.host import Libp2pHost
from octonode.network.libp2p.kad_host import KadHost
from octonode.network.libp2p.kad_stores import (
    MESSAGE_BYTES_MAX,
    PROVIDERS_PER_KEY_MAX,
    VALUE_BYTES_MAX,
    CheckedValues,
    FreshProviders,
)
from octonode.network.libp2p.library import to_library_id, to_peer_id

log = logging.getLogger(__name__)

QUERY_SECONDS = 8.0
"""One request to one peer, a dial included."""
LOOKUP_SECONDS = 30.0
PARALLEL = 10
LOOKUPS_MAX = 4
"""At once; the next ones wait. Each may ask one peer several things, who has a bound for us."""
ASKED_MAX = 40
"""Peers asked for one key."""
INBOUND_REQUESTS_MAX = 64
PRUNE_SECONDS = 60.0
HEARSAY_SECONDS = 600
JOIN_PAUSE_SECONDS = 1.0
"""After the first peer is met, before we look for our own neighbourhood."""


class OctoValidator(Validator):  # type: ignore[misc]
    """Records of our namespaces: bounded here, judged by the validator from outside."""

    def __init__(self, validate: ValidateRecord, select: SelectRecord) -> None:
        self._validate = validate
        self._select = select

    def validate(self, key: str, value: bytes) -> None:
        if len(value) > VALUE_BYTES_MAX:
            raise ValueError(f"a value of {len(value)} bytes; at most {VALUE_BYTES_MAX} are kept")
        self._validate(key, value)

    def select(self, key: str, values: list[bytes]) -> int:
        return self._select(key, values)


class Kademlia:
    """`ContentRouting` and `ValueStore`. Made before the host runs; it serves while the host does."""

    def __init__(
        self,
        host: Libp2pHost,
        config: NetworkConfig,
        *,
        validator: ValidateRecord,
        select: SelectRecord,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._host = host
        self._judge = OctoValidator(validator, select)
        self._kad_host = KadHost(host.library, host.addresses_of)
        self._kad_host.admitted = self._admit
        self._neighbours_known = trio.Event()
        self._lookups = trio.CapacityLimiter(LOOKUPS_MAX)
        for module in (kad_dht, peer_routing, provider_store, value_store):
            module.MAX_DHT_MESSAGE_SIZE = MESSAGE_BYTES_MAX
        self._dht = self._build()
        routing = self._dht.peer_routing
        self._providers = FreshProviders(self._kad_host, routing, ttl_seconds=config.announcement_ttl_seconds, now=now)
        self._values = CheckedValues(self._kad_host, self._kad_host.get_id(), still_valid=self._still_valid)
        self._dht.provider_store, self._dht.value_store = self._providers, self._values
        host.guard.identified.append(self._identified)
        host.add_service("the routing table", self._run_table)
        host.add_service("the upkeep of records", self._prune)
        host.add_service("the look for neighbours", self._join)

    def _build(self) -> Any:
        dht = KadDHT(
            self._kad_host,
            DHTMode.SERVER,
            enable_random_walk=False,
            validator=NamespacedValidator(dict.fromkeys(VALUE_NAMESPACES, self._judge), strict_validation=True),
            validator_changed=True,
            strict_validation=True,
        )
        dht._inbound_limiter.total_tokens = INBOUND_REQUESTS_MAX
        return dht

    @property
    def table(self) -> frozenset[PeerId]:
        """The peers in the routing table."""
        return frozenset(to_peer_id(peer) for peer in self._dht.routing_table.get_peer_ids())

    # ContentRouting

    async def provide(self, key: bytes) -> bool:
        """False when no peer took the record."""
        async with self._lookups:
            with trio.move_on_after(LOOKUP_SECONDS):
                return bool(await self._providers.provide(multihash(key)))
        return False

    async def find_providers(self, key: bytes) -> tuple[PeerId, ...]:
        """Our own records and those of the peers nearest to the key, merged; at most 20, most often named first.

        So one peer that names twenty strangers does not hide those whom the others name.
        """
        assert len(key) == KEY_BYTES
        name = multihash(key)
        votes = Counter(to_peer_id(info.peer_id) for info in self._providers.get_providers(name))

        async def ask(peer: ID) -> list[ID]:
            providers, closer = await self._providers._get_providers_from_peer_with_closers(peer, name)
            named = {to_peer_id(info.peer_id): info for info in providers[:PROVIDERS_PER_KEY_MAX]}
            for peer_id, info in named.items():
                if _is_peer_id(peer_id):
                    votes[peer_id] += 1
                    self._learn(info)
            return list(closer)

        await self._walk(name, ask)
        return tuple(peer_id for peer_id, _ in votes.most_common(PROVIDERS_PER_KEY_MAX))

    # ValueStore

    async def put(self, key: str, value: bytes) -> bool:
        """False when no peer took it. Raises what the validator raises for our own record."""
        if not in_namespace(key):
            raise LocalProtocolError(f"{key!r} is in none of the namespaces {', '.join(VALUE_NAMESPACES)}")
        self._judge.validate(key, value)
        name = key.encode()
        taken: list[ID] = []
        kept = self._values.get(name)
        if kept is not None and self._judge.select(key, [kept.value, value]) == 0:
            return False
        self._values.put(name, value)
        async with self._lookups:
            await self._store(name, value, taken)
        return bool(taken)

    async def _store(self, name: bytes, value: bytes, taken: list[ID]) -> None:
        """Put a value at the peers nearest to it; those that took it are added to `taken`."""
        with trio.move_on_after(LOOKUP_SECONDS):
            nearest = await self._dht.peer_routing.find_closest_peers_network(name)

            async def store(peer: ID) -> list[ID]:
                if await self._values._store_at_peer(peer, name, value):
                    taken.append(peer)
                return []

            await self._each(nearest[:PROVIDERS_PER_KEY_MAX], store)

    async def get(self, key: str, timeout_seconds: float = LOOKUP_SECONDS) -> bytes | None:
        name = key.encode()
        kept = self._values.get(name)
        good: list[bytes] = [kept.value] if kept is not None else []

        async def ask(peer: ID) -> list[ID]:
            answer = await self._values._get_from_peer(peer, name, return_record=True, return_closer_peers=True)
            record, closer = answer if isinstance(answer, tuple) else (None, [])
            if record is not None and record.value not in good and self._still_valid(name, record.value):
                good.append(record.value)
            return list(closer)

        with trio.move_on_after(timeout_seconds):
            await self._walk(name, ask)
        return good[self._judge.select(key, good)] if good else None

    def _still_valid(self, name: bytes, value: bytes) -> bool:
        try:
            self._judge.validate(name.decode(), value)
        except Exception:
            return False
        return True

    # Walking towards a key

    async def _walk(self, name: bytes, ask: Callable[[ID], Any]) -> None:
        """Ask the peers nearest to `name`, then those that they name and that are nearer, at most 40 in all."""
        async with self._lookups:
            with trio.move_on_after(LOOKUP_SECONDS):
                await self._walk_on(name, ask)

    async def _walk_on(self, name: bytes, ask: Callable[[ID], Any]) -> None:
        nearest = await self._dht.peer_routing.find_closest_peers_network(name)
        asked: set[ID] = {self._kad_host.get_id()}
        while nearest and len(asked) < ASKED_MAX:
            round_ = [peer for peer in dict.fromkeys(nearest) if peer not in asked][: ASKED_MAX - len(asked)]
            asked.update(round_)
            further = await self._each(round_, ask)
            nearest = [peer for peer in further if peer not in asked and self._kad_host.speaks(peer)]

    async def _each(self, peers: list[ID], ask: Callable[[ID], Any]) -> list[ID]:
        """Ask all, ten at a time, each within its deadline; what they named."""
        named: list[ID] = []
        limit = trio.CapacityLimiter(PARALLEL)

        async def one(peer: ID) -> None:
            async with limit:
                with trio.move_on_after(QUERY_SECONDS):
                    try:
                        named.extend(await ask(peer))
                    except Exception as error:
                        log.debug("%s gave no answer: %r", peer, error)

        async with trio.open_nursery() as nursery:
            for peer in peers:
                if peer != self._kad_host.get_id():
                    nursery.start_soon(one, peer)
        return named

    # The table

    def _identified(self, peer: ID) -> None:
        if KAD_PROTOCOL in self._kad_host.get_peerstore().heard(peer):
            self._kad_host.proven(peer)
            self._admit(peer)
        else:
            self._kad_host.disproven(peer)
            self._dht.routing_table.remove_peer(peer)

    def _admit(self, peer: ID) -> None:
        self._host.spawn("admitting a peer to the table", self._add, peer)

    async def _add(self, peer: ID) -> None:
        if await self._dht.add_peer(peer):
            self._neighbours_known.set()

    def _learn(self, info: Any) -> None:
        """Hearsay: kept behind what the peer itself said, and for ten minutes."""
        self._host.library.get_peerstore().add_addrs(info.peer_id, info.addrs, HEARSAY_SECONDS)

    # Services

    async def _run_table(self) -> None:
        await TrioManager.run_service(self._dht)

    async def _join(self) -> None:
        """Once a peer is known: look for ourselves, so that our neighbours learn of us and we of them."""
        await self._neighbours_known.wait()
        await trio.sleep(JOIN_PAUSE_SECONDS)
        with trio.move_on_after(LOOKUP_SECONDS):
            await self._dht.peer_routing.find_closest_peers_network(to_library_id(self._host.peer_id).to_bytes())
        await trio.sleep_forever()

    async def _prune(self) -> None:
        while True:
            await trio.sleep(PRUNE_SECONDS)
            self._providers.cleanup_expired()
            self._values.cleanup_expired()


def _is_peer_id(text: str) -> bool:
    try:
        public_key_from_peer_id(text)
    except ValueError:
        return False
    return True
