"""A `Stream` of our own protocols, straight on a stream of our muxer.

Opened without waiting (0-RTT) it carries a proposal that the peer has not answered yet: the proposal goes with the
first bytes that are sent, and the answer is taken off before the first bytes that are read. A peer that refuses it
after all, or never answers, has the protocol taken from what it is known to speak: the next stream asks first.
"""

from __future__ import annotations

from collections.abc import Callable

import trio
from libp2p.stream_muxer.exceptions import MuxedStreamEOF, MuxedStreamError

from octonode.ids import PeerId
from octonode.network.host import StreamReset
from octonode.network.libp2p.muxing.muxed import MuxedStream
from octonode.network.libp2p.negotiation import NegotiationError, Proposal, conclude


class OwnStream:
    """See `octonode.network.host.Stream`. `on_done` is called once, when both directions have ended."""

    def __init__(
        self,
        muxed: MuxedStream,
        peer_id: PeerId,
        protocol: str,
        on_done: Callable[[], None] = lambda: None,
        *,
        proposal: Proposal | None = None,
    ) -> None:
        self._muxed = muxed
        self._peer_id = peer_id
        self._protocol = protocol
        self._on_done = on_done
        self._proposal = proposal
        self._unsent = proposal.first if proposal else b""
        self._done = False
        self._finished = False
        self._read_to_end = False

    @property
    def peer_id(self) -> PeerId:
        return self._peer_id

    @property
    def protocol(self) -> str:
        return self._protocol

    async def send(self, data: bytes) -> None:
        """A send that is cancelled leaves the stream in the middle of `data`: reset it."""
        assert not self._finished or self._done, "send after finish"
        if self._unsent:
            data, self._unsent = self._unsent + data, b""
        try:
            await self._muxed.write(data)
        except MuxedStreamError as error:
            await self.reset()
            raise StreamReset("the stream was cut while it was written to") from error

    async def receive(self, max_bytes: int = 65536) -> bytes:
        assert max_bytes > 0
        if self._read_to_end:
            await trio.lowlevel.checkpoint()
            return b""
        try:
            if self._proposal is not None:
                await self._take_answer(self._proposal)
            return await self._muxed.read(max_bytes)
        except MuxedStreamEOF:
            self._read_to_end = True
            self._note_end()
            return b""
        except (MuxedStreamError, NegotiationError) as error:
            await self.reset()
            raise StreamReset("the stream was reset, or its connection was lost") from error

    async def _take_answer(self, proposal: Proposal) -> None:
        if self._unsent:
            await self.send(b"")
        await conclude(self._muxed, proposal)
        self._proposal = None

    async def finish(self) -> None:
        if not self._finished and not self._done:
            self._finished = True
            if self._unsent and self._muxed.row.may_send:
                self._muxed.conn.send(self._muxed.row, self._unsent)
                self._unsent = b""
            self._muxed.conn.finish(self._muxed.row)
            self._note_end()
        await trio.lowlevel.checkpoint()

    async def reset(self) -> None:
        if not self._done:
            if self._proposal is not None:
                self._muxed.conn.proven.discard(self._protocol)
            self._muxed.cut()
            self._mark_done()
        await trio.lowlevel.cancel_shielded_checkpoint()

    def _note_end(self) -> None:
        if self._read_to_end and self._finished:
            self._mark_done()

    def _mark_done(self) -> None:
        if not self._done:
            self._done = True
            self._on_done()
