"""Hosts of the in-memory network and the connections between them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

import trio

from octonode.config import NetworkConfig
from octonode.errors import Unreachable
from octonode.ids import PeerId, public_key_from_peer_id
from octonode.network.host import ProtocolNotSupported, Stream, StreamHandler
from octonode.network.serving import serve
from octonode.network.slots import INBOUND_SLACK, StreamSlots
from octonode.testing.flows import Flow, MemoryStream

if TYPE_CHECKING:
    from octonode.testing.network import MemoryNetwork

KNOWN_PEERS_MAX = 4096
ADDRESSES_PER_PEER_MAX = 16


def parse_address(address: str) -> tuple[str, int, PeerId]:
    """(ip, port, peer id) of `/ip4/IP/tcp/PORT/p2p/ID`. Raises ValueError."""
    parts = address.split("/")
    if len(parts) != 7 or parts[1] not in ("ip4", "ip6") or parts[3] != "tcp" or parts[5] != "p2p":
        raise ValueError(f"{address!r} is not /ip4/IP/tcp/PORT/p2p/ID")
    public_key_from_peer_id(parts[6])
    return parts[2], int(parts[4]), PeerId(parts[6])


class Connection:
    """Between two hosts, while both live and neither has hung up."""

    def __init__(self, network: MemoryNetwork, a: MemoryHost, b: MemoryHost) -> None:
        self._network = network
        self._ends = (a, b)
        self._slots = {host.peer_id: StreamSlots(host.config.streams_per_peer_max) for host in self._ends}
        self._inbound = {
            host.peer_id: StreamSlots(host.config.streams_per_peer_max + INBOUND_SLACK) for host in self._ends
        }
        self._pairs: dict[int, tuple[MemoryStream, MemoryStream]] = {}
        self._flows: dict[int, tuple[Flow, Flow]] = {}
        self._serial = 0
        self.healed = trio.lowlevel.ParkingLot()

    @property
    def flowing(self) -> bool:
        return self._network.hears(self._ends[0].peer_id, self._ends[1].peer_id)

    @property
    def latency_seconds(self) -> float:
        return self._network.latency_seconds

    @property
    def streams_open(self) -> int:
        return len(self._pairs)

    def far(self, near: MemoryHost) -> MemoryHost:
        return self._ends[1] if near is self._ends[0] else self._ends[0]

    def slots(self, near: MemoryHost) -> StreamSlots:
        """How many streams `near` opens to the far end."""
        return self._slots[near.peer_id]

    def inbound(self, near: MemoryHost) -> StreamSlots:
        """How many streams `near` takes from the far end."""
        return self._inbound[near.peer_id]

    def pair(self, near: MemoryHost, protocol: str) -> tuple[MemoryStream, MemoryStream]:
        """Both ends of a new stream, the near one first. Each takes over the slot that its host has acquired."""
        far = self.far(near)
        self._serial += 1
        serial = self._serial
        there, back = Flow(self, self._network.window_bytes), Flow(self, self._network.window_bytes)
        left = {near.peer_id, far.peer_id}

        def done(host: MemoryHost, slots: StreamSlots) -> None:
            slots.release()
            left.discard(host.peer_id)
            if not left:
                self._pairs.pop(serial, None)
                self._flows.pop(serial, None)

        near_done, far_done = partial(done, near, self.slots(near)), partial(done, far, self.inbound(far))
        ends = (
            MemoryStream(far.peer_id, protocol, outgoing=there, incoming=back, on_done=near_done),
            MemoryStream(near.peer_id, protocol, outgoing=back, incoming=there, on_done=far_done),
        )
        self._pairs[serial], self._flows[serial] = ends, (there, back)
        return ends

    def wake(self) -> None:
        self.healed.unpark_all()
        for there, back in self._flows.values():
            there.wake()
            back.wake()

    def drop(self) -> None:
        """Hang up: every stream is reset at both ends."""
        for host in self._ends:
            host.forget_connection(self.far(host).peer_id)
        for pair in list(self._pairs.values()):
            for stream in pair:
                stream.cut()
        self.wake()


class MemoryHost:
    """See `octonode.network.host.Host`. Made by `MemoryNetwork.node`."""

    def __init__(self, network: MemoryNetwork, peer_id: PeerId, config: NetworkConfig, *, ip: str, port: int) -> None:
        self._network = network
        self._peer_id = peer_id
        self.config = config
        self._place = (ip, port)
        self._handlers: dict[str, StreamHandler] = {}
        self._connections: dict[PeerId, Connection] = {}
        self._known: dict[PeerId, tuple[str, ...]] = {}
        self._nursery: trio.Nursery | None = None

    @property
    def peer_id(self) -> PeerId:
        return self._peer_id

    @property
    def running(self) -> bool:
        return self._nursery is not None

    @property
    def addresses(self) -> tuple[str, ...]:
        family = "ip6" if ":" in self._place[0] else "ip4"
        address = f"/{family}/{self._place[0]}/tcp/{self._place[1]}/p2p/{self._peer_id}"
        return (address,) if self.running else ()

    @property
    def muxer(self) -> str:
        return "memory"

    @property
    def connected(self) -> frozenset[PeerId]:
        return frozenset(self._connections)

    @property
    def streams_open(self) -> int:
        """Of all connections; a test may want it back at 0."""
        return sum(connection.streams_open for connection in self._connections.values())

    def handle(self, protocol: str, handler: StreamHandler) -> None:
        self._handlers[protocol] = handler

    def learn(self, peer_id: PeerId, addresses: tuple[str, ...]) -> None:
        good: list[str] = list(self._known.pop(peer_id, ()))
        for address in addresses:
            try:
                if parse_address(address)[2] == peer_id and address not in good:
                    good.append(address)
            except ValueError:
                continue
        self._known[peer_id] = tuple(good[-ADDRESSES_PER_PEER_MAX:])
        while len(self._known) > KNOWN_PEERS_MAX:
            del self._known[next(iter(self._known))]

    def observed_ip(self, peer_id: PeerId) -> str | None:
        connection = self._connections.get(peer_id)
        return connection.far(self)._place[0] if connection else None

    async def connect(self, address: str) -> PeerId:
        ip, port, peer_id = parse_address(address)
        self._require_running()
        await self._delay(peer_id)
        far = self._network.at((ip, port))
        if far is None or far.peer_id != peer_id or far is self:
            raise Unreachable(f"nobody with the id {peer_id} listens at {ip} port {port}")
        for host in (self, far):
            if peer_id not in self._connections and len(host._connections) >= host.config.connections_max:
                raise Unreachable(f"{host.peer_id} has {host.config.connections_max} connections, its limit")
        if peer_id not in self._connections:
            connection = Connection(self._network, self, far)
            self._connections[peer_id] = far._connections[self._peer_id] = connection
        self.learn(peer_id, (address,))
        return peer_id

    async def open(self, peer_id: PeerId, protocol: str) -> Stream:
        connection = self._connections.get(peer_id) or await self._dial(peer_id)
        slots = connection.slots(self)
        with trio.move_on_after(self.config.dial_timeout_seconds):
            await slots.acquire()
            try:
                return await self._negotiate(connection, protocol)
            except BaseException:
                slots.release()
                raise
        raise Unreachable(f"{peer_id} gave no stream within {self.config.dial_timeout_seconds:g} s")

    async def disconnect(self, peer_id: PeerId) -> None:
        connection = self._connections.get(peer_id)
        if connection is not None:
            connection.drop()
        await trio.lowlevel.checkpoint()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Listen until cancelled or killed; it may be run again afterwards."""
        assert not self.running
        async with trio.open_nursery() as self._nursery:
            self._network.listen(self, self._place)
            try:
                task_status.started()
                await trio.sleep_forever()
            finally:
                self._hang_up()

    # What the network and the services of the same node use.

    def die(self) -> None:
        nursery = self._nursery
        self._hang_up()
        if nursery is not None:
            nursery.cancel_scope.cancel()

    def wake(self) -> None:
        for connection in self._connections.values():
            connection.wake()

    def forget_connection(self, peer_id: PeerId) -> None:
        self._connections.pop(peer_id, None)

    def live_connections(self) -> Iterator[Connection]:
        return (connection for connection in tuple(self._connections.values()) if connection.flowing)

    def _hang_up(self) -> None:
        self._network.unlisten(self._place)
        self._nursery = None
        for connection in tuple(self._connections.values()):
            connection.drop()

    def _require_running(self) -> None:
        if not self.running:
            raise Unreachable("this host does not run")

    async def _delay(self, peer_id: PeerId) -> None:
        """The time that a dial takes; raises Unreachable where the peer does not hear us."""
        if not self._network.hears(self._peer_id, peer_id):
            await trio.sleep(self.config.dial_timeout_seconds)
            if not self._network.hears(self._peer_id, peer_id):
                raise Unreachable(f"{peer_id} did not answer within {self.config.dial_timeout_seconds:g} s")
        await trio.sleep(2 * self._network.latency_seconds)

    async def _dial(self, peer_id: PeerId) -> Connection:
        for address in self._known.get(peer_id, ()):
            try:
                await self.connect(address)
            except Unreachable:
                continue
            return self._connections[peer_id]
        raise Unreachable(f"no known address of {peer_id} answers")

    async def _negotiate(self, connection: Connection, protocol: str) -> MemoryStream:
        far = connection.far(self)
        await trio.sleep(2 * self._network.latency_seconds)
        while not connection.flowing:
            await connection.healed.park()
        if self._connections.get(far.peer_id) is not connection or far._nursery is None:
            raise Unreachable(f"the connection to {far.peer_id} is gone")
        handler = far._handlers.get(protocol)
        if handler is None:
            raise ProtocolNotSupported(f"{far.peer_id} does not speak {protocol}")
        if not connection.inbound(far).acquire_nowait():
            raise Unreachable(f"{far.peer_id} takes no more streams from us for now")
        near_end, far_end = connection.pair(self, protocol)
        far._nursery.start_soon(serve, handler, far_end)
        return near_end
