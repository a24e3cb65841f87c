"""Dialling under our rule for near addresses, by whatever way an address came: identify, the table, a name.

The library dials every address that anybody ever told it of a peer. So a stranger could have us knock at services of
our own machine and network: by hearsay in the table, or by a name that resolves to a private address.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextvars import ContextVar
from typing import Any

from libp2p.transport.exceptions import OpenConnectionError
from libp2p.transport.tcp.tcp import TCP
from multiaddr import Multiaddr

from octonode.network.addresses import Address, AddressError, may_dial, parse, scope_of

Allows = Callable[[Multiaddr, Address], bool]
"""(the name that was dialled, what it resolved to) -> may we?"""

_dialled_name: ContextVar[Multiaddr | None] = ContextVar("dialled_name", default=None)


def may_dial_place(place: Multiaddr, reached: Collection[str]) -> bool:
    """The rule of `network.addresses.may_dial` for a tcp address of the library."""
    try:
        return may_dial(parse(str(place)), reached)
    except AddressError:
        return False


class CarefulTCP(TCP):  # type: ignore[misc]
    """TCP that asks `allows` before it dials what a name resolved to; plain IPs were asked about before."""

    def __init__(self, allows: Allows) -> None:
        super().__init__()
        self._allows = allows

    async def dial(self, maddr: Multiaddr) -> Any:
        name = str(maddr).partition("/p2p/")[0]
        token = _dialled_name.set(Multiaddr(name) if name.startswith("/dns") else None)
        try:
            return await super().dial(maddr)
        finally:
            _dialled_name.reset(token)

    async def _dial_resolved(self, maddr: Multiaddr, source: tuple[str, int] | None = None) -> Any:
        name = _dialled_name.get()
        if name is not None:
            try:
                address = parse(str(maddr).partition("/p2p/")[0])
            except AddressError as error:
                raise OpenConnectionError(str(error)) from None
            if not self._allows(name, address):
                raise OpenConnectionError(f"{name} leads to a {scope_of(address.host)} address, {address.host}")
        return await super()._dial_resolved(maddr, source)
