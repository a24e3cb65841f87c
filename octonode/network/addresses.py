"""Multiaddrs: the small set that we use, what kind of place each names, and which ones may be dialled. Pure.

`/ip4|ip6|dns|dns4|dns6/<host>/tcp/<port>[/ws][/p2p/<peer id>]`, of https://github.com/multiformats/multiaddr.
An announcement is a stranger's text: it must not make us knock at machines that only we can reach. So the rules here
say which announced addresses may be dialled, and that a gateway's host is never taken from an announcement.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from octonode.errors import OctonodeError
from octonode.ids import PeerId, public_key_from_peer_id

ADDRESS_CHARACTERS_MAX = 256
ADDRESSES_PER_PEER_MAX = 16

Scope = Literal["unspecified", "loopback", "private", "public", "name"]
_IP = ipaddress.IPv4Address | ipaddress.IPv6Address
_KINDS = ("ip4", "ip6", "dns", "dns4", "dns6")
_NAME = re.compile(
    r"(?=.{1,253}\Z)(?:[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?\.)*[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?\Z"
)
_PRIVATE_BLOCKS = tuple(
    ipaddress.ip_network(block)
    for block in (
        "10.0.0.0/8",
        "172.16.0.0/12",
        "192.168.0.0/16",
        "100.64.0.0/10",
        "169.254.0.0/16",
        "fc00::/7",
        "fe80::/10",
    )
)
"""RFC 1918, 6598, 3927, 4193, 4291: two addresses in one block may be in one network."""


class AddressError(OctonodeError, ValueError):
    """The text is not a multiaddr that this program dials."""

    code = "BAD_REQUEST"


class GatewayAddress(NamedTuple):
    """Where a peer's block gateway answers HTTP. `host` is an IP address proven by a connection to the peer."""

    peer_id: PeerId
    host: str
    port: int


@dataclass(frozen=True, slots=True)
class Address:
    kind: str
    """ip4, ip6, dns, dns4 or dns6."""
    host: str
    port: int
    ws: bool = False
    peer_id: PeerId | None = None

    @property
    def text(self) -> str:
        """The multiaddr in its one spelling here."""
        end = f"/p2p/{self.peer_id}" if self.peer_id else ""
        return f"/{self.kind}/{self.host}/tcp/{self.port}{'/ws' if self.ws else ''}{end}"

    @property
    def scope(self) -> Scope:
        return "name" if self.kind.startswith("dns") else scope_of(self.host)

    def at(self, ip: str) -> Address:
        """The same port and peer at another IP address."""
        ip = _plain(ipaddress.ip_address(ip))
        return replace(self, kind="ip6" if ":" in ip else "ip4", host=ip)


def parse(text: str) -> Address:
    """The address in `text`. Raises AddressError that says what is wrong and how one looks."""
    if len(text) > ADDRESS_CHARACTERS_MAX:
        raise AddressError(f"an address of {len(text)} characters; at most {ADDRESS_CHARACTERS_MAX} are taken")
    parts = text.split("/")
    if len(parts) < 5 or parts[0] or parts[1] not in _KINDS or parts[3] != "tcp":
        raise AddressError(f"{text!r} is not an address; one looks like /ip4/203.0.113.7/tcp/4808/p2p/12D3KooW...")
    rest = parts[5:]
    ws = rest[:1] == ["ws"]
    rest = rest[1:] if ws else rest
    if rest and (len(rest) != 2 or rest[0] != "p2p"):
        raise AddressError(f"{text!r} goes on with /{'/'.join(rest)}; only /ws and /p2p/<peer id> are known here")
    peer_id = _peer_id(rest[1], text) if rest else None
    return Address(parts[1], _host(parts[1], parts[2], text), _port(parts[4], text), ws, peer_id)


def parse_peer(text: str) -> Address:
    """Like `parse`, and it must end in /p2p/<id>: we never dial somebody we could not recognise."""
    address = parse(text)
    if address.peer_id is None:
        raise AddressError(f"{text!r} does not say who is there; add /p2p/<peer id>")
    return address


def _peer_id(text: str, whole: str) -> PeerId:
    try:
        public_key_from_peer_id(text)
    except ValueError:
        raise AddressError(f"{whole!r}: {text[:64]!r} is not the peer id of an Ed25519 key") from None
    return PeerId(text)


def _port(text: str, whole: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and int(text) <= 65535):
        raise AddressError(f"{whole!r}: {text[:16]!r} is not a TCP port")
    return int(text)


def _host(kind: str, text: str, whole: str) -> str:
    if kind.startswith("dns"):
        name = text.lower()
        if not _NAME.match(name):
            raise AddressError(f"{whole!r}: {text[:64]!r} is not a host name")
        return name
    try:
        ip = ipaddress.IPv4Address(text) if kind == "ip4" else ipaddress.IPv6Address(text)
    except ValueError:
        raise AddressError(f"{whole!r}: {text[:64]!r} is not an address of kind {kind}") from None
    if isinstance(ip, ipaddress.IPv6Address) and ip.scope_id is not None:
        raise AddressError(f"{whole!r}: a zone such as %{ip.scope_id} means nothing on another machine")
    return str(ip)


def _plain(ip: _IP) -> str:
    """IPv4 in IPv6 clothes (::ffff:127.0.0.1) is IPv4: rules must not be evaded by spelling."""
    return str(ip.ipv4_mapped) if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped else str(ip)


def _ip(text: str) -> _IP:
    return ipaddress.ip_address(_plain(ipaddress.ip_address(text.partition("%")[0])))


def scope_of(ip: str) -> Scope:
    """What kind of place an IP address is. Raises ValueError for what is not one."""
    parsed = _ip(ip)
    if parsed.is_unspecified or parsed.is_multicast or parsed == ipaddress.IPv4Address("255.255.255.255"):
        return "unspecified"
    if parsed.is_loopback:
        return "loopback"
    return "public" if parsed.is_global else "private"


def same_network(ip: str, other: str) -> bool:
    """True for two private addresses of one block: where one was reached, the other may be in the same network."""
    a, b = _ip(ip), _ip(other)
    return any(a.version == b.version == block.version and a in block and b in block for block in _PRIVATE_BLOCKS)


def same_ip(ip: str, other: str) -> bool:
    """True when both texts are the same address, in whatever spelling. False for what is no address."""
    try:
        return _ip(ip) == _ip(other)
    except ValueError:
        return False


def may_dial(address: Address, reached_ips: Collection[str]) -> bool:
    """Whether an address that a stranger announced may be dialled.

    `reached_ips` are those of our live authenticated connections (and our own, where we listen on nothing else).
    Public addresses and names always; loopback only when a peer is reached over loopback, for then the announcer may
    be on this machine too; private only when a peer is reached in the same private block. Names that resolve to a
    private address are refused when they are dialled (libp2p/dialling.py).
    """
    if address.port == 0:
        return False
    scope = address.scope
    if scope == "loopback":
        return any(scope_of(ip) == "loopback" for ip in reached_ips)
    if scope == "private":
        return any(same_network(address.host, ip) for ip in reached_ips)
    return scope in ("public", "name")


def dialable(
    peer_id: PeerId, announced: Iterable[str], reached_ips: Collection[str], observed_ip: str | None = None
) -> tuple[str, ...]:
    """Which announced addresses of `peer_id` to dial, each ending in /p2p/<peer_id>, without doubles.

    With `observed_ip`, the IP of a live connection to this very peer, its announced ports are tried there first:
    a node behind a port forward often does not know the address that others see. Malformed addresses and those of
    another peer are dropped. At most ADDRESSES_PER_PEER_MAX.
    """
    at_observed: dict[str, None] = {}
    chosen: dict[str, None] = {}
    for text in announced:
        try:
            address = parse(text)
        except AddressError:
            continue
        if address.peer_id not in (None, peer_id):
            continue
        address = replace(address, peer_id=peer_id)
        if observed_ip is not None and address.port and not address.kind.startswith("dns"):
            at_observed.setdefault(address.at(observed_ip).text)
        if may_dial(address, reached_ips):
            chosen.setdefault(address.text)
    return tuple(dict.fromkeys((*at_observed, *chosen)))[:ADDRESSES_PER_PEER_MAX]


def announceable(listening: Iterable[str], configured: Iterable[str], peer_id: PeerId) -> tuple[str, ...]:
    """What a node says of where it is: the configured addresses if there are any, else those it listens on.

    Unspecified addresses (0.0.0.0) are left out. Raises AddressError for a configured address that cannot be read.
    """
    given = [replace(parse(text), peer_id=peer_id) for text in configured]
    if not given:
        given = [replace(parse(text), peer_id=peer_id) for text in listening]
    texts = dict.fromkeys(address.text for address in given if address.scope != "unspecified" and address.port)
    return tuple(texts)[:ADDRESSES_PER_PEER_MAX]


def gateway_of(peer_id: PeerId, gateway_port: int, observed_ip: str | None) -> GatewayAddress | None:
    """Where to ask a peer for blocks: its announced port, at the IP address of our authenticated connection to it.

    None without a gateway or without a connection. The announcement has no say in the host: else any peer could send
    our downloads to a machine that only we can reach.
    """
    if not gateway_port or observed_ip is None:
        return None
    return GatewayAddress(peer_id, _plain(ipaddress.ip_address(observed_ip.partition("%")[0])), gateway_port)
