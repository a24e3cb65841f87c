"""Our own ground: `muxing`, `noise` and `negotiation` under the library's host (protocols/decisions/0009).

Streams of our own protocols run straight on the muxer: no `NetStream`, no notifications, no lock. The first of a
protocol on a connection is negotiated in one round trip; the next ones in none, since the peer is known to take it. The
library's own protocols (identify, Kademlia, gossip) are negotiated here as well and then go the library's way.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, Literal

import trio
from libp2p.custom_types import TProtocol
from libp2p.network.stream.net_stream import NetStream
from libp2p.peer.id import ID
from libp2p.stream_muxer.exceptions import MuxedStreamError
from libp2p.stream_muxer.muxer_multistream import MuxerMultistream

from octonode.ids import PeerId
from octonode.network.host import ProtocolNotSupported, Stream, StreamReset
from octonode.network.libp2p.ground import Admit, Serve, Wedged
from octonode.network.libp2p.library import NEGOTIATION_SECONDS, to_peer_id
from octonode.network.libp2p.muxing import frames
from octonode.network.libp2p.muxing.connection import MuxedConnection
from octonode.network.libp2p.muxing.muxed import MuxedStream
from octonode.network.libp2p.muxing.windows import Limits
from octonode.network.libp2p.negotiation import NegotiationError, NotSupported, Proposal, Selection, propose
from octonode.network.libp2p.noise import NoiseChannel
from octonode.network.libp2p.own_stream import OwnStream

log = logging.getLogger(__name__)


class OwnGround:
    """See `Ground`."""

    name: Literal["own", "stock"] = "own"

    def __init__(self, *, streams_per_peer_max: int, received_bytes_max: int) -> None:
        self.streams_per_peer_max = streams_per_peer_max
        self._limits = Limits(received_bytes_max=max(received_bytes_max, frames.INITIAL_WINDOW_BYTES))
        self._handlers: dict[str, Serve] = {}
        self._admit: Admit | None = None
        self._host: Any = None

    def secured(self, session: Any) -> NoiseChannel:
        return NoiseChannel(session)

    def install(self, library_host: Any, admit: Admit) -> None:
        upgrader = library_host.get_network().upgrader
        assert isinstance(upgrader.muxer_multistream, MuxerMultistream)
        upgrader.muxer_multistream = _Muxers(upgrader.muxer_multistream.negotiate_timeout, self._connection)
        self._host, self._admit = library_host, admit

    def live(self) -> str:
        swarm = self._host.get_network()
        classes = {type(each.muxed_conn) for each in swarm.get_connections()}
        if not isinstance(swarm.upgrader.muxer_multistream, _Muxers):
            classes.add(type(swarm.upgrader.muxer_multistream))
        strangers = sorted(each.__name__ for each in classes - {MuxedConnection})
        return ", ".join(strangers) or self.name

    def _connection(self, channel: Any, peer: ID) -> MuxedConnection:
        return MuxedConnection(channel, peer, limits=self._limits, serve=self._serve_inbound)

    def handle(self, protocol: str, serve: Serve) -> None:
        self._handlers[protocol] = serve
        # For identify, which says what we speak; the library itself never comes to serve it.
        self._host.multiselect.add_handler(TProtocol(protocol), None)

    # What peers open.

    async def _serve_inbound(self, stream: MuxedStream) -> None:
        try:
            stream.protocol = await self._select(stream)
        except (NegotiationError, MuxedStreamError) as fault:
            log.debug("a stream of %s chose no protocol: %r", to_peer_id(stream.conn.peer_id), fault)
        stream.conn.accepted(stream)
        if stream.protocol is None:
            await stream.reset()
        elif (serve := self._handlers.get(stream.protocol)) is not None:
            assert self._admit is not None
            peer = stream.conn.peer_id
            ours = OwnStream(stream, to_peer_id(peer), stream.protocol)
            await self._admit(peer, stream, serve, peer, ours)
        else:
            stream.conn.offer(stream)

    async def _select(self, stream: MuxedStream) -> str | None:
        """What the peer has chosen; None where it did not in time. Raises NegotiationError, or that the stream ended.

        Mostly all it says is at hand. Our answer waits for what the handler has to say at once, and goes with it.
        """
        selection = Selection(self._supports, self._listing)
        _select_at_hand(stream, selection)
        if selection.chosen is None:
            with trio.move_on_after(NEGOTIATION_SECONDS):
                while selection.chosen is None:
                    await stream.wait_readable()
                    _select_at_hand(stream, selection)
        return selection.chosen

    def _supports(self, protocol: str) -> bool:
        return protocol in self._host.multiselect.handlers

    def _listing(self) -> list[str]:
        return [protocol for protocol in self._host.multiselect.handlers if protocol]

    async def serve(self, net_stream: Any) -> None:
        protocol = net_stream.muxed_stream.protocol
        handler = self._host.multiselect.handlers.get(protocol)
        if handler is None:
            await net_stream.reset()
            return
        net_stream.set_protocol(protocol)
        await handler(net_stream)

    # What we open.

    def may_open(self, connection: Any) -> bool:
        return bool(connection.muxed_conn.may_open)

    def streams_open(self, connection: Any) -> int:
        return int(connection.muxed_conn.streams_open)

    async def ping(self, connection: Any, timeout_seconds: float) -> bool:
        return bool(await connection.muxed_conn.ping(timeout_seconds))

    async def open(self, connection: Any, peer_id: PeerId, protocol: str, on_done: Callable[[], None]) -> Stream:
        muxed: MuxedConnection = connection.muxed_conn
        stream = await _opened(muxed)
        if protocol in muxed.proven:
            return OwnStream(stream, peer_id, protocol, on_done, proposal=Proposal([protocol]))
        await _negotiate(stream, [protocol])
        return OwnStream(stream, peer_id, protocol, on_done)

    async def open_for_library(self, connection: Any, protocols: Sequence[str]) -> NetStream:
        stream = await _opened(connection.muxed_conn)
        chosen = await _negotiate(stream, protocols)
        net_stream = await connection._add_stream(stream)
        net_stream.set_protocol(TProtocol(chosen))
        return net_stream


def _select_at_hand(stream: MuxedStream, selection: Selection) -> None:
    answer = b""
    while selection.chosen is None and (data := stream.take(selection.wanted_bytes)):
        answer += selection.receive(data)
    answer += selection.greeting()
    if answer and stream.row.may_send:
        stream.conn.send_soon(stream.row, answer)


async def _opened(muxed: MuxedConnection) -> MuxedStream:
    if not muxed.has_ack_backlog:
        return await muxed.open_stream()
    with trio.move_on_after(NEGOTIATION_SECONDS):
        return await muxed.open_stream()
    raise Wedged(f"{muxed.limits.ack_backlog_max} streams wait to be acknowledged for {NEGOTIATION_SECONDS:g} s")


async def _negotiate(stream: MuxedStream, protocols: Sequence[str]) -> str:
    chosen = ""
    try:
        with trio.move_on_after(NEGOTIATION_SECONDS):
            chosen = await propose(stream, protocols)
            stream.conn.proven.add(chosen)
            return chosen
    except NotSupported:
        raise ProtocolNotSupported(f"the peer does not speak {' or '.join(protocols)}") from None
    except (MuxedStreamError, NegotiationError) as error:
        if stream.conn.event_shutting_down.is_set():
            raise
        raise StreamReset("the peer cut the stream as it was opened") from error
    finally:
        if not chosen:
            with trio.CancelScope(shield=True):
                await stream.reset()
    raise Wedged(f"no answer within {NEGOTIATION_SECONDS:g} s")


class _Muxers(MuxerMultistream):  # type: ignore[misc]
    """The library's negotiation of the muxer, which knows one protocol and makes our connections of it.

    The library's own `new_conn` builds its `Yamux` whatever class was registered for the protocol.
    """

    def __init__(self, negotiate_timeout: int, connection: Callable[[Any, ID], MuxedConnection]) -> None:
        super().__init__({TProtocol(frames.PROTOCOL): MuxedConnection}, negotiate_timeout)
        self._connection = connection

    async def new_conn(self, conn: Any, peer_id: ID) -> MuxedConnection:
        protocol, _ = await self._selector.select(conn, conn.is_initiator, self.negotiate_timeout)
        muxed = self._annotate_connection(self._connection(conn, peer_id), conn, protocol)
        assert isinstance(muxed, MuxedConnection)
        return muxed
