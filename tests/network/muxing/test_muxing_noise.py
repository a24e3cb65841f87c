"""Our Noise channel over the library's handshake: any sizes in any pieces, a full kernel, and bytes that are false."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio
from libp2p.io.exceptions import ConnectionClosedError
from libp2p.io.utils import read_exactly

from octonode.network.libp2p.noise import NONCES_MAX, PLAINTEXT_BYTES_MAX, NoiseChannel
from tests.network.muxing.links import secured_over_memory, secured_over_tcp, socket_of

SIZES = [0, 1, 2, 15, 16, 17, 1000, 8 * 1024, PLAINTEXT_BYTES_MAX - 1, PLAINTEXT_BYTES_MAX]
LARGE = [PLAINTEXT_BYTES_MAX + 1, 2 * PLAINTEXT_BYTES_MAX, 200_000]


def text(size: int) -> bytes:
    return (bytes(range(251)) * (size // 251 + 1))[:size]


@pytest.fixture(params=["tcp", "memory"])
async def channels(request: pytest.FixtureRequest) -> tuple[NoiseChannel, NoiseChannel]:
    one, two = await (secured_over_tcp() if request.param == "tcp" else secured_over_memory())
    return NoiseChannel(one), NoiseChannel(two)


@pytest.fixture
async def over_tcp() -> AsyncIterator[tuple[NoiseChannel, Any]]:
    """Our reader, the peer's session to seal with, and its socket to write any bytes to."""
    one, two = await secured_over_tcp()
    ours, peer = NoiseChannel(one), NoiseChannel(two)
    yield ours, peer
    await ours.close()
    await peer.close()


async def put(peer: NoiseChannel, wire: bytes) -> None:
    """Straight into the kernel, encrypted or not."""
    sock = socket_of(peer)
    while wire:
        wire = wire[await sock.send(wire) :]


async def all_of(channel: NoiseChannel, size: int) -> list[bytes]:
    """The messages until so many bytes have come."""
    messages: list[bytes] = []
    while sum(map(len, messages)) < size:
        messages += await channel.receive()
    return messages


# Sizes, both ways, both kinds of ends.


@pytest.mark.parametrize("size", SIZES + LARGE)
async def test_ours_to_ours(channels: tuple[NoiseChannel, NoiseChannel], size: int) -> None:
    for one, two in (channels, channels[::-1]):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one.flush, text(size), b"")
            messages = await all_of(two, size)
        assert b"".join(messages) == text(size)
        assert all(0 < len(message) <= PLAINTEXT_BYTES_MAX for message in messages)


@pytest.mark.parametrize("size", SIZES[1:] + LARGE)
async def test_ours_to_the_librarys_and_back(size: int) -> None:
    one, library = await secured_over_tcp()
    ours = NoiseChannel(one)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ours.write, text(size))
        assert await read_exactly(library, size) == text(size)
        nursery.start_soon(library.write, text(size))
        assert await read_exactly(ours, size) == text(size)
        nursery.start_soon(library.write, text(size))
        assert b"".join(await all_of(ours, size)) == text(size)


async def test_an_empty_write_puts_nothing_on_the_wire() -> None:
    """The library takes an empty message of Noise for the end of the connection."""
    one, library = await secured_over_tcp()
    ours = NoiseChannel(one)
    await ours.write(b"")
    assert ours.send_now(b"")
    await ours.flush()
    await ours.write(b"still here")
    assert await library.read(10) == b"still here"


# Pieces.


@pytest.mark.parametrize("step", [1, 2, 3, 17, 1000, 65_537])
async def test_messages_in_pieces(over_tcp: tuple[NoiseChannel, NoiseChannel], step: int) -> None:
    ours, peer = over_tcp
    sizes = [0, 1, 30, 0, 700] if step < 17 else [*SIZES, 0, 5]
    wire = b"".join(peer.seal(text(size)) for size in sizes)

    async def trickle() -> None:
        for at in range(0, len(wire), step):
            await put(peer, wire[at : at + step])
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trickle)
        messages = await all_of(ours, sum(sizes))
    assert [len(message) for message in messages] == [size for size in sizes if size]
    assert b"".join(messages) == b"".join(map(text, sizes))


async def test_many_messages_come_by_one_read(over_tcp: tuple[NoiseChannel, NoiseChannel]) -> None:
    ours, peer = over_tcp
    await put(peer, b"".join(peer.seal(b"%d" % number) for number in range(100)))
    assert await ours.receive() == [b"%d" % number for number in range(100)]


async def test_a_read_that_is_cancelled_loses_nothing(over_tcp: tuple[NoiseChannel, NoiseChannel]) -> None:
    ours, peer = over_tcp
    wire = peer.seal(text(5000))
    await put(peer, wire[:3000])
    with trio.move_on_after(0.02):
        await ours.receive()
    await put(peer, wire[3000:])
    assert await ours.receive() == [text(5000)]


# Ends, and bytes that are false.


async def test_an_end_between_messages(channels: tuple[NoiseChannel, NoiseChannel]) -> None:
    one, two = channels
    await one.write(b"the last")
    await one.close()
    assert await two.receive() == [b"the last"]
    assert await two.receive() == []


@pytest.mark.parametrize("kept", [1, 2, 3, 100])
async def test_an_end_within_a_message(over_tcp: tuple[NoiseChannel, NoiseChannel], kept: int) -> None:
    ours, peer = over_tcp
    await put(peer, peer.seal(b"whole") + peer.seal(bytes(200))[:kept])
    await peer.close()
    assert await ours.receive() == [b"whole"]
    with pytest.raises(ConnectionClosedError):
        await ours.receive()


@pytest.mark.parametrize("at", [2, 3, 50, -17, -16, -1])
async def test_a_flipped_bit(over_tcp: tuple[NoiseChannel, NoiseChannel], at: int) -> None:
    ours, peer = over_tcp
    wire = bytearray(peer.seal(text(100)))
    wire[at] ^= 1
    await put(peer, bytes(wire))
    with pytest.raises(ConnectionClosedError):
        await ours.receive()


@pytest.mark.parametrize("size", [*range(17), 40])
async def test_messages_that_nobody_has_sealed(over_tcp: tuple[NoiseChannel, NoiseChannel], size: int) -> None:
    ours, peer = over_tcp
    await put(peer, size.to_bytes(2, "big") + bytes(size))
    with pytest.raises(ConnectionClosedError):
        await ours.receive()


async def test_messages_in_another_order_or_twice(over_tcp: tuple[NoiseChannel, NoiseChannel]) -> None:
    ours, peer = over_tcp
    first, second = peer.seal(b"first"), peer.seal(b"second")
    await put(peer, first)
    assert await ours.receive() == [b"first"]
    await put(peer, first + second)
    with pytest.raises(ConnectionClosedError):
        await ours.receive()


async def test_a_connection_that_was_closed_here(channels: tuple[NoiseChannel, NoiseChannel]) -> None:
    one, _ = channels
    await one.close()
    with pytest.raises((OSError, ConnectionClosedError, trio.ClosedResourceError)):
        await one.receive()


async def test_nonces_are_not_used_twice(over_tcp: tuple[NoiseChannel, NoiseChannel]) -> None:
    ours, peer = over_tcp
    for cipher in (ours._decrypt, peer._encrypt):
        cipher._count = NONCES_MAX - 1
    await peer.write(b"the last")
    assert await ours.receive() == [b"the last"]
    with pytest.raises(ConnectionClosedError):
        peer.seal(b"one more")
    await put(peer, (17).to_bytes(2, "big") + bytes(17))
    with pytest.raises(ConnectionClosedError):
        await ours.receive()


# A kernel that takes no more.


async def test_what_the_kernel_does_not_take_is_kept_in_order(over_tcp: tuple[NoiseChannel, NoiseChannel]) -> None:
    ours, peer = over_tcp
    socket_of(peer).setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    sent = []
    while peer.send_now(text(30_000 + len(sent))):
        sent.append(text(30_000 + len(sent)))
    sent.append(text(30_000 + len(sent)))
    assert peer.has_tail
    for more in (b"after the tail", b"and this"):
        assert not peer.send_now(more)
        sent.append(more)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(peer.flush, b"at last", b"!")
        sent += [b"at last", b"!"]
        messages = await all_of(ours, sum(map(len, sent)))
    assert messages == sent
    assert not peer.has_tail
    assert peer.send_now(b"as before") or not await peer.flush()  # type: ignore[func-returns-value]
    assert await ours.receive() == [b"as before"]


async def test_any_number_of_messages_is_flushed_at_once(over_tcp: tuple[NoiseChannel, NoiseChannel]) -> None:
    """The kernel takes no more than 1,024 pieces in one call."""
    ours, peer = over_tcp
    sent = [b"%d" % number for number in range(1500)]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(peer.flush, *sent)
        assert await all_of(ours, sum(map(len, sent))) == sent


async def test_where_there_is_no_socket_a_flush_sends(monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = await secured_over_memory()
    ours, peer = NoiseChannel(one), NoiseChannel(two)
    with monkeypatch.context() as patch:
        patch.setattr(peer._raw, "write", None)
        await peer.flush()  # an empty message of a websocket is no business of ours
    assert not peer.send_now(b"first")
    assert not peer.send_now(b"second")
    await peer.flush(b"third")
    assert not peer.has_tail
    assert await all_of(ours, 16) == [b"first", b"second", b"third"]


# Reading as the library does before there is a muxer.


async def test_reads_of_exact_sizes(channels: tuple[NoiseChannel, NoiseChannel]) -> None:
    ours, peer = channels
    for part in (b"abc", b"defgh", b"ij", b"klmno"):
        await peer.write(part)
    assert await ours.read(0) == b""
    assert await ours.read(1) == b"a"
    assert await ours.read(4) == b"bcde"
    assert await ours.read(5) == b"fghij"
    assert b"".join(await all_of(ours, 5)) == b"klmno"


async def test_what_was_not_read_comes_first_to_the_muxer(channels: tuple[NoiseChannel, NoiseChannel]) -> None:
    ours, peer = channels
    await peer.write(b"negotiation, then frames")
    assert await ours.read(11) == b"negotiation"
    await peer.write(b" and more")
    assert b"".join(await all_of(ours, 22)) == b", then frames and more"


async def test_reads_at_the_end(channels: tuple[NoiseChannel, NoiseChannel]) -> None:
    ours, peer = channels
    await peer.write(b"short")
    await peer.close()
    assert await ours.read(100) == b"short", "fewer at the end"
    for size in (1, None):
        with pytest.raises(ConnectionClosedError):
            await ours.read(size)


async def test_a_read_without_a_size_takes_what_is_there(channels: tuple[NoiseChannel, NoiseChannel]) -> None:
    ours, peer = channels
    await peer.write(b"message")
    assert await ours.read() == b"message"


async def test_it_says_who_is_there() -> None:
    one, two = await secured_over_tcp()
    ours = NoiseChannel(one)
    assert ours.is_initiator
    assert not NoiseChannel(two).is_initiator
    assert (ours.remote_peer, ours.local_peer) == (two.local_peer, two.remote_peer)
    assert ours.get_remote_address() == socket_of(one).getpeername()
