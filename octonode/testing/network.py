"""The in-memory twin of the network: hosts, streams, routing, values and gossip without a socket.

It passes the same conformance suite as the real transport (tests/network/conformance) and adds what a simulation
needs: `kill`, `silence`, `partition`, `heal`, latency. Time is trio's, so a MockClock makes hours of it instant.

    net = MemoryNetwork()
    a, b = net.node(key_a), net.node(key_b)
    await nursery.start(a.run)
    await nursery.start(b.run)
    await a.host.connect(b.host.addresses[0])
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import trio

from octonode.config import NetworkConfig
from octonode.ids import PeerId
from octonode.network.host import SelectRecord, ValidateRecord
from octonode.testing.connections import Connection, MemoryHost
from octonode.testing.records import MemoryPubSub, MemoryRouting, MemoryValues

__all__ = ["MemoryHost", "MemoryNetwork", "MemoryNode"]

STREAM_WINDOW_BYTES = 256 * 1024


def _refuse_all(key: str, value: bytes) -> None:
    raise ValueError(f"{key}: this network was given no validator of records")


def _first(key: str, values: list[bytes]) -> int:
    return 0


@dataclass(frozen=True, slots=True)
class MemoryNode:
    """One node's four services; the same shape as the real `Network`."""

    host: MemoryHost
    routing: MemoryRouting
    values: MemoryValues
    pubsub: MemoryPubSub

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        await self.host.run(task_status=task_status)


class MemoryNetwork:
    """The wire between in-memory hosts. `latency_seconds` is one way, for streams and for dials."""

    def __init__(self, *, window_bytes: int = STREAM_WINDOW_BYTES, latency_seconds: float = 0.0) -> None:
        self.window_bytes = window_bytes
        self.latency_seconds = latency_seconds
        self._nodes: dict[PeerId, MemoryNode] = {}
        self._listening: dict[tuple[str, int], MemoryHost] = {}
        self._silent: set[PeerId] = set()
        self._sides: tuple[frozenset[PeerId], ...] = ()
        self._ports = itertools.count(20_000)

    def node(
        self,
        peer_id: PeerId,
        config: NetworkConfig | None = None,
        *,
        validator: ValidateRecord = _refuse_all,
        select: SelectRecord = _first,
        ip: str = "127.0.0.1",
    ) -> MemoryNode:
        """A node that does not run yet. `config.listen` is not used: every host has a port of its own at `ip`."""
        config = config or NetworkConfig()
        host = MemoryHost(self, peer_id, config, ip=ip, port=next(self._ports))
        node = MemoryNode(
            host,
            MemoryRouting(self, host, record_ttl_seconds=config.announcement_ttl_seconds),
            MemoryValues(self, host, validator, select),
            MemoryPubSub(self, host),
        )
        self._nodes[peer_id] = node
        return node

    def kill(self, peer_id: PeerId) -> None:
        """The process is gone at once: its streams are reset at both ends, its handlers cancelled, `run` returns."""
        self._nodes[peer_id].host.die()

    def silence(self, *peers: PeerId) -> None:
        """Nothing goes from or to these peers, and nobody is told: a pulled cable, a stopped process."""
        self._silent.update(peers)

    def partition(self, *sides: Iterable[PeerId]) -> None:
        """Only peers of one side hear each other; a peer of no side hears everybody."""
        self._sides = tuple(frozenset(side) for side in sides)

    def heal(self) -> None:
        """End all silence and every partition; what waited arrives."""
        self._silent.clear()
        self._sides = ()
        for node in self._nodes.values():
            node.host.wake()

    # What hosts and services ask of the wire.

    def hears(self, a: PeerId, b: PeerId) -> bool:
        if a in self._silent or b in self._silent:
            return False
        side_a = [side for side in self._sides if a in side]
        side_b = [side for side in self._sides if b in side]
        return not side_a or not side_b or side_a == side_b

    def listen(self, host: MemoryHost, place: tuple[str, int]) -> None:
        self._listening[place] = host

    def unlisten(self, place: tuple[str, int]) -> None:
        self._listening.pop(place, None)

    def at(self, place: tuple[str, int]) -> MemoryHost | None:
        return self._listening.get(place)

    def connected_node(self, connection: Connection, near: MemoryHost) -> MemoryNode:
        return self._nodes[connection.far(near).peer_id]

    def within_reach(self, host: MemoryHost) -> Iterator[MemoryNode]:
        """Every other node that `host` reaches over live connections, in any number of hops, nearest first."""
        seen, ring = {host.peer_id}, [host]
        while ring:
            further: list[MemoryHost] = []
            for near in ring:
                for connection in near.live_connections():
                    node = self.connected_node(connection, near)
                    if node.host.peer_id not in seen:
                        seen.add(node.host.peer_id)
                        further.append(node.host)
                        yield node
            ring = further
