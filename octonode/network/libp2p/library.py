"""The library's host as we want it: built by explicit options, with every default that bites taken out.

What is taken out, and why, is listed in protocols/decisions/0006-network-firewall.md. Nothing here starts a task.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from functools import lru_cache
from operator import itemgetter
from typing import Any

from libp2p import NOISE_PROTOCOL_ID, YAMUX_PROTOCOL_ID, NoiseTransport, Yamux, new_host
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as create_noise_key_pair
from libp2p.custom_types import TProtocol
from libp2p.network.config import ConnectionConfig
from libp2p.peer.id import ID
from libp2p.peer.peerstore import PeerStore
from multiaddr import Multiaddr

from octonode.config import NetworkConfig
from octonode.identity import NodeKey
from octonode.ids import PeerId, public_key_from_peer_id
from octonode.network.libp2p.dialling import Allows, CarefulTCP

ADDRESSES_PER_PEER_MAX = 16
HANDSHAKE_SECONDS = 10.0
NEGOTIATION_SECONDS = 10.0
IDS_CACHED = 4096
DIALLED_HOSTS = ("ip4", "ip6", "dns", "dns4", "dns6")
_NEVER_SECONDS = 10.0 * 365 * 86400

SecuredHook = Callable[[Any], Any]


class BoundedPeerStore(PeerStore):  # type: ignore[misc]
    """The library's store of up to 1,000 peers, with a bound on what one peer can make us remember."""

    def add_addrs(self, peer_id: ID, addrs: Any, ttl: int = 0) -> None:
        try:
            known = len(self.addrs(peer_id))
        except Exception:
            known = 0
        if known + len(addrs) > 2 * ADDRESSES_PER_PEER_MAX:
            self.clear_addrs(peer_id)
        super().add_addrs(peer_id, list(addrs)[:ADDRESSES_PER_PEER_MAX], ttl)

    def _enforce_peer_limit(self) -> None:
        """Forget a tenth of the peers, those without addresses first. The library would forget our own key here."""
        peers = [(bool(data.get_addrs()), peer) for peer, data in self.peer_data_map.items() if data.privkey is None]
        for _, peer in sorted(peers, key=itemgetter(0))[: self.max_peers // 10]:
            del self.peer_data_map[peer]
            self.peer_record_map.pop(peer, None)


class HookedNoise(NoiseTransport):  # type: ignore[misc]
    """Noise that hands every secured connection to `hook` before anything is written on it.

    A peer whose key is not Ed25519 is refused here: its id holds no key to check a signature with.
    """

    def __init__(self, key_pair: Any, hook: SecuredHook) -> None:
        super().__init__(key_pair, noise_privkey=create_noise_key_pair().private_key)
        self._hook = hook

    async def secure_inbound(self, conn: Any) -> Any:
        return self._hook(_of_our_kind(await super().secure_inbound(conn)))

    async def secure_outbound(self, conn: Any, peer_id: ID) -> Any:
        return self._hook(_of_our_kind(await super().secure_outbound(conn, peer_id)))


def _of_our_kind(secured: Any) -> Any:
    """Raises ValueError: all above this line takes every connected peer's id for that of an Ed25519 key."""
    public_key_from_peer_id(secured.get_remote_peer().to_base58())
    return secured


def build_library_host(
    key: NodeKey,
    config: NetworkConfig,
    *,
    addresses: Callable[[], list[Multiaddr]],
    secured: SecuredHook,
    allows_name: Allows,
) -> Any:
    """A `BasicHost` that listens to nothing yet: tcp, noise and yamux, and no other of each kind."""
    key_pair = create_new_key_pair(key.transport_seed())
    host = new_host(
        key_pair=key_pair,
        sec_opt={TProtocol(NOISE_PROTOCOL_ID): HookedNoise(key_pair, secured)},
        muxer_opt={TProtocol(YAMUX_PROTOCOL_ID): Yamux},
        transports=[CarefulTCP(allows_name)],
        peerstore_opt=BoundedPeerStore(),
        connection_config=_connection_config(config),
        negotiate_timeout=int(NEGOTIATION_SECONDS),
        addrs_factory=lambda _candidates: addresses(),
        disable_identify_address_discovery=True,
    )
    swarm = host.get_network()
    # A default resource manager comes unasked, with rate limits of its own; ours are in guard.py.
    swarm.set_resource_manager(None)
    quieten(logging.getLogger("libp2p"))
    return host


def _connection_config(config: NetworkConfig) -> ConnectionConfig:
    return ConnectionConfig(
        max_connections=config.connections_max,
        min_connections=0,
        low_watermark=0,  # 100 by default: the auto-connector would dial everybody it has heard of
        high_watermark=config.connections_max,
        max_connections_per_peer=3,
        inbound_upgrade_timeout=HANDSHAKE_SECONDS,
        outbound_upgrade_timeout=HANDSHAKE_SECONDS,
        inbound_stream_protocol_negotiation_timeout=NEGOTIATION_SECONDS,
        outbound_stream_protocol_negotiation_timeout=NEGOTIATION_SECONDS,
        auto_connect_interval=_NEVER_SECONDS,
    )


def quieten(library_log: logging.Logger) -> None:
    """Strangers can make the library log errors and tracebacks at will; ours says what matters.

    LIBP2P_DEBUG, the library's own switch, brings its log back.
    """
    if "LIBP2P_DEBUG" not in os.environ:
        library_log.setLevel(logging.CRITICAL)


@lru_cache(maxsize=IDS_CACHED)
def to_library_id(peer_id: PeerId) -> ID:
    """Raises ValueError for what is not the id of an Ed25519 key."""
    public_key_from_peer_id(peer_id)
    return ID.from_base58(peer_id)


@lru_cache(maxsize=IDS_CACHED)
def to_peer_id(library_id: ID) -> PeerId:
    return PeerId(library_id.to_base58())


def parse_dial_address(address: str) -> tuple[Multiaddr, PeerId]:
    """(the tcp address without /p2p, the peer id) of `/ip4|ip6|dns*/.../tcp/PORT/p2p/ID`. Raises ValueError."""
    if len(address) > 512:
        raise ValueError("an address longer than 512 characters")
    try:
        names = [protocol.name for protocol in Multiaddr(address).protocols()]
    except Exception as error:
        raise ValueError(f"{address!r} is not a multiaddr: {error}") from None
    if len(names) != 3 or names[0] not in DIALLED_HOSTS or names[1:] != ["tcp", "p2p"]:
        raise ValueError(f"{address!r} is not /ip4/IP/tcp/PORT/p2p/ID (or ip6, dns4, dns6); nothing else is dialled")
    place, _, peer_id = address.rpartition("/p2p/")
    public_key_from_peer_id(peer_id)
    return Multiaddr(place), PeerId(peer_id)


def dialable_place(address: Multiaddr) -> Multiaddr | None:
    """The tcp address inside what a peer says of itself, without /p2p; None for what we do not dial."""
    return _dialable_place(bytes(address.to_bytes()))


@lru_cache(maxsize=IDS_CACHED)
def _dialable_place(address: bytes) -> Multiaddr | None:
    try:
        place = str(Multiaddr(address)).partition("/p2p/")[0]
        names = [protocol.name for protocol in Multiaddr(place).protocols()]
    except Exception:
        return None
    if len(names) == 2 and names[0] in DIALLED_HOSTS and names[1] == "tcp":
        return Multiaddr(place)
    return None
