"""Connections: dialled at every address we know, watched, retired when wedged, dropped without waiting."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import trio
from libp2p.network.exceptions import SwarmException
from libp2p.peer.id import ID
from multiaddr import Multiaddr

from octonode.errors import Unreachable
from octonode.network.libp2p.containment import contained
from octonode.network.libp2p.ground import Ground, Spawn
from octonode.network.libp2p.library import to_peer_id

log = logging.getLogger(__name__)

STAGGER_SECONDS = 0.25
"""The next address is tried so long after the last one, or as soon as it has failed."""
ADDRESSES_PER_DIAL_MAX = 8
DROP_SECONDS = 2.0
PULSE_SECONDS = 20.0
PULSE_TIMEOUT_SECONDS = 10.0
PULSES_MISSED_MAX = 2
"""Two, since one is also missed by a machine that has slept."""
RETIRE_SECONDS = 600.0
"""A wedged connection is left to its running streams for so long."""


@dataclass(slots=True)
class _Race:
    peer: ID
    won: Any = None
    failures: list[str] = field(default_factory=list)


class Links:
    """All connections of one host. `spawn(what, work, *args)` starts a contained task beside us."""

    def __init__(self, swarm: Any, ground: Ground, *, dial_timeout_seconds: float, spawn: Spawn) -> None:
        self._swarm = swarm
        self._ground = ground
        self._dial_timeout_seconds = dial_timeout_seconds
        self._spawn = spawn
        self._dialling: dict[ID, trio.Event] = {}
        self._retiring: set[Any] = set()
        self.pulse_seconds = PULSE_SECONDS
        self.pulse_timeout_seconds = PULSE_TIMEOUT_SECONDS

    def of(self, peer: ID) -> list[Any]:
        """Connections to a peer on which streams may be opened."""
        return [each for each in self._swarm.connections.get(peer, ()) if self._usable(each)]

    def _usable(self, connection: Any) -> bool:
        if connection.is_closed or connection in self._retiring:
            return False
        return self._ground.may_open(connection)

    def best(self, peer: ID) -> Any | None:
        """The one with the most streams, so that the others fall idle; None when there is none."""
        return max(self.of(peer), key=self._ground.streams_open, default=None)

    async def dial(self, peer: ID, addresses: Sequence[Multiaddr]) -> Any:
        """A connection to `peer`, an existing one if there is. Raises Unreachable."""
        while peer in self._dialling:
            await self._dialling[peer].wait()
            existing = self.best(peer)
            if existing is not None:
                return existing
        existing = self.best(peer)
        if existing is not None:
            return existing
        self._dialling[peer] = trio.Event()
        try:
            return await self._race(peer, addresses[:ADDRESSES_PER_DIAL_MAX])
        finally:
            self._dialling.pop(peer).set()

    async def _race(self, peer: ID, addresses: Sequence[Multiaddr]) -> Any:
        if not addresses:
            raise Unreachable(f"no address of {to_peer_id(peer)} is known; connect to a peer that knows it")
        race = _Race(peer)
        with trio.move_on_after(self._dial_timeout_seconds) as deadline:
            async with trio.open_nursery() as nursery:
                for address in addresses:
                    failed = trio.Event()
                    nursery.start_soon(self._attempt, race, address, failed, nursery.cancel_scope)
                    with trio.move_on_after(STAGGER_SECONDS):
                        await failed.wait()
        if race.won is not None:
            return race.won
        if deadline.cancelled_caught:
            race.failures.append(f"no answer within {self._dial_timeout_seconds:g} s")
        raise Unreachable(f"{to_peer_id(peer)} cannot be reached: {'; '.join(race.failures)}")

    async def _attempt(self, race: _Race, address: Multiaddr, failed: trio.Event, others: trio.CancelScope) -> None:
        try:
            race.won = await self._swarm._dial_addr_single_attempt(address, race.peer)
        except Exception as error:
            race.failures.append(f"{address}: {_reason(error)}")
            failed.set()
        else:
            others.cancel()

    def watch(self, connection: Any) -> None:
        """Ping the connection while it lives; one that misses two pings in a row is dropped."""
        self._spawn("the pulse of a connection", self._pulse, connection)

    async def _pulse(self, connection: Any) -> None:
        missed = 0
        while not connection.is_closed:
            with trio.move_on_after(self.pulse_seconds):
                await connection.event_closed.wait()
                return
            missed = 0 if await self._ground.ping(connection, self.pulse_timeout_seconds) else missed + 1
            if missed >= PULSES_MISSED_MAX:
                log.info("%s answers no more; its connection is dropped", to_peer_id(connection.muxed_conn.peer_id))
                await self.drop(connection)
                return

    def retire(self, connection: Any) -> None:
        """Open no more streams on this connection; drop it once those it has are done, or it answers no more.

        For a connection that opens no stream within its time: its far end may have lost its accept loop, which the
        library does not show, while the streams it has still run.
        """
        if connection not in self._retiring:
            self._retiring.add(connection)
            self._spawn("the end of a wedged connection", self._retire, connection)

    async def _retire(self, connection: Any) -> None:
        try:
            with trio.move_on_after(RETIRE_SECONDS):
                while (
                    self._ground.streams_open(connection)
                    and not connection.is_closed
                    and await self._ground.ping(connection, self.pulse_timeout_seconds)
                ):
                    with trio.move_on_after(1.0):
                        await connection.event_closed.wait()
            await self.drop(connection)
        finally:
            self._retiring.discard(connection)

    async def drop(self, connection: Any) -> None:
        """Close a connection within moments, whatever its peer does; every stream on it is reset. Never raises."""
        self._swarm.remove_conn(connection)
        with trio.move_on_after(DROP_SECONDS, shield=True):
            await contained("closing a connection", connection.close, level=logging.DEBUG)
        with trio.move_on_after(DROP_SECONDS, shield=True):
            # Without this a writer that waits for a silent peer would keep the socket, and us, for ever.
            await contained("closing a socket", connection.muxed_conn.secured_conn.close, level=logging.DEBUG)

    async def drop_peer(self, peer: ID) -> None:
        async with trio.open_nursery() as nursery:
            for connection in list(self._swarm.connections.get(peer, ())):
                nursery.start_soon(self.drop, connection)


def _reason(error: BaseException) -> str:
    """The library's errors say little; their causes say more."""
    while isinstance(error, SwarmException) and error.__cause__ is not None:
        error = error.__cause__
    return str(error) or type(error).__name__
