"""One stream as its reader and its writer see it: waits round the session's table, and nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio
from libp2p.abc import IMuxedStream
from libp2p.stream_muxer.exceptions import MuxedStreamClosed, MuxedStreamEOF, MuxedStreamReset

from octonode.network.libp2p.muxing.session import READ, WRITE
from octonode.network.libp2p.muxing.streams import RECEIVING, State, YamuxStream

if TYPE_CHECKING:
    from octonode.network.libp2p.muxing.connection import MuxedConnection

WRITES_PER_PASS = 16
"""A task that writes without ever having to wait lets the others run after so many writes."""


class MuxedStream(IMuxedStream):  # type: ignore[misc]
    """What the library asks of a stream of a muxer. One task may read and one may write, at the same time.

    Reads take nothing before they return, so one that is cancelled loses nothing. A write that is cancelled while it
    waits for room has either taken nothing, or all of its bytes will go.
    """

    def __init__(self, connection: MuxedConnection, row: YamuxStream) -> None:
        self.muxed_conn = self.conn = connection
        self.row = row
        self.stream_id = row.id
        self.protocol: str | None = None
        """What was chosen on an inbound stream, once it is."""
        self.is_accepted = False
        """Of a stream of the peer: it counts no more against `unaccepted_max`."""
        self._readable = trio.lowlevel.ParkingLot()
        self._writable = trio.lowlevel.ParkingLot()
        self._writes = 0

    def wake(self, what: int) -> None:
        if what & READ:
            self._readable.unpark_all()
        if what & WRITE:
            self._writable.unpark_all()

    @property
    def was_cut(self) -> bool:
        """By a reset of either end, or with the connection."""
        return self.row.state in (State.RESET, State.LOST)

    async def read(self, n: int | None = None) -> bytes:
        """At least one byte and at most `n`. Raises MuxedStreamEOF at the peer's end, MuxedStreamReset for a cut."""
        if n == 0:
            return b""
        await self.wait_readable()
        return self.conn.take(self.row, len(self.row.received) if n is None or n < 0 else n)

    def take(self, n: int) -> bytes:
        """What a read would give at once; empty where it would wait."""
        return self.conn.take(self.row, n) if self.row.received else b""

    async def wait_readable(self) -> None:
        """Until there are bytes. Raises as `read` does."""
        await trio.lowlevel.checkpoint_if_cancelled()
        row = self.row
        while not row.received:
            if row.state not in RECEIVING:
                if self.was_cut:
                    raise MuxedStreamReset("the stream was reset, or its connection is gone")
                raise MuxedStreamEOF("the peer has finished")
            self.conn.announce(row)
            await self._readable.park()
            self._writes = 0

    async def write(self, data: bytes) -> None:
        """Take all of `data`; waits while `pending_bytes_max` of it has not gone. No deadline: bring your own.

        Raises MuxedStreamReset for a cut, MuxedStreamClosed after `close`.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        row, pending_bytes_max = self.row, self.conn.limits.pending_bytes_max
        while row.pending_bytes >= pending_bytes_max:
            await self._wait_for_room()
        self._check_writable()
        self.conn.send(row, data)
        self._writes += 1
        if row.pending_bytes >= pending_bytes_max:
            while row.pending_bytes >= pending_bytes_max:
                await self._wait_for_room()
            self._check_writable()
        elif self._writes >= WRITES_PER_PASS:
            self._writes = 0
            await trio.lowlevel.cancel_shielded_checkpoint()

    async def _wait_for_room(self) -> None:
        self._writes = 0
        await self._writable.park()

    def _check_writable(self) -> None:
        if self.was_cut:
            raise MuxedStreamReset("the stream was reset, or its connection is gone")
        if not self.row.may_send:
            raise MuxedStreamClosed("the stream is finished for writing")

    async def close(self) -> None:
        """Half close: FIN after what is pending; reading goes on. Never waits."""
        self.conn.finish(self.row)
        await trio.lowlevel.cancel_shielded_checkpoint()

    async def close_write(self) -> None:
        """The library's name for it where a muxer tells the two ends apart."""
        await self.close()

    async def reset(self) -> None:
        """Cut both directions; a reader or writer that waits is woken. Never waits, and may be called again."""
        self.cut()
        await trio.lowlevel.cancel_shielded_checkpoint()

    def cut(self) -> None:
        """The same without a pass of the scheduler."""
        self.conn.reset(self.row)
        self.wake(READ | WRITE)

    def set_deadline(self, ttl: int) -> None:
        raise NotImplementedError("deadlines are trio's: move_on_after, fail_after")

    def get_remote_address(self) -> tuple[str, int] | None:
        address: tuple[str, int] | None = self.conn.get_remote_address()
        return address

    async def __aenter__(self) -> MuxedStream:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()
