"""The ground under the firewall: which one it is, streams that open without asking, and what a peer may not hold."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest
import trio

from octonode.config import NetworkConfig
from octonode.errors import Refused
from octonode.network.host import ProtocolNotSupported, StreamReset
from octonode.network.libp2p import ground, own
from octonode.network.libp2p.host import Libp2pHost, choose_ground
from octonode.network.libp2p.muxing.connection import MuxedConnection
from tests.network.firewall.conftest import new_key
from tests.tidy import tree

ECHO = "/test/echo/1"
OTHER = "/test/other/1"
GENEROUS_SECONDS = 60
MIB = 1024 * 1024


@pytest.fixture
def muxer() -> str:
    """All of this is about ours, where a test does not say otherwise."""
    return "own"


def muxed(a: Any, b: Any) -> MuxedConnection:
    """The one connection that `a` has to `b`."""
    (connection,) = [
        each for each in a.library.get_network().get_connections() if each.muxed_conn.peer_id == b.library.get_id()
    ]
    found: MuxedConnection = connection.muxed_conn
    return found


async def ask(stream: Any, data: bytes = b"hello") -> bytes:
    await stream.send(data)
    await stream.finish()
    answer = bytearray()
    while piece := await stream.receive():
        answer += piece
    return bytes(answer)


def test_the_library_is_pinned_to_the_version_that_was_read() -> None:
    project = tomllib.loads(tree.text(tree.ROOT / "pyproject.toml"))["project"]
    assert f"libp2p=={ground.LIBRARY_VERSION}" in project["dependencies"]
    assert ground.library_is_known()


def test_our_muxer_is_the_default_and_another_library_means_the_stock_one(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def spawn(*args: Any) -> None: ...

    assert choose_ground(NetworkConfig(), spawn).name == "own"
    assert choose_ground(NetworkConfig(muxer="stock"), spawn).name == "stock"
    monkeypatch.setattr(ground, "version", lambda name: "0.9.0")
    assert choose_ground(NetworkConfig(), spawn).name == "stock"
    assert "0.9.0" in caplog.text
    assert Libp2pHost(new_key(), NetworkConfig()).muxer == "stock"


@pytest.mark.parametrize("name", ["own", "stock"])
async def test_a_host_says_what_its_connections_are_really_made_of(new_host: Any, echoes: Any, name: str) -> None:
    a, b = await new_host(muxer=name), await new_host()
    with trio.fail_after(GENEROUS_SECONDS):
        await a.connect(b.addresses[0])
        assert await echoes(a, b)
    assert (a.muxer, b.muxer) == (name, "own")
    assert all(isinstance(each.muxed_conn, MuxedConnection) for each in b.library.get_network().get_connections())


async def test_a_connection_of_another_make_is_named(new_host: Any) -> None:
    a, b, stock = await new_host(), await new_host(), await new_host(muxer="stock")
    with trio.fail_after(GENEROUS_SECONDS):
        await a.connect(b.addresses[0])
        a.library.get_network().upgrader.muxer_multistream = stock.library.get_network().upgrader.muxer_multistream
        assert a.muxer == "MuxerMultistream"
        stranger = await new_host()
        await a.connect(stranger.addresses[0])
        assert a.muxer == "MuxerMultistream, Yamux"


async def test_the_second_stream_of_a_protocol_is_opened_without_asking(new_host: Any) -> None:
    a, b = await new_host(), await new_host()
    with trio.fail_after(GENEROUS_SECONDS):
        await a.connect(b.addresses[0])
        assert await ask(await a.open(b.peer_id, ECHO)) == b"hello"
        assert ECHO in muxed(a, b).proven
        streams_before = len(muxed(b, a).session.streams)
        stream = await a.open(b.peer_id, ECHO)
        assert len(muxed(b, a).session.streams) == streams_before, "nothing was sent to open it"
        assert await ask(stream, b"at once") == b"at once"


async def test_a_stream_that_was_not_asked_for_may_be_read_or_finished_first(new_host: Any) -> None:
    a, b = await new_host(), await new_host()

    async def greet(stream: Any) -> None:
        await stream.send(b"welcome")
        assert await stream.receive() == b""

    b.handle(OTHER, greet)
    with trio.fail_after(GENEROUS_SECONDS):
        await a.connect(b.addresses[0])
        for _ in range(2):  # the first asks, the second does not
            stream = await a.open(b.peer_id, OTHER)
            assert await stream.receive() == b"welcome"
            await stream.finish()
            assert await stream.receive() == b""
        stream = await a.open(b.peer_id, OTHER)
        await stream.finish()
        assert await stream.receive() == b"welcome"


async def test_a_protocol_that_a_peer_speaks_no_more_is_asked_for_again(new_host: Any) -> None:
    a, b = await new_host(), await new_host()
    with trio.fail_after(GENEROUS_SECONDS):
        await a.connect(b.addresses[0])
        muxed(a, b).proven.add(OTHER)
        stream = await a.open(b.peer_id, OTHER)
        with pytest.raises(StreamReset):
            await stream.receive()
        with pytest.raises(ProtocolNotSupported):
            await a.open(b.peer_id, OTHER)


async def test_a_stream_that_chooses_nothing_is_reset_in_time(
    new_host: Any, echoes: Any, until: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rude, b = await new_host(), await new_host()
    with trio.fail_after(GENEROUS_SECONDS):
        await rude.connect(b.addresses[0])
        assert await echoes(rude, b)
        monkeypatch.setattr(own, "NEGOTIATION_SECONDS", 0.3)
        silent = [await muxed(rude, b).open_stream() for _ in range(5)]
        for stream in silent:
            await stream.write(b"\x13/multi")
        for stream in silent:
            with pytest.raises(own.MuxedStreamError):
                await stream.read(1)
        await until(lambda: not muxed(b, rude).session.streams)
        monkeypatch.undo()
        assert await echoes(rude, b)


async def test_a_stream_that_speaks_something_else_is_reset(new_host: Any, echoes: Any) -> None:
    rude, b = await new_host(), await new_host()
    with trio.fail_after(GENEROUS_SECONDS):
        await rude.connect(b.addresses[0])
        for junk in (b"GET / HTTP/1.1\r\n\r\n" * 3, b"\xff" * 40, b"\x13/multistream/9.0.0\n"):
            stream = await muxed(rude, b).open_stream()
            await stream.write(junk)
            with pytest.raises(own.MuxedStreamError):
                await stream.read(1)
        assert await echoes(rude, b)


async def test_a_reader_that_stops_loses_its_stream_before_the_others_lose_theirs(new_host: Any, echoes: Any) -> None:
    b = await new_host(received_bytes_per_connection_max=2 * MIB)
    a = await new_host()
    stopped: list[Any] = []

    async def stop(stream: Any) -> None:
        stopped.append(stream)
        await trio.sleep_forever()

    b.handle(OTHER, stop)
    with trio.fail_after(GENEROUS_SECONDS):
        await a.connect(b.addresses[0])
        async with trio.open_nursery() as nursery:

            async def pour() -> None:
                stream = await a.open(b.peer_id, OTHER)
                with pytest.raises(StreamReset):
                    await stream.send(bytes(8 * MIB))

            for _ in range(12):  # twelve first windows are three MiB
                nursery.start_soon(pour)
            while not any(stream._muxed.was_cut for stream in stopped):
                assert muxed(b, a).session.received_bytes <= 2 * MIB
                await trio.sleep(0.01)
            assert await echoes(a, b)
            for stream in stopped:
                await stream.reset()


async def test_a_connection_that_is_over_keeps_no_buffer(new_host: Any) -> None:
    """It is part of cycles, which Python collects when it likes; hundreds of them would hold what they received."""
    a, b = await new_host(), await new_host()
    with trio.fail_after(GENEROUS_SECONDS):
        await a.connect(b.addresses[0])
        assert len(await ask(await a.open(b.peer_id, ECHO), bytes(MIB))) == MIB
        ended = muxed(a, b)
        assert len(ended.secured_conn._buffer) > 64 * 1024
        await a.disconnect(b.peer_id)
    assert ended.is_closed
    assert not ended.secured_conn._buffer


@pytest.mark.slow
async def test_a_stock_writer_outlasts_a_reader_that_pauses_for_longer_than_it_waits(new_host: Any) -> None:
    """It gives up after five seconds of a closed window; the credit of our ACK keeps it from closing."""
    a, b = await new_host(muxer="stock"), await new_host()
    sent = bytes(900 * 1024)
    got = bytearray()
    done = trio.Event()

    async def pause_and_read(stream: Any) -> None:
        await stream.send(b"go")
        await trio.sleep(7)
        while piece := await stream.receive():
            got.extend(piece)
        done.set()

    b.handle(OTHER, pause_and_read)
    with trio.fail_after(GENEROUS_SECONDS):
        await a.connect(b.addresses[0])
        stream = await a.open(b.peer_id, OTHER)
        assert await stream.receive() == b"go"
        await stream.send(sent)
        await stream.finish()
        await done.wait()
    assert bytes(got) == sent


async def test_streams_beyond_what_a_connection_carries_are_refused(new_host: Any) -> None:
    a, b = await new_host(), await new_host()
    with trio.fail_after(GENEROUS_SECONDS):
        await a.connect(b.addresses[0])
        session = muxed(a, b).session
        session.limits = type(session.limits)(streams_max=len(session.streams) + 1)
        held = await a.open(b.peer_id, ECHO)
        with pytest.raises(Refused):
            await a.open(b.peer_id, ECHO)
        assert await ask(held) == b"hello"
        assert await ask(await a.open(b.peer_id, ECHO)) == b"hello"
