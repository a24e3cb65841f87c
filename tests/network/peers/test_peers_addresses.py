"""Which addresses are read, and which of a stranger's addresses are dialled."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octonode.ipfs.cid import DAG_PB, Cid, dag_pb_cid, raw_cid
from octonode.network.addresses import (
    ADDRESSES_PER_PEER_MAX,
    AddressError,
    GatewayAddress,
    announceable,
    dialable,
    gateway_of,
    may_dial,
    parse,
    parse_peer,
    same_ip,
    scope_of,
)
from octonode.network.roots import RootError, root_digest
from tests.network.peers.world import ROOT, key_of

PEER, OTHER = key_of("a").peer_id, key_of("b").peer_id


@pytest.mark.parametrize(
    "text",
    [
        "/ip4/203.0.113.7/tcp/4808",
        "/ip4/127.0.0.1/tcp/0/ws",
        f"/ip6/2001:db8::1/tcp/65535/p2p/{PEER}",
        f"/dns4/node.example/tcp/4809/ws/p2p/{PEER}",
    ],
)
def test_what_is_read_is_written_the_same(text: str) -> None:
    assert parse(text).text == text


@pytest.mark.parametrize(
    "text",
    [
        "", "/", "127.0.0.1:4808", "/ip4/127.0.0.1", "/ip4/127.0.0.1/tcp", "/ip4/127.0.0.1/udp/1/quic-v1",
        "/ip4/127.0.0.1/tcp/65536", "/ip4/127.0.0.1/tcp/-1", "/ip4/127.0.0.1/tcp/٣", "/ip4/127.1/tcp/1",
        "/ip4/::1/tcp/1", "/ip6/127.0.0.1/tcp/1", "/ip6/fe80::1%eth0/tcp/1", "/dns/-x/tcp/1", "/dns/a b/tcp/1",
        "/ip4/127.0.0.1/tcp/1/p2p/QmNope", "/ip4/127.0.0.1/tcp/1/p2p", f"/ip4/127.0.0.1/tcp/1/p2p/{PEER}/p2p-circuit",
        "/ip4/127.0.0.1/tcp/1/ws/ws", "x" * 1000,
    ],
)  # fmt: skip
def test_what_is_no_address_is_said_so(text: str) -> None:
    with pytest.raises(AddressError):
        parse(text)


@given(
    st.text(max_size=80)
    | st.lists(st.sampled_from(["ip4", "ip6", "dns", "tcp", "ws", "p2p", "1", "::", PEER])).map("/".join)
)
def test_any_text_gives_an_address_or_an_address_error(text: str) -> None:
    try:
        address = parse(text)
    except AddressError:
        return
    assert parse(address.text) == address


def test_a_peer_must_be_named_where_one_is_dialled() -> None:
    with pytest.raises(AddressError, match="who is there"):
        parse_peer("/ip4/127.0.0.1/tcp/4808")


@pytest.mark.parametrize(
    ("ip", "scope"),
    [
        ("127.8.0.1", "loopback"), ("::1", "loopback"), ("::ffff:127.0.0.1", "loopback"), ("0.0.0.0", "unspecified"),
        ("::", "unspecified"), ("224.0.0.1", "unspecified"), ("255.255.255.255", "unspecified"),
        ("10.1.2.3", "private"), ("192.168.1.1", "private"), ("100.64.0.1", "private"), ("169.254.169.254", "private"),
        ("fd00::1", "private"), ("fe80::1%eth0", "private"), ("8.8.8.8", "public"), ("2606:4700::1", "public"),
    ],
)  # fmt: skip
def test_scopes(ip: str, scope: str) -> None:
    assert scope_of(ip) == scope


@pytest.mark.parametrize(
    ("address", "reached", "allowed"),
    [
        ("/ip4/8.8.8.8/tcp/4808", [], True),
        ("/dns/node.example/tcp/4808", [], True),
        ("/ip4/127.0.0.1/tcp/4808", [], False),
        ("/ip4/127.0.0.1/tcp/4808", ["8.8.8.8", "192.168.1.4"], False),
        ("/ip4/127.0.0.1/tcp/4808", ["127.0.0.1"], True),
        ("/ip6/::ffff:127.0.0.1/tcp/4808", ["8.8.8.8"], False),
        ("/ip4/192.168.1.7/tcp/4808", ["127.0.0.1"], False),
        ("/ip4/192.168.1.7/tcp/4808", ["192.168.9.1"], True),
        ("/ip4/10.0.0.7/tcp/4808", ["192.168.9.1"], False),
        ("/ip4/169.254.169.254/tcp/80", ["10.0.0.1", "192.168.9.1", "8.8.8.8"], False),
        ("/ip4/0.0.0.0/tcp/4808", ["127.0.0.1"], False),
        ("/ip4/8.8.8.8/tcp/0", [], False),
    ],
)
def test_near_addresses_are_dialled_only_where_peers_are_near(address: str, reached: list[str], allowed: bool) -> None:
    assert may_dial(parse(address), reached) is allowed


def test_what_a_peer_announces_is_sifted() -> None:
    announced = (
        "/ip4/10.0.0.1/tcp/22", "/ip4/127.0.0.1/tcp/8808", f"/ip4/8.8.4.4/tcp/4808/p2p/{OTHER}", "junk",
        "/ip4/8.8.8.8/tcp/4808", f"/ip4/8.8.8.8/tcp/4808/p2p/{PEER}",
    )  # fmt: skip
    assert dialable(PEER, announced, reached_ips=["1.1.1.1"]) == (f"/ip4/8.8.8.8/tcp/4808/p2p/{PEER}",)
    first, *_ = dialable(PEER, ("/ip4/8.8.8.8/tcp/4808",), [], observed_ip="9.9.9.9")
    assert first == f"/ip4/9.9.9.9/tcp/4808/p2p/{PEER}"
    many = tuple(f"/ip4/8.8.8.8/tcp/{port}" for port in range(1, 100))
    assert len(dialable(PEER, many, [])) == ADDRESSES_PER_PEER_MAX


def test_a_gateway_is_at_the_address_of_the_connection() -> None:
    assert gateway_of(PEER, 4810, "203.0.113.7") == GatewayAddress(PEER, "203.0.113.7", 4810)
    assert gateway_of(PEER, 4810, None) is None
    assert gateway_of(PEER, 0, "203.0.113.7") is None


def test_what_is_announced() -> None:
    listening = ("/ip4/0.0.0.0/tcp/4808", f"/ip4/192.168.1.5/tcp/4808/p2p/{PEER}")
    assert announceable(listening, (), PEER) == (f"/ip4/192.168.1.5/tcp/4808/p2p/{PEER}",)
    assert announceable(listening, ("/dns4/n.example/tcp/1",), PEER) == (f"/dns4/n.example/tcp/1/p2p/{PEER}",)


def test_spellings_of_an_ip_are_one() -> None:
    assert same_ip("::ffff:10.0.0.1", "10.0.0.1")
    assert not same_ip("10.0.0.1", "10.0.0.2")
    assert not same_ip("node.example", "10.0.0.1")


def test_the_digest_inside_a_root() -> None:
    data = b"octonode"
    digest = hashlib.sha256(data).digest()
    for cid in (raw_cid(data), dag_pb_cid(data), Cid(DAG_PB, digest, version=0)):
        assert root_digest(cid.text) == digest
    for bad in ("", "b", "bafy", "z" + ROOT, ROOT.upper(), "Qm" + "1" * 44, "b" + "a" * 200, "Qm0OIl", ROOT[:-8]):
        with pytest.raises(RootError):
            root_digest(bad)
