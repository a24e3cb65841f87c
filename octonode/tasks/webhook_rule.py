"""Where the news of a finished job may be posted, pure: public addresses, and what the settings allow beside them.

A webhook makes this node send a request to a place that a caller names, from inside of whatever network it stands in.
So the address decides and never the name: who posts resolves the name once, has the rule choose among the addresses,
and connects to the chosen one. Attacks: protocols/attacks.md, section "Webhooks".
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from octonode.errors import ConfigError, OctonodeError

URL_CHARACTERS_MAX: Final = 2048
ADDRESSES_MAX: Final = 16
"""Of one name; further ones are not looked at."""

_IP = ipaddress.IPv4Address | ipaddress.IPv6Address
_NAME = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)(\.(?!-)[a-z0-9_-]{1,63}(?<!-))*\.?")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_IPV4_COMPATIBLE = ipaddress.IPv6Network("::/96")


@dataclass(frozen=True, slots=True)
class Target:
    """A webhook's URL in its parts."""

    url: str
    secure: bool
    host: str
    """A name, or an address without brackets."""
    port: int
    path: str
    """With the query; begins with a slash."""


class WebhookRule:
    """`allowed` are the hosts and networks of `jobs.webhook_hosts_allowed`. Raises ConfigError for what is neither."""

    def __init__(self, allowed: Sequence[str] = ()) -> None:
        self._names: set[str] = set()
        self._networks: list[ipaddress.IPv4Network | ipaddress.IPv6Network] = []
        for text in allowed:
            try:
                self._networks.append(ipaddress.ip_network(text))
            except ValueError as error:
                name = text.lower().rstrip(".")
                if "/" in text or not _NAME.fullmatch(name) or _numeric(name):
                    raise ConfigError(
                        f"jobs.webhook_hosts_allowed: {text!r} is no host and no network: {error}"
                    ) from None
                self._names.add(name)

    def target(self, url: str) -> Target:
        """The parts of a URL that may be posted to, as far as it tells by itself.

        Raises OctonodeError: BAD_REQUEST for what is no such URL, FORBIDDEN for an address that is not public.
        """
        target = _parse(url)
        address = _address(target.host)
        if address is not None and not self._allows(target, address):
            raise _forbidden(f"{address} is no public address")
        return target

    def choose(self, target: Target, addresses: Sequence[str]) -> str:
        """The first of `addresses`, which the name was resolved to, that may be connected to. Raises FORBIDDEN."""
        found = [_address(text) for text in addresses[:ADDRESSES_MAX]]
        for address in found:
            if address is not None and self._allows(target, address):
                return str(address)
        raise _forbidden(
            f"{target.host} is at {', '.join(addresses[:ADDRESSES_MAX]) or 'no address'}, which is not public"
        )

    def _allows(self, target: Target, address: _IP) -> bool:
        if target.host.rstrip(".") in self._names or is_public(address):
            return True
        plain = _embedded(address) or address
        return any(each.version == plain.version and plain in each for each in self._networks)


def is_public(address: _IP) -> bool:
    """Whether anybody on the internet may be at it. An address that wraps an IPv4 one is as public as that one."""
    inside = _embedded(address)
    if inside is not None:
        return is_public(inside)
    if isinstance(address, ipaddress.IPv6Address) and (
        address.scope_id is not None
        or address.is_site_local
        or address.teredo is not None
        or address in _IPV4_COMPATIBLE
    ):
        return False
    return address.is_global and not (
        address.is_multicast or address.is_reserved or address.is_loopback or address.is_unspecified
    )


def _embedded(address: _IP) -> ipaddress.IPv4Address | None:
    """The IPv4 address that a mapped (::ffff:0:0/96), NAT64 (64:ff9b::/96) or 6to4 (2002::/16) one leads to."""
    if not isinstance(address, ipaddress.IPv6Address):
        return None
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
    return address.ipv4_mapped or address.sixtofour


def _parse(url: str) -> Target:
    if len(url) > URL_CHARACTERS_MAX:
        raise _bad(f"a webhook has at most {URL_CHARACTERS_MAX} characters")
    if not url.isascii() or not url.isprintable() or set(url) & set(' \\"<>^`{|}'):
        raise _bad("a webhook is plain ASCII; write other characters as %XX, and names in punycode")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise _bad(f"it is no URL: {error}") from None
    if parts.scheme not in ("http", "https"):
        raise _bad("a webhook begins with https:// or http://")
    if parts.username is not None or parts.password is not None or "@" in parts.netloc:
        raise _bad("a webhook holds no user and no password; the signature tells who posts")
    if parts.fragment or "#" in url:
        raise _bad("a webhook holds no fragment")
    host = (parts.hostname or "").lower()
    _check_host(host, bracketed=parts.netloc.startswith("["))
    if port == 0:
        raise _bad("there is no port 0")
    secure = parts.scheme == "https"
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Target(url, secure, host, port or (443 if secure else 80), path)


def _check_host(host: str, *, bracketed: bool) -> None:
    if bracketed:
        address = _address(host)
        if not isinstance(address, ipaddress.IPv6Address) or address.scope_id is not None:
            raise _bad(f"[{host[:64]}] is no IPv6 address that means something elsewhere")
    elif _numeric(host):
        if _address(host) is None:  # 127.1, 0x7f000001, 2130706433, 0177.0.0.1: what resolvers take for addresses
            raise _bad(f"{host[:64]} is an address in an odd form; write it as four numbers")
    elif not _NAME.fullmatch(host) or len(host) > 253:
        raise _bad(f"{host[:64]!r} is no host name")


def _numeric(host: str) -> bool:
    """Whether a resolver may take it for an IPv4 address: its last part is a number."""
    return _NUMBER.fullmatch(host.rstrip(".").rpartition(".")[2]) is not None


def _address(text: str) -> _IP | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def _bad(message: str) -> OctonodeError:
    return OctonodeError(f"webhook: {message}", code="BAD_REQUEST", detail={"param": "webhook"})


def _forbidden(what: str) -> OctonodeError:
    message = f"webhook: {what}; the node's owner may allow it: octonode config set jobs.webhook_hosts_allowed HOST"
    return OctonodeError(message, code="FORBIDDEN", detail={"param": "webhook"})
