"""Which IPs we have reached: what strangers announce in loopback and private networks is dialled only near them."""

from __future__ import annotations

from octonode.network.addresses import AddressError, parse, scope_of
from octonode.network.host import Host


def reached_ips(host: Host) -> frozenset[str]:
    """IPs of live connections; our own too, where we listen on loopback alone."""
    reached = {ip for peer in host.connected if (ip := host.observed_ip(peer)) is not None}
    own = _own_hosts(host.addresses)
    if own and all(scope_of(ip) == "loopback" for ip in own):
        reached |= own
    return frozenset(reached)


def _own_hosts(addresses: tuple[str, ...]) -> set[str]:
    hosts = set()
    for text in addresses:
        try:
            address = parse(text)
        except AddressError:
            continue
        if not address.kind.startswith("dns"):
            hosts.add(address.host)
    return hosts
