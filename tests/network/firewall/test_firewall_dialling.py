"""Near addresses that strangers name: they are not dialled, whatever way they came."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import pytest
import trio
from multiaddr import Multiaddr

from octonode.errors import Unreachable
from octonode.network.libp2p import host as host_module
from octonode.network.libp2p.dialling import may_dial_place
from octonode.network.libp2p.library import to_library_id
from tests.network.firewall.conftest import new_key

ECHO = "/test/echo/1"
GENEROUS_SECONDS = 60
FAR, NEAR = frozenset({"203.0.113.9"}), frozenset({"127.0.0.1"})


class Victim:
    """A service of our own machine that waits for whoever calls."""

    def __init__(self) -> None:
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.socket.setblocking(False)
        self.port = int(self.socket.getsockname()[1])

    def called(self) -> bool:
        try:
            connection, _ = self.socket.accept()
        except BlockingIOError:
            return False
        connection.close()
        return True


@pytest.fixture
def victim() -> Iterator[Victim]:
    victim = Victim()
    yield victim
    victim.socket.close()


@pytest.fixture
def reached(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """IPs that the hosts of this test take for reached."""
    ips: set[str] = set(FAR)
    monkeypatch.setattr(host_module, "reached_ips", lambda host: ips)
    return ips


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What names resolve to: no test asks a real name server."""
    table: dict[str, str] = {}

    async def resolve(name: Multiaddr, **options: Any) -> list[Multiaddr]:
        return [Multiaddr(table[str(name).partition("/p2p/")[0]])]

    monkeypatch.setattr("libp2p.transport.tcp.tcp.resolve_multiaddr_with_retry", resolve)
    return table


@pytest.mark.parametrize(
    ("place", "ips", "allowed"),
    [
        ("/ip4/127.0.0.1/tcp/80", FAR, False),
        ("/ip4/127.0.0.1/tcp/80", NEAR, True),
        ("/ip6/::1/tcp/80", FAR, False),
        ("/ip4/192.168.1.1/tcp/80", FAR, False),
        ("/ip4/169.254.169.254/tcp/80", NEAR, False),
        ("/ip4/8.8.8.8/tcp/80", frozenset(), True),
        ("/ip4/8.8.8.8/udp/80", frozenset(), False),
    ],
)
def test_the_rule_holds_for_addresses_of_the_library(place: str, ips: frozenset[str], allowed: bool) -> None:
    assert may_dial_place(Multiaddr(place), ips) is allowed


async def test_hearsay_of_near_addresses_is_not_dialled(new_host: Any, victim: Victim, reached: set[str]) -> None:
    """As a peer of the routing table may name them for any key, or identify for the peer itself."""
    host, stranger = await new_host(dial_timeout_seconds=5.0), new_key().peer_id
    place = Multiaddr(f"/ip4/127.0.0.1/tcp/{victim.port}")
    host.library.get_peerstore().add_addrs(to_library_id(stranger), [place], 600)
    with trio.fail_after(GENEROUS_SECONDS):
        with pytest.raises(Unreachable, match="no address"):
            await host.open(stranger, ECHO)
        assert not victim.called()
        reached |= NEAR
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_try, host, stranger)
            while not victim.called():
                await trio.sleep(0.02)
            nursery.cancel_scope.cancel()


async def _try(host: Any, peer_id: str) -> None:
    with pytest.raises(Unreachable):
        await host.open(peer_id, ECHO)


async def test_a_name_that_leads_to_our_own_machine_is_not_dialled(
    new_host: Any, victim: Victim, reached: set[str], names: dict[str, str]
) -> None:
    host, stranger = await new_host(dial_timeout_seconds=5.0), new_key().peer_id
    name = f"/dns4/harmless.example/tcp/{victim.port}"
    names[name] = f"/ip4/127.0.0.1/tcp/{victim.port}"
    host.learn(stranger, (f"{name}/p2p/{stranger}",))
    with trio.fail_after(GENEROUS_SECONDS), pytest.raises(Unreachable, match="cannot be reached"):
        await host.open(stranger, ECHO)
    assert not victim.called()


async def test_a_name_that_the_owner_gave_may_lead_anywhere(
    new_host: Any, echoes: Any, reached: set[str], names: dict[str, str]
) -> None:
    """A bootstrap by name in one's own network is dialled, and found again after a loss."""
    host, friend = await new_host(), await new_host()
    port = friend.addresses[0].split("/")[4]
    names[f"/dns4/friend.example/tcp/{port}"] = f"/ip4/127.0.0.1/tcp/{port}"
    with trio.fail_after(GENEROUS_SECONDS):
        await host.connect(f"/dns4/friend.example/tcp/{port}/p2p/{friend.peer_id}")
        assert await echoes(host, friend)
        await host.disconnect(friend.peer_id)
        assert await echoes(host, friend)
