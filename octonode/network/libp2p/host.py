"""`Host` on the library: see `octonode.network.host.Host`, and guard.py for what stands between."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import trio
from libp2p.abc import INotifee
from libp2p.io.trio import TrioTCPStream
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.peer.id import ID
from multiaddr import Multiaddr

from octonode.config import NetworkConfig
from octonode.errors import Unreachable
from octonode.identity import NodeKey
from octonode.ids import PeerId
from octonode.network.addresses import Address, may_dial
from octonode.network.host import Stream, StreamHandler
from octonode.network.libp2p.containment import ContainedTasks, contained, supervised
from octonode.network.libp2p.dialling import may_dial_place
from octonode.network.libp2p.ground import Ground, Spawn, library_is_known
from octonode.network.libp2p.guard import Guard, close_broken
from octonode.network.libp2p.library import (
    ADDRESSES_PER_PEER_MAX,
    HANDSHAKE_SECONDS,
    build_library_host,
    dialable_place,
    parse_dial_address,
    to_library_id,
    to_peer_id,
)
from octonode.network.libp2p.links import Links
from octonode.network.libp2p.listener import Doorkeeper, bind, listening_places
from octonode.network.libp2p.own import OwnGround
from octonode.network.libp2p.stock import StockGround
from octonode.network.near import reached_ips
from octonode.network.serving import serve
from octonode.network.slots import StreamSlots

log = logging.getLogger(__name__)

CLOSE_SECONDS = 5.0
GIVEN_MAX = 1024
"""Addresses that the owner gave, of settings and join lines; beyond it, names into private networks are refused."""


class Libp2pHost:
    """One node's presence in the network. Constructed without I/O; `run` binds, listens and serves."""

    def __init__(self, key: NodeKey, config: NetworkConfig) -> None:
        self._peer_id = key.peer_id
        self._config = config
        self._places: tuple[str, ...] = ()
        self._known: dict[PeerId, tuple[Multiaddr, ...]] = {}
        self._given: set[Multiaddr] = set()
        """Names that this node's owner told us to dial; they may lead into private networks."""
        self._slots: dict[ID, StreamSlots] = {}
        self._services: list[tuple[str, Callable[[], Awaitable[None]]]] = []
        self._nursery: trio.Nursery | None = None
        self._ground = choose_ground(config, self.spawn)
        self.library = build_library_host(
            key, config, addresses=self._announced, secured=self._ground.secured, allows_name=self._allows_name
        )
        """The library's host, for kad.py and gossip.py."""
        self._swarm = self.library.get_network()
        self.links = Links(
            self._swarm, self._ground, dial_timeout_seconds=config.dial_timeout_seconds, spawn=self.spawn
        )
        self.guard = Guard(
            self.library,
            self._ground,
            self.links,
            connections_max=config.connections_max,
            addresses_of=self.addresses_of,
            spawn=self.spawn,
        )
        self._ground.install(self.library, self.guard.admit)
        self._doorkeeper = Doorkeeper(self._upgrade)

    @property
    def muxer(self) -> str:
        return self._ground.live()

    @property
    def peer_id(self) -> PeerId:
        return self._peer_id

    @property
    def addresses(self) -> tuple[str, ...]:
        return tuple(f"{place}/p2p/{self._peer_id}" for place in self._places)

    @property
    def connected(self) -> frozenset[PeerId]:
        return frozenset(to_peer_id(peer) for peer in list(self._swarm.connections) if self.links.of(peer))

    def add_service(self, what: str, work: Callable[[], Awaitable[None]]) -> None:
        """Have `work` run beside the host, started again whenever it ends. Before `run` only."""
        assert self._nursery is None
        self._services.append((what, work))

    def handle(self, protocol: str, handler: StreamHandler) -> None:
        self._ground.handle(protocol, partial(self._serve, handler))

    async def connect(self, address: str) -> PeerId:
        place, peer_id = parse_dial_address(address)
        if peer_id == self._peer_id:
            raise Unreachable(f"{address} is our own address")
        self._require_running()
        if len(self._given) < GIVEN_MAX:
            self._given.add(place)
        await self.links.dial(to_library_id(peer_id), [place])
        self.learn(peer_id, (address,))
        return peer_id

    async def open(self, peer_id: PeerId, protocol: str) -> Stream:
        peer = to_library_id(peer_id)
        self._require_running()
        slots = self._slots.get(peer)
        if slots is None:
            slots = self._slots[peer] = StreamSlots(self._ground.streams_per_peer_max)
        await self._acquire(slots, peer_id)
        self.guard.entered(peer)

        async def begin(connection: Any) -> Stream:
            return await self._ground.open(connection, peer_id, protocol, partial(self._release, peer, slots))

        try:
            return await self.guard.open(peer, [protocol], begin)
        except BaseException:
            self._release(peer, slots)
            raise

    async def _acquire(self, slots: StreamSlots, peer_id: PeerId) -> None:
        if slots.acquire_nowait():
            await trio.lowlevel.checkpoint_if_cancelled()
            return
        with trio.move_on_after(self._config.dial_timeout_seconds) as deadline:
            await slots.acquire()
        if deadline.cancelled_caught:
            raise Unreachable(f"no stream to {peer_id} became free within {self._config.dial_timeout_seconds:g} s")

    async def disconnect(self, peer_id: PeerId) -> None:
        await self.links.drop_peer(to_library_id(peer_id))

    def learn(self, peer_id: PeerId, addresses: tuple[str, ...]) -> None:
        places = list(self._known.pop(peer_id, ()))
        for address in addresses:
            try:
                place, owner = parse_dial_address(address)
            except ValueError:
                continue
            if owner == peer_id:
                places = [place, *(each for each in places if each != place)]
        if places:
            self._known[peer_id] = tuple(places[:ADDRESSES_PER_PEER_MAX])
        while len(self._known) > self._config.peerbook_peers_max:
            del self._known[next(iter(self._known))]

    def observed_ip(self, peer_id: PeerId) -> str | None:
        connection = self.links.best(to_library_id(peer_id))
        remote = connection.muxed_conn.get_remote_address() if connection else None
        return str(remote[0]).removeprefix("::ffff:") if remote else None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        assert self._nursery is None, "a host runs once"
        listener = await bind(self._config.listen)
        self._places = listening_places(listener)
        log.log(
            logging.INFO if self.muxer == self._config.muxer else logging.ERROR,
            "streams are carried by the muxer %s; network.muxer is %s", self.muxer, self._config.muxer,
        )  # fmt: skip
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            manager = ContainedTasks(self.spawn, close_broken)
            self.guard.install(manager, nursery)
            self._swarm.register_notifee(_Watcher(self.guard))
            await nursery.start(self._doorkeeper.serve, listener)
            for what, work in self._services:
                nursery.start_soon(supervised, what, work)
            task_status.started()
            try:
                await trio.sleep_forever()
            finally:
                with trio.move_on_after(CLOSE_SECONDS, shield=True):
                    manager.finish()
                    await self._close()
                nursery.cancel_scope.cancel()

    async def _close(self) -> None:
        async with trio.open_nursery() as nursery:
            for peer in list(self._swarm.connections):
                nursery.start_soon(self.links.drop_peer, peer)

    def spawn(self, what: str, work: Callable[..., Awaitable[Any]], *args: Any) -> None:
        """Run a task of the library beside the host; what it raises goes to the log at DEBUG."""
        assert self._nursery is not None
        self._nursery.start_soon(partial(contained, level=logging.DEBUG), what, work, *args)

    async def _upgrade(self, stream: trio.SocketStream) -> None:
        with trio.fail_after(2 * HANDSHAKE_SECONDS):
            await self._swarm.upgrade_inbound_raw_conn(RawConnection(TrioTCPStream(stream), False), "listener")

    async def _serve(self, handler: StreamHandler, peer: ID, stream: Stream) -> None:
        self.guard.entered(peer)
        try:
            await serve(handler, stream)
        finally:
            self.guard.left(peer)

    def _release(self, peer: ID, slots: StreamSlots) -> None:
        slots.release()
        self.guard.left(peer)
        if slots.in_use == 0 and slots.waiting == 0 and self._slots.get(peer) is slots:
            del self._slots[peer]

    def _require_running(self) -> None:
        if self._nursery is None:
            raise Unreachable("this host does not run")

    def addresses_of(self, peer: ID) -> list[Multiaddr]:
        """What we were told comes first, then what the library has heard from identify and from the table.

        The latter only under the rule for near addresses, which whoever told us the former has gone by.
        """
        known = list(self._known.get(to_peer_id(peer), ()))
        reached = reached_ips(self)
        try:
            heard = self.library.get_peerstore().addrs(peer)
        except Exception:
            heard = []
        for address in heard:
            place = dialable_place(address)
            if place is not None and place not in known and may_dial_place(place, reached):
                known.append(place)
        return known

    def _allows_name(self, name: Multiaddr, address: Address) -> bool:
        return name in self._given or may_dial(address, reached_ips(self))

    def _announced(self) -> list[Multiaddr]:
        """What identify and the routing table say of us."""
        given = [address.split("/p2p/")[0] for address in self._config.announce_addresses]
        return [Multiaddr(place) for place in given or self._places]


def choose_ground(config: NetworkConfig, spawn: Spawn) -> Ground:
    """What `network.muxer` says; the library's own where it is not the version that ours is written for."""
    if config.muxer == "own" and library_is_known():
        return OwnGround(
            streams_per_peer_max=config.streams_per_peer_max,
            received_bytes_max=config.received_bytes_per_connection_max,
        )
    return StockGround(streams_per_peer_max=config.streams_per_peer_max, spawn=spawn)


class _Watcher(INotifee):  # type: ignore[misc]
    """Tells the guard of connections; the library asks for the other four methods too."""

    def __init__(self, guard: Guard) -> None:
        self._guard = guard

    async def connected(self, network: Any, conn: Any) -> None:
        self._guard.connected(conn)

    async def disconnected(self, network: Any, conn: Any) -> None:
        self._guard.disconnected(conn)

    async def opened_stream(self, network: Any, stream: Any) -> None: ...

    async def closed_stream(self, network: Any, stream: Any) -> None: ...

    async def listen(self, network: Any, multiaddr: Any) -> None: ...

    async def listen_close(self, network: Any, multiaddr: Any) -> None: ...
