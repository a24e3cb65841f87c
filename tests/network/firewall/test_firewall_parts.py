"""The parts of the firewall by themselves: what they count, bound, contain and forget."""

from __future__ import annotations

import hashlib
import itertools
import logging
from collections.abc import Callable
from typing import Any

import pytest
import trio
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.io.exceptions import ConnectionClosedError
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo
from multiaddr import Multiaddr
from trio.testing import MockClock

from octonode.identity import NodeKey
from octonode.network.keys import multihash
from octonode.network.libp2p import kad_stores, writes
from octonode.network.libp2p.containment import ContainedTasks, contained, supervised
from octonode.network.libp2p.kad_stores import FreshProviders
from octonode.network.libp2p.library import BoundedPeerStore, parse_dial_address, to_library_id
from octonode.network.libp2p.writes import WholeWrites


def peer(index: int) -> ID:
    return to_library_id(NodeKey(hashlib.sha256(f"part {index}".encode()).digest()).peer_id)


def info(index: int) -> PeerInfo:
    return PeerInfo(peer(index), [Multiaddr("/ip4/127.0.0.1/tcp/1")])


def key(index: int) -> bytes:
    return multihash(hashlib.sha256(f"key {index}".encode()).digest())


class FakeHost:
    def get_id(self) -> ID:
        return peer(0)


@pytest.fixture
def clock() -> list[float]:
    return [0.0]


@pytest.fixture
def providers(clock: list[float]) -> FreshProviders:
    return FreshProviders(FakeHost(), None, ttl_seconds=10.0, now=lambda: clock[0])


def test_a_provider_record_ends_with_its_time_unless_it_comes_again(
    providers: FreshProviders, clock: list[float]
) -> None:
    providers.add_provider(key(1), info(1))
    clock[0] = 9.0
    providers.add_provider(key(1), info(2))
    assert [each.peer_id for each in providers.get_providers(key(1))] == [peer(1), peer(2)]
    clock[0] = 10.0
    assert [each.peer_id for each in providers.get_providers(key(1))] == [peer(2)]
    providers.add_provider(key(1), info(2))
    clock[0] = 19.5
    assert [each.peer_id for each in providers.get_providers(key(1))] == [peer(2)]
    clock[0] = 20.0
    providers.cleanup_expired()
    assert providers.size() == 0
    assert not providers._kept
    assert not providers._keys_of


def test_a_full_key_takes_a_new_provider_once_an_old_one_has_ended(
    providers: FreshProviders, clock: list[float]
) -> None:
    for index in range(25):
        providers.add_provider(key(1), info(index))
    assert len(providers.get_providers(key(1))) == kad_stores.PROVIDERS_PER_KEY_MAX
    clock[0] = 11.0
    providers.add_provider(key(1), info(99))
    assert [each.peer_id for each in providers.get_providers(key(1))] == [peer(99)]


def test_one_provider_cannot_fill_the_store(providers: FreshProviders, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kad_stores, "KEYS_PER_PROVIDER_MAX", 5)
    monkeypatch.setattr(kad_stores, "PROVIDER_RECORDS_MAX", 12)
    for index in range(20):
        providers.add_provider(key(index), info(1))
    assert providers.size() == 5
    for index in range(2, 9):
        for serial in range(5):
            providers.add_provider(key(serial), info(index))
    assert providers.size() == 12
    assert providers.get_providers(key(0))


@pytest.mark.parametrize("bad", [b"", b"short", b"\x12\x20" + bytes(31), b"\x11\x20" + bytes(32), bytes(80)])
def test_only_sha256_keys_are_kept(providers: FreshProviders, bad: bytes) -> None:
    providers.add_provider(bad, info(1))
    assert providers.size() == 0


def test_our_own_key_survives_a_thousand_peers() -> None:
    """The library evicts peers without addresses first, which is what our own entry is."""
    store = BoundedPeerStore()
    pair = create_new_key_pair(bytes(32))
    own = ID.from_pubkey(pair.public_key)
    store.add_key_pair(own, pair)
    for index in range(1_200):
        store.add_addrs(peer(index), [Multiaddr(f"/ip4/10.0.0.1/tcp/{index + 1}")], 3600)
    assert store.privkey(own) == pair.private_key
    assert len(store.peer_ids()) <= store.max_peers
    many = [Multiaddr(f"/ip4/10.0.0.1/tcp/{port}") for port in range(1, 500)]
    for _ in range(3):
        store.add_addrs(peer(1), many, 3600)
    assert len(store.addrs(peer(1))) <= 32


A_PEER = NodeKey(bytes(32)).peer_id


@pytest.mark.parametrize(
    "address",
    [
        f"/ip4/127.0.0.1/udp/4001/quic-v1/p2p/{A_PEER}",
        f"/ip4/127.0.0.1/tcp/80/ws/p2p/{A_PEER}",
        f"/p2p/{A_PEER}",
        f"/ip4/127.0.0.1/tcp/1/p2p/{A_PEER}/p2p-circuit/p2p/{A_PEER}",
        "/ip4/127.0.0.1/tcp/1/p2p/QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N",
        f"/ip4/999.0.0.1/tcp/1/p2p/{A_PEER}",
        "/ip4/1.2.3.4/tcp/1" + "x" * 600,
    ],
)
def test_what_is_not_dialled(address: str) -> None:
    with pytest.raises(ValueError):
        parse_dial_address(address)


@pytest.mark.parametrize("place", ["/ip4/1.2.3.4/tcp/1", "/ip6/::1/tcp/2", "/dns4/example.org/tcp/4808"])
def test_what_is_dialled(place: str) -> None:
    parsed, owner = parse_dial_address(f"{place}/p2p/{A_PEER}")
    assert (str(parsed), owner) == (place, A_PEER)


async def test_contained_lets_a_real_cancellation_pass() -> None:
    with trio.move_on_after(0.01) as scope:
        await contained("a sleeper", trio.sleep_forever)
    assert scope.cancelled_caught


async def test_contained_stops_everything_else(caplog: pytest.LogCaptureFixture) -> None:
    async def fail(error: BaseException) -> None:
        raise error

    for error in (ValueError("x"), ExceptionGroup("g", [KeyError("y")]), BaseExceptionGroup("b", [ValueError("z")])):
        assert not await contained("a task", fail, error)
    assert len([each for each in caplog.records if each.levelno == logging.WARNING]) == 3
    with pytest.raises(KeyboardInterrupt):
        await contained("a task", fail, KeyboardInterrupt())
    with pytest.raises(BaseExceptionGroup):
        await contained("a task", fail, BaseExceptionGroup("b", [SystemExit(1)]))


async def test_a_service_starts_again_with_longer_and_longer_pauses(autojump_clock: MockClock) -> None:
    starts: list[float] = []

    async def fragile() -> None:
        starts.append(trio.current_time())
        if len(starts) == 8:
            await trio.sleep(61)  # healthy for once
        raise RuntimeError("again")

    with trio.move_on_after(190):
        await supervised("a service", fragile)
    pauses = [round(later - earlier, 1) for earlier, later in itertools.pairwise(starts)]
    assert pauses[:8] == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 61.5]


async def test_a_daemon_task_that_ends_finishes_its_service() -> None:
    async with trio.open_nursery() as nursery:

        def spawn(what: str, work: Callable[..., Any], *args: Any) -> None:
            nursery.start_soon(contained, what, work, *args)

        manager = ContainedTasks(spawn)
        manager.run_task(trio.sleep, 0)
        await trio.testing.wait_all_tasks_blocked()
        assert manager.is_running
        manager.run_daemon_task(trio.sleep, 0)
        await manager.wait_finished()
        assert not manager.is_running


class Wire:
    """A secured connection that records what is written, and takes it when told."""

    def __init__(self) -> None:
        self.messages: list[bytes] = []
        self.open = trio.Event()
        self.closed = False
        self.fail: Exception | None = None

    async def write(self, data: bytes) -> None:
        await self.open.wait()
        if self.fail is not None:
            raise self.fail
        self.messages.append(data)

    async def close(self) -> None:
        self.closed = True
        await trio.lowlevel.checkpoint()


def whole(wire: Wire, nursery: trio.Nursery) -> WholeWrites:
    return WholeWrites(wire, nursery.start_soon)


async def test_frames_leave_whole_in_order_and_together(nursery: trio.Nursery) -> None:
    wire = Wire()
    whole(wire, nursery)
    frames = [bytes([index]) * 10_000 for index in range(12)]
    for frame in frames:
        await wire.write(frame)
    wire.open.set()
    await wire.close()
    assert b"".join(wire.messages) == b"".join(frames)
    assert len(wire.messages) < len(frames)
    assert max(map(len, wire.messages)) <= writes.BATCH_BYTES_MAX
    assert wire.closed


async def test_a_writer_waits_at_the_bound_and_control_frames_do_not(
    nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writes, "WAITING_BYTES_MAX", 100)
    wire = Wire()
    whole(wire, nursery)
    await wire.write(bytes(100))
    with trio.move_on_after(0.02) as waited:
        await wire.write(b"never" * 10)
    assert waited.cancelled_caught
    await wire.write(b"ping")
    wire.open.set()
    await wire.close()
    assert b"".join(wire.messages) == bytes(100) + b"ping"


async def test_after_a_failed_write_nothing_is_taken(nursery: trio.Nursery) -> None:
    wire = Wire()
    wire.fail = OSError("gone")
    wire.open.set()
    whole(wire, nursery)
    await wire.write(b"first")
    await trio.testing.wait_all_tasks_blocked()
    assert wire.closed
    with pytest.raises(ConnectionClosedError):
        await wire.write(b"second")


async def test_a_peer_that_takes_nothing_is_cut_off(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    wire = Wire()
    whole(wire, nursery)
    await wire.write(b"first")
    await trio.sleep(writes.WRITE_SECONDS + 1)
    assert wire.closed
