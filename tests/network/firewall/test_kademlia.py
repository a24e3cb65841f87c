"""The routing table between real hosts: 24 of them, a stock one that is never let in, records with an end."""

from __future__ import annotations

import hashlib
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from libp2p import new_host as new_library_host
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.kad_dht.kad_dht import DHTMode, KadDHT
from libp2p.network.stream.exceptions import StreamEOF
from libp2p.network.stream.exceptions import StreamReset as LibraryStreamReset
from libp2p.peer.peerinfo import info_from_p2p_addr
from libp2p.tools.anyio_service import background_trio_service
from multiaddr import Multiaddr

from octonode.config import NetworkConfig
from octonode.identity import NodeKey
from octonode.ids import KAD_PROTOCOL
from octonode.network.host import StreamReset
from octonode.network.libp2p import kad_host
from octonode.network.libp2p.host import Libp2pHost
from octonode.network.libp2p.kad import Kademlia

GENEROUS_SECONDS = 150
KEY = hashlib.sha256(b"a model").digest()


def accept_good(key: str, value: bytes) -> None:
    if not value.startswith(b"good"):
        raise ValueError(f"{value!r} is not good")


def last_in_order(key: str, values: list[bytes]) -> int:
    return max(range(len(values)), key=lambda index: values[index])


def make(label: str, now: Callable[[], float] = time.monotonic, **settings: Any) -> tuple[Libp2pHost, Kademlia]:
    config = NetworkConfig(listen="127.0.0.1:0", **settings)
    host = Libp2pHost(NodeKey(hashlib.sha256(label.encode()).digest()), config)
    return host, Kademlia(host, config, validator=accept_good, select=last_in_order, now=now)


async def grow(nursery: trio.Nursery, count: int, **settings: Any) -> list[tuple[Libp2pHost, Kademlia]]:
    """`count` nodes, each of which dials two earlier ones."""
    nodes: list[tuple[Libp2pHost, Kademlia]] = []
    for index in range(count):
        host, table = make(f"kad {index}", **settings)
        await nursery.start(host.run)
        for earlier in {index // 2, index - 1} & set(range(index)):
            await host.connect(nodes[earlier][0].addresses[0])
        nodes.append((host, table))
    return nodes


async def until_found(table: Kademlia, expected: set[str]) -> None:
    while set(await table.find_providers(KEY)) != expected:
        await trio.sleep(0.3)


async def until_taken(table: Kademlia) -> None:
    while not await table.provide(KEY):
        await trio.sleep(0.3)


class Clock:
    """Of all nodes of a test: records end when the test says so."""

    now_seconds = 1_000.0

    def __call__(self) -> float:
        return self.now_seconds


@pytest.mark.slow
@pytest.mark.timeout(240)
async def test_24_hosts(nursery: trio.Nursery) -> None:
    """Who joins after the first look-up is found by the second; who leaves is gone when its records end."""
    clock = Clock()
    with trio.fail_after(GENEROUS_SECONDS):
        nodes = await grow(nursery, 24, now=clock, announcement_ttl_seconds=120.0)
        while min(len(table.table) for _, table in nodes) < 3:
            await trio.sleep(0.2)
        first_host, first = nodes[3]
        seeker = nodes[20][1]
        await until_taken(first)
        await until_found(seeker, {first_host.peer_id})

        async with trio.open_nursery() as short_life:
            late_host, late = make("kad latecomer", now=clock, announcement_ttl_seconds=120.0)
            await short_life.start(late_host.run)
            await late_host.connect(nodes[11][0].addresses[0])
            await until_taken(late)
            both = {first_host.peer_id, late_host.peer_id}
            await until_found(seeker, both)
            await until_found(nodes[7][1], both)
            short_life.cancel_scope.cancel()

        clock.now_seconds += 119
        await until_taken(first)
        await until_found(nodes[22][1], both)  # a record is a hint until it ends
        clock.now_seconds += 2
        for index in (0, 7, 15, 20, 22):
            await until_found(nodes[index][1], {first_host.peer_id})


async def test_a_stock_peer_is_never_admitted(nursery: trio.Nursery) -> None:
    stock = new_library_host(key_pair=create_new_key_pair(hashlib.sha256(b"stock kad").digest()))
    place = Multiaddr("/ip4/127.0.0.1/tcp/0")
    with trio.fail_after(GENEROUS_SECONDS):
        (ours, table), (friend, _) = await grow(nursery, 2)
        async with stock.run(listen_addrs=[place]), stock_kademlia(stock) as stock_table:
            await stock.connect(info_from_p2p_addr(Multiaddr(ours.addresses[0])))
            stock_address = f"{stock.get_addrs()[0]}"
            await ours.connect(stock_address)
            while not stock.get_peerstore().get_protocols(stock.get_connected_peers()[0]):
                await trio.sleep(0.05)
            while friend.peer_id not in table.table:
                await trio.sleep(0.05)
            # Both look, each would ask whom it knows.
            assert await table.find_providers(KEY) == ()
            assert await stock_table.provider_store.find_providers(b"\x12\x20" + KEY) == []
            assert table.table == {friend.peer_id}
            assert [str(peer) for peer in stock_table.routing_table.get_peer_ids()] == []
            served = {str(protocol) for protocol in ours.library.get_mux().get_protocols()}
            assert KAD_PROTOCOL in served
            assert "/ipfs/kad/1.0.0" not in served


@asynccontextmanager
async def stock_kademlia(stock: Any) -> AsyncIterator[Any]:
    table = KadDHT(stock, DHTMode.SERVER, enable_random_walk=False)
    async with background_trio_service(table):
        yield table


async def test_values_are_judged_where_they_are_kept(nursery: trio.Nursery) -> None:
    with trio.fail_after(GENEROUS_SECONDS):
        (_, honest), (rude_host, rude) = await grow(nursery, 2)
        while not await honest.put("/octo/x", b"good 5"):
            await trio.sleep(0.1)
        # A peer whose own validator lets anything pass.
        rude._judge._validate = lambda key, value: None
        rude._judge._select = lambda key, values: len(values) - 1
        assert not await rude.put("/octo/y", b"evil")
        assert not await rude.put("/octo/x", b"good 1")
        assert await honest.get("/octo/x") == b"good 5"
        # It keeps its own evil value, and serves it; the asker judges again.
        assert rude._values.get(b"/octo/y") is not None
        assert await honest.get("/octo/y") is None
        assert rude_host.connected


async def test_a_value_that_has_expired_is_not_served(nursery: trio.Nursery) -> None:
    with trio.fail_after(GENEROUS_SECONDS):
        (_, keeper), (_, asker) = await grow(nursery, 2)
        expired: set[bytes] = set()

        def accept_fresh(key: str, value: bytes) -> None:
            if value in expired:
                raise ValueError("it has expired")

        keeper._judge._validate = accept_fresh
        assert await keeper_has(keeper, asker)
        expired.add(b"good 1")
        assert await asker.get("/octo/x") is None


async def keeper_has(keeper: Kademlia, asker: Kademlia) -> bool:
    while not await keeper.put("/octo/x", b"good 1"):
        await trio.sleep(0.1)
    asker._values.remove(b"/octo/x")  # so that it must ask
    return await asker.get("/octo/x") == b"good 1"


async def test_a_provider_that_nobody_reaches_is_not_passed_on_by_hearsay(nursery: trio.Nursery) -> None:
    """The library stamps records anew when it hears of them, so that they never end."""
    clock = Clock()
    with trio.fail_after(GENEROUS_SECONDS):
        (a_host, a), (_, b), (_, c) = await grow(nursery, 3, now=clock, announcement_ttl_seconds=120.0)
        await until_taken(a)
        for table in (b, c):
            await until_found(table, {a_host.peer_id})
        for _ in range(13):
            clock.now_seconds += 10
            found = await b.find_providers(KEY), await c.find_providers(KEY)
        assert found == ((), ())


async def open_requests(host: Libp2pHost, peer: Any, count: int, held: list[Any]) -> None:
    for _ in range(count):
        held.append(await host.guard.open_for_library(peer, [KAD_PROTOCOL]))
    await held[-1].read(1)


async def test_a_silent_request_does_not_hold_a_place_for_ever(
    nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kad_host, "REQUEST_SECONDS", 5.0)  # all of them are opened in that time on a busy machine too
    with trio.fail_after(GENEROUS_SECONDS):
        (rude, _), (victim, table) = await grow(nursery, 2)
        (peer,) = rude.library.get_connected_peers()
        held: list[Any] = []
        # A stream over the bound is cut while it is opened, or the moment after.
        with pytest.raises((StreamReset, LibraryStreamReset, StreamEOF)):
            await open_requests(rude, peer, 2 * kad_host.INBOUND_PER_PEER_MAX, held)
        assert len(held) >= kad_host.INBOUND_PER_PEER_MAX
        assert max(table._kad_host._inbound.values()) == kad_host.INBOUND_PER_PEER_MAX
        while table._kad_host._inbound:
            await trio.sleep(0.05)
        assert await table.find_providers(KEY) == ()
        assert victim.connected
