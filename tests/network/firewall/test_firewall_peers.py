"""Peers that die, fall silent, or are wedged: real processes and real connections."""

from __future__ import annotations

import signal
from contextlib import suppress
from typing import Any

import pytest
import trio
from libp2p import new_host as new_library_host
from libp2p.crypto import ed25519, rsa, secp256k1
from libp2p.peer.peerinfo import info_from_p2p_addr
from multiaddr import Multiaddr

from octonode.errors import Unreachable
from octonode.network.host import StreamReset
from octonode.network.libp2p import guard, own, stock
from tests.network.firewall.conftest import new_key

ECHO = "/test/echo/1"
POUR = "/test/pour/1"
GENEROUS_SECONDS = 60


async def read_to_the_end(stream: Any) -> None:
    while await stream.receive():
        pass


async def open_more(a: Any, b: Any, count: int, held: list[Any]) -> None:
    for _ in range(count):
        held.append(await a.open(b.peer_id, ECHO))
        await held[-1].send(b"x")
        assert await held[-1].receive() == b"x"


async def open_and_ask(a: Any, b: Any) -> None:
    """A stream that is opened without asking (0-RTT) tells of a silent peer only by its silence; the next one asks."""
    for _ in range(2):
        stream = await a.open(b.peer_id, ECHO)
        with trio.move_on_after(1.0):
            await stream.send(b"x")
            await stream.receive()
        await stream.reset()


def negotiate_within(seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    for ground in (own, stock):
        monkeypatch.setattr(ground, "NEGOTIATION_SECONDS", seconds)


@pytest.mark.process
async def test_a_peer_killed_in_mid_stream_shows_as_a_reset(new_host: Any, peer_process: Any, until: Any) -> None:
    host = await new_host()
    with trio.fail_after(2 * GENEROUS_SECONDS):
        async with peer_process() as peer:
            await host.connect(peer.address)
            stream = await host.open(peer.peer_id, POUR)
            assert await stream.receive()
            peer.signal(signal.SIGKILL)
            with pytest.raises(StreamReset):
                await read_to_the_end(stream)
            await until(lambda: not host.connected)
            with pytest.raises(Unreachable):
                await host.open(peer.peer_id, ECHO)


@pytest.mark.process
async def test_a_silent_peer_is_given_up_and_found_again(
    new_host: Any, peer_process: Any, echoes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = await new_host(dial_timeout_seconds=3.0)
    other = await new_host()
    with trio.fail_after(2 * GENEROUS_SECONDS):
        async with peer_process() as peer:
            await host.connect(peer.address)
            await host.connect(other.addresses[0])
            assert await echoes(host, peer)
            peer.signal(signal.SIGSTOP)
            with monkeypatch.context() as patched:
                negotiate_within(1.0, patched)
                with pytest.raises(Unreachable):
                    await open_and_ask(host, peer)
            assert await echoes(host, other)
            peer.signal(signal.SIGCONT)
            assert await echoes(host, peer)


@pytest.mark.process
async def test_a_peer_that_answers_no_ping_is_dropped(new_host: Any, peer_process: Any, until: Any) -> None:
    host = await new_host()
    host.links.pulse_seconds, host.links.pulse_timeout_seconds = 0.2, 20.0
    with trio.fail_after(2 * GENEROUS_SECONDS):
        async with peer_process() as peer:
            await host.connect(peer.address)
            stream = await host.open(peer.peer_id, ECHO)
            await trio.sleep(1.5)
            assert host.connected == {peer.peer_id}
            peer.signal(signal.SIGSTOP)
            host.links.pulse_timeout_seconds = 0.5  # from here on no answer is late: none comes
            with pytest.raises(StreamReset):
                await stream.receive()
            await until(lambda: not host.connected)
            peer.signal(signal.SIGCONT)


def wedge(host: Any, connection: Any) -> None:
    """From now on `host` leaves what is opened on this connection without an answer."""
    serve = host.library.get_network().common_stream_handler

    async def never(stream: Any) -> None:
        await trio.sleep_forever()

    async def serve_all_but_the_wedged(net_stream: Any) -> None:
        await (never if net_stream.swarm_conn is connection else serve)(net_stream)

    host.library.get_network().common_stream_handler = serve_all_but_the_wedged
    connection.muxed_conn._serve = never


async def test_a_wedged_connection_is_retired_and_dialled_anew(
    new_host: Any, echoes: Any, until: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when the far library's accept loop has died: old streams live, new ones are never answered."""
    negotiate_within(3.0, monkeypatch)  # for the wedged streams, and enough for good ones on a busy machine
    a, b = await new_host(), await new_host()
    with trio.fail_after(GENEROUS_SECONDS):
        await a.connect(b.addresses[0])
        old_stream = await a.open(b.peer_id, ECHO)
        wedged = b.links.best(b.library.get_network().get_connections()[0].muxed_conn.peer_id)
        wedge(b, wedged)
        with suppress(Unreachable):
            await open_and_ask(a, b)
        assert await echoes(a, b)
        await old_stream.send(b"old")
        assert await old_stream.receive() == b"old"
        await old_stream.reset()
        await until(lambda: wedged.is_closed)
        assert await echoes(a, b)


async def test_a_peer_that_is_disconnected_while_it_is_identified_is_not_dialled_again(
    new_host: Any, until: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = await new_host(), await new_host()
    left = trio.Event()
    open_for_library = a._ground.open_for_library

    async def leave_meanwhile(connection: Any, protocols: Any) -> Any:
        if left.is_set():
            return await open_for_library(connection, protocols)
        await a.disconnect(b.peer_id)
        left.set()
        raise RuntimeError("the connection is gone")

    monkeypatch.setattr(a._ground, "open_for_library", leave_meanwhile)
    with trio.fail_after(GENEROUS_SECONDS):
        await a.connect(b.addresses[0])
        await left.wait()
        await until(lambda: not a.guard._identifying)
        assert not a.connected


async def test_connections_that_come_and_go_do_not_use_up_the_limit(new_host: Any, echoes: Any, until: Any) -> None:
    """The library counts every connection that it ever accepted, until it refuses the next."""
    b = await new_host(connections_max=3)
    with trio.fail_after(GENEROUS_SECONDS):
        for _ in range(8):
            a = await new_host()
            await a.connect(b.addresses[0])
            assert await echoes(a, b)
            await a.disconnect(b.peer_id)
            await until(lambda: not b.connected)


async def test_connections_over_the_limit_are_refused(new_host: Any, echoes: Any, until: Any) -> None:
    b = await new_host(connections_max=2)
    first, second, third = await new_host(), await new_host(), await new_host(dial_timeout_seconds=2.0)
    with trio.fail_after(GENEROUS_SECONDS):
        await first.connect(b.addresses[0])
        await second.connect(b.addresses[0])
        third.learn(b.peer_id, b.addresses)
        with pytest.raises(Unreachable):
            await third.open(b.peer_id, ECHO)
        assert await echoes(first, b)
        await first.disconnect(b.peer_id)
        await until(lambda: len(b.connected) == 1)
        assert await echoes(third, b)


@pytest.mark.parametrize("keys", [secp256k1, rsa], ids=["secp256k1", "rsa"])
async def test_a_peer_with_another_kind_of_key_is_no_peer(new_host: Any, echoes: Any, until: Any, keys: Any) -> None:
    """Its id holds no Ed25519 key: whoever opens a stream to it, or asks where it is, would fail by a ValueError."""
    b = await new_host()
    seen: set[str] = set()
    address = info_from_p2p_addr(Multiaddr(b.addresses[0]))
    stranger = new_library_host(key_pair=keys.create_new_key_pair())
    b.guard.connected = lambda connection: seen.add(str(connection.muxed_conn.peer_id))
    with trio.fail_after(GENEROUS_SECONDS):
        async with stranger.run(listen_addrs=[]):
            with suppress(Exception):  # whatever the library makes of a connection that is cut
                await stranger.connect(address)
                await (await stranger.new_stream(b.library.get_id(), [ECHO])).read(1)
        assert not b.connected
        assert not seen
        stock = new_library_host(key_pair=ed25519.create_new_key_pair())
        async with stock.run(listen_addrs=[]):
            await stock.connect(address)
            await until(lambda: len(b.connected) == 1)


async def test_peers_that_were_never_reached_leave_nothing_behind(new_host: Any, until: Any) -> None:
    """Strangers announce peers that do not exist, and each is tried."""
    a = await new_host(dial_timeout_seconds=2.0)
    with trio.fail_after(GENEROUS_SECONDS):
        for _ in range(5):
            gone = new_key().peer_id
            a.learn(gone, (f"/ip4/127.0.0.1/tcp/1/p2p/{gone}",))
            with pytest.raises(Unreachable):
                await a.open(gone, ECHO)
        assert not a.guard._used_at


async def test_inbound_streams_over_the_limit_are_reset(new_host: Any, echoes: Any, until: Any) -> None:
    b = await new_host(streams_per_peer_max=4)
    rude, polite = await new_host(), await new_host()
    with trio.fail_after(GENEROUS_SECONDS):
        await rude.connect(b.addresses[0])
        await polite.connect(b.addresses[0])
        held: list[Any] = []
        await open_more(rude, b, 50, held)
        with pytest.raises(StreamReset):
            await open_more(rude, b, 20, held)
        assert await echoes(polite, b)
        for stream in held:
            await stream.reset()
        await until(lambda: not b.guard._inbound)
        assert await echoes(rude, b)


async def test_idle_connections_make_room_when_the_house_is_nearly_full(
    new_host: Any, until: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "TRIM_IDLE_SECONDS", 0.0)
    b = await new_host(connections_max=4)
    with trio.fail_after(GENEROUS_SECONDS):
        busy = await new_host()
        await busy.connect(b.addresses[0])
        stream = await busy.open(b.peer_id, ECHO)
        await stream.send(b"x")
        assert await stream.receive() == b"x"
        for _ in range(6):
            idle = await new_host()
            await idle.connect(b.addresses[0])
            await until(lambda: len(b.connected) <= 3)
        assert busy.peer_id in b.connected
        await stream.reset()


async def test_a_cancelled_send_hurts_only_its_stream(new_host: Any, echoes: Any) -> None:
    """Cancelled between encrypting and sending, the library would make the whole connection undecipherable."""
    a, b = await new_host(), await new_host()

    async def swallow(stream: Any) -> None:
        await read_to_the_end(stream)

    b.handle(POUR, swallow)
    with trio.fail_after(GENEROUS_SECONDS):
        await a.connect(b.addresses[0])
        for index in range(40):
            stream = await a.open(b.peer_id, POUR)
            with trio.move_on_after(0.0002 * index):
                await stream.send(bytes(2_000_000))
            await stream.reset()
        assert await echoes(a, b)
        assert len(a.library.get_network().get_connections()) == 1


async def test_a_task_of_the_library_that_dies_ends_nothing_else(new_host: Any, echoes: Any) -> None:
    a, b = await new_host(), await new_host()

    async def die() -> None:
        raise ExceptionGroup("inside", [RuntimeError("the library")])

    with trio.fail_after(GENEROUS_SECONDS):
        await a.connect(b.addresses[0])
        b.library.get_network().manager.run_task(die)
        await trio.sleep(0.05)
        assert await echoes(a, b)
