"""What strangers write on the port: junk, silence, half frames, no encryption."""

from __future__ import annotations

import hashlib
import struct
from typing import Any

import pytest
import trio
from libp2p import PLAINTEXT_PROTOCOL_ID
from libp2p import new_host as new_library_host
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.custom_types import TProtocol
from libp2p.peer.peerinfo import info_from_p2p_addr
from libp2p.security.insecure.transport import InsecureTransport
from multiaddr import Multiaddr

from octonode.config import NetworkConfig
from octonode.errors import ConfigError
from octonode.identity import NodeKey
from octonode.network.libp2p import listener
from octonode.network.libp2p.host import Libp2pHost

ECHO = "/test/echo/1"
GENEROUS_SECONDS = 60
MULTISTREAM = b"\x13/multistream/1.0.0\n"
NOISE = b"\x07/noise\n"


def port_of(host: Any) -> int:
    return int(host.addresses[0].split("/")[4])


JUNK = {
    "nothing": b"",
    "http": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "ones": b"\xff" * 5000,
    "random": b"".join(hashlib.sha256(bytes([i])).digest() for i in range(200)),
    "half a header": MULTISTREAM[:7],
    "a bad handshake": MULTISTREAM + NOISE + b"\x00\x20" + bytes(32) + b"\xff" * 1000,
    "a length and no more": MULTISTREAM + NOISE + b"\xff\xff",
}


@pytest.mark.parametrize("junk", JUNK.values(), ids=JUNK.keys())
async def test_junk_on_the_port_ends_its_own_connection(new_host: Any, echoes: Any, junk: bytes) -> None:
    a, b = await new_host(), await new_host()
    with trio.fail_after(GENEROUS_SECONDS):
        for _ in range(3):
            stream = await trio.open_tcp_stream("127.0.0.1", port_of(b))
            await stream.send_all(junk)
            await stream.send_eof()
            try:
                while await stream.receive_some(4096):
                    pass
            except trio.BrokenResourceError:
                pass
            await stream.aclose()
        await a.connect(b.addresses[0])
        assert await echoes(a, b)


async def test_200_half_open_connections_and_then_a_new_peer(new_host: Any, echoes: Any) -> None:
    a, b = await new_host(), await new_host()
    with trio.fail_after(GENEROUS_SECONDS):
        strangers = [await trio.open_tcp_stream("127.0.0.1", port_of(b)) for _ in range(200)]
        await a.connect(b.addresses[0])
        assert await echoes(a, b)
        for stranger in strangers:
            await stranger.aclose()


async def test_half_open_connections_over_the_limit_push_out_the_oldest(
    new_host: Any, echoes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener, "HALF_OPEN_MAX", 10)
    a, b = await new_host(), await new_host()
    with trio.fail_after(GENEROUS_SECONDS):
        strangers = [await trio.open_tcp_stream("127.0.0.1", port_of(b)) for _ in range(30)]
        await a.connect(b.addresses[0])
        assert await echoes(a, b)
        # We speak first, then the first of them is told to go; the last one still waits for its handshake.
        while await strangers[0].receive_some(4096):
            pass
        assert b._doorkeeper.half_open <= 10
        for stranger in strangers:
            await stranger.aclose()


async def test_a_plaintext_peer_is_refused(new_host: Any) -> None:
    b = await new_host()
    pair = create_new_key_pair(hashlib.sha256(b"plain").digest())
    plain = new_library_host(
        key_pair=pair, sec_opt={TProtocol(PLAINTEXT_PROTOCOL_ID): InsecureTransport(pair, peerstore=None)}
    )
    address = Multiaddr("/ip4/127.0.0.1/tcp/0")
    with trio.fail_after(GENEROUS_SECONDS):
        async with plain.run(listen_addrs=[address]):
            with pytest.raises(Exception, match="unable to connect"):
                await plain.connect(info_from_p2p_addr(Multiaddr(b.addresses[0])))
    assert not b.connected


FRAMES = {
    "half a header": b"\x00\x00\x00",
    "half a body": struct.pack("!BBHII", 0, 0, 0, 1, 1000) + b"only this",
    "an unknown type": struct.pack("!BBHII", 0, 77, 0, 1, 5),
    "an unknown version": struct.pack("!BBHII", 9, 0, 0, 1, 0),
    "a body of 4 GiB": struct.pack("!BBHII", 0, 0, 0, 1, 0xFFFFFFFF),
    "data for nobody": struct.pack("!BBHII", 0, 0, 0, 999_999, 3) + b"abc",
    "go away": struct.pack("!BBHII", 0, 3, 0, 0, 77),
}


@pytest.mark.parametrize("frame", FRAMES.values(), ids=FRAMES.keys())
async def test_a_broken_frame_ends_its_own_connection_at_most(new_host: Any, echoes: Any, frame: bytes) -> None:
    rude, a, b = await new_host(), await new_host(), await new_host()
    with trio.fail_after(GENEROUS_SECONDS):
        await a.connect(b.addresses[0])
        await rude.connect(b.addresses[0])
        (connection,) = rude.library.get_network().get_connections()
        await connection.muxed_conn.secured_conn.write(frame)
        await trio.sleep(0.05)
        await connection.muxed_conn.secured_conn.close()
        assert await echoes(a, b)
        assert await echoes(rude, b)


async def test_bytes_that_do_not_decrypt_end_their_connection_alone(new_host: Any, echoes: Any) -> None:
    rude, a, b = await new_host(), await new_host(), await new_host()
    with trio.fail_after(GENEROUS_SECONDS):
        await a.connect(b.addresses[0])
        await rude.connect(b.addresses[0])
        (connection,) = rude.library.get_network().get_connections()
        raw = connection.muxed_conn.secured_conn.conn.read_writer.read_write_closer
        await raw.write(b"\x00\x40" + bytes(64))
        await trio.sleep(0.05)
        assert await echoes(a, b)
        assert await echoes(rude, b)


async def test_a_busy_port_is_named_with_what_to_do(new_host: Any) -> None:
    b = await new_host()
    second = Libp2pHost(NodeKey(bytes(32)), NetworkConfig(listen=f"127.0.0.1:{port_of(b)}"))
    with trio.fail_after(GENEROUS_SECONDS), pytest.raises(ConfigError) as refusal:
        await second.run()
    assert str(port_of(b)) in refusal.value.message
    assert "--p2p" in refusal.value.message


async def test_an_address_that_is_not_ours_is_a_config_error() -> None:
    host = Libp2pHost(NodeKey(bytes(32)), NetworkConfig(listen="203.0.113.7:0"))
    with trio.fail_after(GENEROUS_SECONDS), pytest.raises(ConfigError, match=r"203\.0\.113\.7"):
        await host.run()


async def test_a_wildcard_is_shown_as_addresses_one_can_dial(new_host: Any, echoes: Any) -> None:
    a, b = await new_host(), await new_host(listen="0.0.0.0:0")
    assert b.addresses[-1].startswith("/ip4/127.0.0.1/tcp/")
    assert not any("0.0.0.0" in address for address in b.addresses)
    with trio.fail_after(GENEROUS_SECONDS):
        await a.connect(b.addresses[-1])
        assert await echoes(a, b)


async def test_a_stock_host_of_the_library_can_talk_to_us(new_host: Any) -> None:
    b = await new_host()
    stock = new_library_host(key_pair=create_new_key_pair(hashlib.sha256(b"stock").digest()))
    with trio.fail_after(GENEROUS_SECONDS):
        async with stock.run(listen_addrs=[Multiaddr("/ip4/127.0.0.1/tcp/0")]):
            await stock.connect(info_from_p2p_addr(Multiaddr(b.addresses[0])))
            (peer,) = stock.get_connected_peers()
            stream = await stock.new_stream(peer, [TProtocol(ECHO)])
            await stream.write(b"hello")
            assert await stream.read(5) == b"hello"
            await stream.close()
