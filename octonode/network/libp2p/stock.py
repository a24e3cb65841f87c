"""The library's own ground: its Yamux, Noise and negotiation, with what bites taken out (protocols/decisions/0006)."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import trio
from libp2p.custom_types import TProtocol
from libp2p.protocol_muxer.exceptions import ProtocolNotSupportedError
from libp2p.protocol_muxer.multiselect_communicator import MultiselectCommunicator
from libp2p.stream_muxer.yamux.yamux import FLAG_SYN, TYPE_PING, YAMUX_HEADER_FORMAT

from octonode.ids import PeerId
from octonode.network.host import ProtocolNotSupported, Stream, StreamReset
from octonode.network.libp2p.containment import reset_quietly
from octonode.network.libp2p.ground import Admit, Serve, Spawn, Wedged
from octonode.network.libp2p.library import NEGOTIATION_SECONDS, to_peer_id
from octonode.network.libp2p.stream import Libp2pStream
from octonode.network.libp2p.writes import WholeWrites

STREAMS_MAX = 200
"""A connection carries 255; some are the library's own."""


class StockGround:
    """See `Ground`."""

    name: Literal["own", "stock"] = "stock"

    def __init__(self, *, streams_per_peer_max: int, spawn: Spawn) -> None:
        self.streams_per_peer_max = min(streams_per_peer_max, STREAMS_MAX)
        self._spawn = spawn
        self._host: Any = None
        self._library_handler: Any = None

    def secured(self, session: Any) -> Any:
        WholeWrites(session, partial(self._spawn, "the writer of a connection"))
        return session

    def install(self, library_host: Any, admit: Admit) -> None:
        del admit  # all that peers open passes `serve`, which the firewall itself calls
        self._host = library_host
        self._library_handler = library_host.get_network().common_stream_handler

    def live(self) -> str:
        return self.name

    def handle(self, protocol: str, serve: Serve) -> None:
        async def handler(net_stream: Any) -> None:
            peer = net_stream.muxed_conn.peer_id
            await serve(peer, Libp2pStream(net_stream, to_peer_id(peer), protocol, lambda: None))

        self._host.set_stream_handler(TProtocol(protocol), handler)

    async def serve(self, net_stream: Any) -> None:
        await self._library_handler(net_stream)

    def may_open(self, connection: Any) -> bool:
        return not connection.muxed_conn.event_shutting_down.is_set()

    def streams_open(self, connection: Any) -> int:
        return len(connection.streams)

    async def ping(self, connection: Any, timeout_seconds: float) -> bool:
        muxed = connection.muxed_conn
        muxed._ping_event = trio.Event()
        muxed._ping_id += 1
        with trio.move_on_after(timeout_seconds):
            try:
                await muxed._write_frame(struct.pack(YAMUX_HEADER_FORMAT, 0, TYPE_PING, FLAG_SYN, 0, muxed._ping_id))
            except Exception:
                return False
            while True:
                # The library's own measuring replaces the event now and then.
                event = muxed._ping_event
                with trio.move_on_after(1.0):
                    await event.wait()
                    return True
        return False

    async def open(self, connection: Any, peer_id: PeerId, protocol: str, on_done: Callable[[], None]) -> Stream:
        return Libp2pStream(await self.open_for_library(connection, [protocol]), peer_id, protocol, on_done)

    async def open_for_library(self, connection: Any, protocols: Sequence[str]) -> Any:
        if connection.muxed_conn.stream_backlog_semaphore.value == 0:
            raise RuntimeError("the connection has no stream left")
        try:
            # Cancelled in here the library forgets to give a slot of the connection back. Nothing in it waits long.
            with trio.CancelScope(shield=True):
                net_stream = await connection.new_stream()
        except Exception as error:
            raise Wedged(f"it is closing: {error!r}") from error
        chosen = False
        try:
            with trio.move_on_after(NEGOTIATION_SECONDS):
                net_stream.set_protocol(await self._select(net_stream, protocols))
                chosen = True
                return net_stream
        except ProtocolNotSupportedError:
            raise ProtocolNotSupported(f"the peer does not speak {' or '.join(protocols)}") from None
        except Exception:
            if net_stream.muxed_stream.reset_received and not connection.muxed_conn.event_shutting_down.is_set():
                raise StreamReset("the peer reset the stream as it was opened") from None
            raise
        finally:
            if not chosen:
                await reset_quietly(net_stream)
        raise Wedged(f"no answer within {NEGOTIATION_SECONDS:g} s")

    async def _select(self, net_stream: Any, protocols: Sequence[str]) -> TProtocol:
        client, communicator = self._host.multiselect_client, MultiselectCommunicator(net_stream)
        await client.handshake(communicator)
        for protocol in protocols[:-1]:
            try:
                return await client.try_select(communicator, TProtocol(protocol))
            except ProtocolNotSupportedError:
                continue
        return await client.try_select(communicator, TProtocol(protocols[-1]))
