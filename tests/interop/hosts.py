"""Our side of every test, built in one place: py-libp2p alone or octonode's own host, over each muxer and transport."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple

import trio
from libp2p import NOISE_PROTOCOL_ID, YAMUX_PROTOCOL_ID, NoiseTransport, Yamux, new_host
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as create_noise_key_pair
from libp2p.custom_types import TProtocol
from libp2p.network.config import ConnectionConfig
from libp2p.network.stream.exceptions import StreamEOF
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import info_from_p2p_addr
from multiaddr import Multiaddr

from octonode.config import MIB, NetworkConfig
from octonode.identity import NodeKey
from octonode.ids import PeerId
from octonode.network.host import StreamHandler, StreamReset
from octonode.network.libp2p.host import Libp2pHost
from octonode.network.libp2p.library import HookedNoise, to_library_id, to_peer_id
from octonode.network.libp2p.own import OwnGround
from octonode.network.serving import serve

Transport = Literal["tcp", "ws"]
MUXERS = ("own", "stock")
NEVER_SECONDS = 1e6
PLACES = {"tcp": Multiaddr("/ip4/127.0.0.1/tcp/0"), "ws": Multiaddr("/ip4/127.0.0.1/tcp/0/ws")}


class Side(NamedTuple):
    """What a test runs over: `library` is py-libp2p alone, `product` octonode's host, which speaks tcp only."""

    muxer: str
    kind: Literal["library", "product"]
    transport: Transport

    def __str__(self) -> str:
        return "-".join(self)


SIDES = [
    Side(muxer, kind, transport)
    for muxer in MUXERS
    for kind, transport in (("library", "tcp"), ("library", "ws"), ("product", "tcp"))
]
OWN = [side for side in SIDES if side.muxer == "own"]
"""The stock muxer kills a writer that waits for five seconds, and stops at 255 streams."""
TELLS_RESETS = [side for side in SIDES if side in OWN or side.kind == "product"]
"""The stock muxer shows a reset, and a lost connection, as the end; octonode's host looks behind it."""
PRODUCTS = [side for side in SIDES if side.kind == "product"]


def only(sides: Iterable[Side], *transports: Transport) -> list[Side]:
    return [side for side in sides if side.transport in transports]


class LibraryStream:
    """A stream of the library with the face of octonode's `Stream`."""

    def __init__(self, net_stream: Any, protocol: str) -> None:
        self._net = net_stream
        self.peer_id = to_peer_id(net_stream.muxed_conn.peer_id)
        self.protocol = protocol
        self._ended = {"read": False, "write": False}

    async def send(self, data: bytes) -> None:
        try:
            await self._net.write(data)
        except Exception as error:
            raise StreamReset("cut while it was written to") from error

    async def receive(self, max_bytes: int = 65536) -> bytes:
        try:
            data = bytes(await self._net.read(max_bytes))
        except StreamEOF:
            data = b""
        except Exception as error:
            raise StreamReset("cut while it was read") from error
        if not data:
            await self._end("read")
        return data

    async def finish(self) -> None:
        if not self._ended["write"]:
            await self._net.close_write()
            await self._end("write")

    async def reset(self) -> None:
        await self._net.reset()

    async def _end(self, direction: str) -> None:
        """The library keeps a stream in its books until it is taken out."""
        before = all(self._ended.values())
        self._ended[direction] = True
        if all(self._ended.values()) and not before:
            await self._net.remove()


class LibraryHost:
    """py-libp2p's own host with the face of octonode's `Host`, as far as the tests use it."""

    def __init__(self, muxer: str, transports: Sequence[Transport]) -> None:
        key_pair = create_new_key_pair()
        ground = OwnGround(streams_per_peer_max=1000, received_bytes_max=32 * MIB) if muxer == "own" else None
        noise = (
            HookedNoise(key_pair, ground.secured)
            if ground is not None
            else NoiseTransport(key_pair, noise_privkey=create_noise_key_pair().private_key)
        )
        self._places = [PLACES[each] for each in transports]
        self.library = new_host(
            key_pair=key_pair,
            sec_opt={TProtocol(NOISE_PROTOCOL_ID): noise},
            muxer_opt={TProtocol(YAMUX_PROTOCOL_ID): Yamux},
            listen_addrs=self._places,
            connection_config=ConnectionConfig(min_connections=0, low_watermark=0, auto_connect_interval=NEVER_SECONDS),
            disable_identify_address_discovery=True,
        )
        swarm = self.library.get_network()
        swarm.set_resource_manager(None)
        swarm._schedule_auto_connect = lambda: None  # it would dial a peer again that has just left
        if ground is not None:
            install_own_muxer(self.library, ground)
        self.peer_id = to_peer_id(self.library.get_id())

    @property
    def addresses(self) -> tuple[str, ...]:
        return tuple(str(each) for each in self.library.get_addrs())

    @property
    def connected(self) -> frozenset[PeerId]:
        connections = self.library.get_network().connections
        return frozenset(to_peer_id(peer) for peer, each in connections.items() if each)

    def handle(self, protocol: str, handler: StreamHandler) -> None:
        async def contained(net_stream: Any) -> None:
            await serve(handler, LibraryStream(net_stream, protocol))

        self.library.set_stream_handler(TProtocol(protocol), contained)

    async def connect(self, address: str) -> PeerId:
        info = info_from_p2p_addr(Multiaddr(address))
        await self.library.connect(info)
        return to_peer_id(info.peer_id)

    async def open(self, peer_id: PeerId, protocol: str) -> LibraryStream:
        net_stream = await self.library.new_stream(to_library_id(peer_id), [TProtocol(protocol)])
        return LibraryStream(net_stream, protocol)

    async def disconnect(self, peer_id: PeerId) -> None:
        await self.library.disconnect(to_library_id(peer_id))

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        async with self.library.run(listen_addrs=self._places):
            task_status.started()
            await trio.sleep_forever()


OurHost = LibraryHost | Libp2pHost


def install_own_muxer(library_host: Any, ground: OwnGround) -> None:
    """Put octonode's own muxer and negotiation into a library host that does not run yet, and no firewall round it."""

    async def admit(peer: Any, stream: Any, work: Any, *arguments: Any) -> None:
        await work(*arguments)

    ground.install(library_host, admit)
    library_host.get_network().common_stream_handler = ground.serve


def build_host(muxer: str, transports: Sequence[Transport]) -> LibraryHost:
    """py-libp2p alone, not yet running."""
    return LibraryHost(muxer, transports)


def build_side(side: Side) -> OurHost:
    if side.kind == "product":
        return Libp2pHost(NodeKey(os.urandom(32)), NetworkConfig(listen="127.0.0.1:0", muxer=side.muxer))  # type: ignore[arg-type]
    return build_host(side.muxer, [side.transport])


def protocols_of(host: OurHost, peer_id: str) -> set[str]:
    """What identify has told us that a peer speaks."""
    try:
        return set(host.library.get_peerstore().get_protocols(ID.from_base58(peer_id)))
    except Exception:  # the library's way to say that it has never heard of the peer
        return set()
