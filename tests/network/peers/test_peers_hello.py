"""Hello between two nodes, one of which misbehaves."""

from __future__ import annotations

import os
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from octonode.errors import OctonodeError, RemoteProtocolError, Unreachable
from octonode.ids import HELLO_PROTOCOL
from octonode.network.addresses import GatewayAddress
from octonode.network.hello_messages import (
    ANNOUNCEMENTS_MAX,
    Announce,
    Announced,
    Announcements,
    DialBack,
    FindPeers,
    HelloLimits,
    Manifest,
    Ping,
    Pong,
    decode_answer,
    encode_answer,
    encode_request,
)
from octonode.network.host import Stream, StreamReset
from octonode.network.own_announcement import NodeFacts
from octonode.network.streams import FrameStream
from octonode.protocol.announcement import Holding, Serving
from octonode.protocol.framing import encode_frame
from tests.network.peers.world import OTHER_ROOT, ROOT, START_MS, Node, World, announced, key_of, now_ms


async def two(world: World, **options: Any) -> tuple[Node, Node]:
    """B asks, A answers with `options`; connected."""
    a, b = await world.listen_only("a", **options), await world.listen_only("b")
    await b.network.host.connect(a.address)
    return a, b


async def raw(asker: Node, peer: Node, payload: bytes, *, framed: bool = True) -> Any:
    """What `peer` answers to bytes that no node of ours would send."""
    stream = await asker.network.host.open(peer.id, HELLO_PROTOCOL)
    frames = FrameStream(stream, 512 * 1024)
    await stream.send(encode_frame(payload) if framed else payload)
    await stream.finish()
    answer = await frames.receive_frame(20)
    await frames.end()
    return decode_answer(answer)


async def code_of(asker: Node, peer: Node, payload: bytes, *, framed: bool = True) -> str:
    with pytest.raises(OctonodeError) as caught:
        await raw(asker, peer, payload, framed=framed)
    return caught.value.code


async def settled(node: Node) -> None:
    """Both ends have let go of every stream."""
    await trio.sleep(10)
    assert node.network.host.streams_open == 0


def answering(world: World, name: str, answer: bytes) -> Any:
    """A peer that answers every hello with the same bytes."""
    node = world.memory.node(key_of(name).peer_id)

    async def handle(stream: Stream) -> None:
        await FrameStream(stream, 1024 * 1024).receive_frame(10)
        await stream.send(answer)

    node.host.handle(HELLO_PROTOCOL, handle)
    return node


async def test_a_greeting_tells_both(world: World, autojump_clock: MockClock) -> None:
    a, b = await two(world, facts=NodeFacts(tier="prosumer"))
    assert (await b.peers.hello.greet(a.id)).tier == "prosumer"
    assert b.knows(a)
    assert a.knows(b)
    assert b.peers.hello.observed_as[a.id] == "127.0.0.1"
    assert a.peers.hello.greeted_at_ms(b.id) == now_ms()
    await settled(a)


async def test_ping_manifest_and_peers(world: World, autojump_clock: MockClock) -> None:
    a, b = await two(world)
    world.memory.latency_seconds = 0.1
    assert await b.peers.hello.ping(a.id) >= 0.2
    a.shown.named[a.id, "smol"] = b"x" * 300_000
    a.shown.by_cid[ROOT] = b"y"
    assert await b.peers.hello.manifest(a.id, a.id, "smol") == b"x" * 300_000
    assert await b.peers.hello.manifest(a.id, a.id, "none") is None
    assert await b.peers.hello.manifest_by_cid(a.id, ROOT) == b"y"
    a.shown.by_cid[OTHER_ROOT] = b"z" * 500_000
    assert await b.peers.hello.manifest_by_cid(a.id, OTHER_ROOT) is None, "over the size it is as good as none"
    for index in range(40):
        a.peers.book.add(*announced(f"p{index}"), now_ms())
    assert len(await b.peers.hello.peers(a.id)) == ANNOUNCEMENTS_MAX
    assert len(await b.peers.hello.peers(a.id, 3)) == 3


async def test_providers_are_those_of_the_model_and_the_answering_node(world: World, autojump_clock: MockClock) -> None:
    a, b = await two(world, facts=NodeFacts(holding=(Holding(ROOT),)))
    a.peers.book.add(*announced("server", serving=(Serving(ROOT),)), now_ms())
    a.peers.book.add(*announced("other", serving=(Serving(OTHER_ROOT),)), now_ms())
    found = {x.peer_id for x in await b.peers.hello.providers(a.id, ROOT)}
    assert found == {a.id, key_of("server").peer_id}


async def test_providers_are_at_most_16_drawn_at_random_and_fresh(world: World, autojump_clock: MockClock) -> None:
    """The DHT ends at 20 providers a key: without chance the same few would get all the work."""
    a, b = await two(world, facts=NodeFacts(serving=(Serving(ROOT),)))
    over, soon_over = announced("soon over", serving=(Serving(ROOT),), expires_at_ms=START_MS + 1000)
    for index in range(60):
        a.peers.book.add(*announced(f"server {index}", serving=(Serving(ROOT),)), now_ms())
    a.peers.book.add(over, soon_over, now_ms())
    await trio.sleep(2)
    draws = []
    for _ in range(8):
        found = [x.peer_id for x in await b.peers.hello.providers(a.id, ROOT)]
        assert len(found) == len(set(found)) == ANNOUNCEMENTS_MAX == 16
        assert a.id in found
        assert over.peer_id not in found
        draws.append(frozenset(found))
    assert len(set(draws)) > 1
    assert len(frozenset.union(*draws)) > 32


async def test_a_model_that_did_not_fit_the_announcement_is_still_answered_for(
    world: World, autojump_clock: MockClock
) -> None:
    roots = [f"bafybei{index:052d}" for index in range(60)]
    a, b = await two(world, facts=NodeFacts(holding=tuple(Holding(root, name=f"{root}/n") for root in roots)))
    await b.peers.hello.greet(a.id)
    assert (known := b.peers.book.get(a.id, now_ms())) is not None
    assert known.trimmed
    assert roots[-1] not in {holding.root for holding in known.holding}
    [own] = await b.peers.hello.providers(a.id, roots[-1])
    assert roots[-1] in {holding.root for holding in own.holding}
    assert [x.peer_id for x in b.peers.book.holding(roots[-1], now_ms())] == [a.id]


async def test_bad_announcements_are_refused_each_for_its_reason(world: World, autojump_clock: MockClock) -> None:
    a, b = await two(world)
    _, expired = announced("b", at_ms=START_MS - 600_000)
    _, early = announced("b", at_ms=START_MS + 3_600_000, expires_at_ms=START_MS + 3_700_000)
    _, foreign = announced("c")
    _, good = announced("b")
    assert await code_of(b, a, encode_request(Announce(expired))) == "EXPIRED"
    assert await code_of(b, a, encode_request(Announce(early))) == "CLOCK_SKEW"
    assert await code_of(b, a, encode_request(Announce(foreign))) == "MISADDRESSED"
    assert await code_of(b, a, encode_request(Announce(good[:-1]))) in ("BAD_MESSAGE", "BAD_SIGNATURE")
    assert await code_of(b, a, encode_request(Announce(good + b"\0" * 5000))) == "TOO_LARGE"
    assert len(a.peers.book) == 0
    assert a.peers.intake.counts["EXPIRED"] == 1


async def test_an_older_sequence_changes_nothing(world: World, autojump_clock: MockClock) -> None:
    a, b = await two(world)
    _, newer = announced("b", sequence=7, tier="consumer")
    _, older = announced("b", sequence=6, tier="enterprise")
    await raw(b, a, encode_request(Announce(newer)))
    await raw(b, a, encode_request(Announce(older)))
    [known] = a.peers.book.peers(now_ms())
    assert (known.sequence, known.tier) == (7, "consumer")
    assert a.peers.intake.counts["OLDER"] == 1


async def test_an_announced_gateway_elsewhere_is_not_followed(world: World, autojump_clock: MockClock) -> None:
    """B announces addresses inside A's network: none is dialled, and its gateway is asked for at B's own address."""
    a = await world.listen_only("a", ip="203.0.113.1")
    b = await world.listen_only("b", ip="203.0.113.9")
    victims = ("/ip4/127.0.0.1/tcp/8808", "/ip4/192.168.1.1/tcp/80", "/ip4/169.254.169.254/tcp/80")
    await b.network.host.connect(a.address)
    _, data = announced("b", addresses=victims, gateway_port=4810, holding=(Holding(ROOT),))
    await raw(b, a, encode_request(Announce(data)))
    assert await a.peers.discovery.gateways(ROOT) == [GatewayAddress(b.id, "203.0.113.9", 4810)]
    learnt = a.network.host._known.get(b.id, ())
    assert learnt
    assert all("/203.0.113.9/" in address for address in learnt)


@pytest.mark.parametrize(
    ("payload", "framed", "code"),
    [
        (b"", True, "BAD_MESSAGE"),
        (b"\xc1", True, "BAD_MESSAGE"),
        (os.urandom(1000), True, "BAD_MESSAGE"),
        (b"\x81\xa3ask\xa5danc", True, "BAD_MESSAGE"),
        (b"\x81\xa3ask\xa5dance", True, "UNSUPPORTED"),
        (b"\x82\xa3ask\xa4ping\xa5nonce\xc4\x01x", True, "BAD_MESSAGE"),
        (b"\xff\xff\xff\xff\x7f", False, "TOO_LARGE"),
        (b"\x80\x80\x80\x80\x80\x80", False, "BAD_MESSAGE"),
        (b"GET / HTTP/1.1\r\n\r\n", False, "BAD_MESSAGE"),
    ],
)
async def test_junk_gets_an_error_and_hurts_nobody(
    world: World, autojump_clock: MockClock, payload: bytes, framed: bool, code: str
) -> None:
    a, b = await two(world)
    if payload.startswith(b"GET"):
        with pytest.raises(StreamReset):
            await raw(b, a, payload, framed=framed)
    else:
        assert await code_of(b, a, payload, framed=framed) == code
    assert await b.peers.hello.ping(a.id) >= 0


async def test_a_flood_is_held_to_its_rate_and_others_are_served(world: World, autojump_clock: MockClock) -> None:
    limits = HelloLimits(requests_per_second=5, requests_burst=10)
    a, b = await two(world, limits=limits)
    c = await world.listen_only("c")
    await c.network.host.connect(a.address)
    served = refused = 0
    for _ in range(200):
        try:
            await b.peers.hello.ping(a.id)
            served += 1
        except OctonodeError as error:
            refused += error.code == "RATE_LIMITED" and bool(error.retry_after_seconds)
    assert (served, refused) == (10, 190)
    assert await c.peers.hello.ping(a.id) >= 0
    await trio.sleep(1)
    assert await b.peers.hello.ping(a.id) >= 0


async def test_many_at_once_are_refused_beyond_the_handlers(world: World, autojump_clock: MockClock) -> None:
    a, b = await two(world, limits=HelloLimits(handlers_per_peer_max=4))
    held = [await b.network.host.open(a.id, HELLO_PROTOCOL) for _ in range(4)]
    await trio.sleep(0.01)
    with pytest.raises(OctonodeError, match="at once"):
        await b.peers.hello.ping(a.id)
    await trio.sleep(a.peers.hello.limits.request_timeout_seconds + 1)
    assert await b.peers.hello.ping(a.id) >= 0, "streams that say nothing are given up"
    for stream in held:
        await stream.reset()


async def test_a_silent_peer_costs_one_timeout(world: World, autojump_clock: MockClock) -> None:
    a, b = await two(world)
    world.memory.silence(a.id)
    with pytest.raises(Unreachable) as caught:
        await b.peers.hello.ping(a.id)
    assert caught.value.code == "DEADLINE"
    await settled(b)


async def test_a_peer_that_trickles_its_answer_costs_one_timeout(world: World, autojump_clock: MockClock) -> None:
    b = await world.listen_only("b")
    slow = world.memory.node(key_of("slow").peer_id)

    async def trickle(stream: Stream) -> None:
        for byte in encode_frame(encode_answer(Pong(b"\0" * 16))) * 100:
            await stream.send(bytes([byte]))
            await trio.sleep(1)

    slow.host.handle(HELLO_PROTOCOL, trickle)
    await world.nursery.start(slow.run)
    await b.network.host.connect(slow.host.addresses[0])
    with trio.fail_after(b.peers.hello.limits.request_timeout_seconds + 2), pytest.raises(Unreachable):
        await b.peers.hello.ping(slow.host.peer_id)


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"", StreamReset),
        (b"\x05abc", StreamReset),
        (encode_frame(b"junk"), RemoteProtocolError),
        (b"\xff\xff\xff\x7f", RemoteProtocolError),
        (encode_frame(encode_answer(Pong(b"\0" * 16))), RemoteProtocolError),
        (encode_frame(encode_answer(Manifest(b"m"))), RemoteProtocolError),
        (encode_frame(b"\x82\xa6answer\xa5error\xa4code\xa3ODD"), OctonodeError),
    ],
)
async def test_a_peer_that_answers_junk_is_a_named_error(
    world: World, autojump_clock: MockClock, answer: bytes, error: type[OctonodeError]
) -> None:
    b = await world.listen_only("b")
    bad = answering(world, "bad", answer)
    await world.nursery.start(bad.run)
    await b.network.host.connect(bad.host.addresses[0])
    with pytest.raises(error):
        await b.peers.hello.ping(bad.host.peer_id)
    await settled(b)


async def test_announcements_handed_on_are_verified_one_by_one(world: World, autojump_clock: MockClock) -> None:
    b = await world.listen_only("b")
    (_, good), (_, expired) = announced("good"), announced("late", at_ms=START_MS - 600_000)
    _, forged = announced("forged", tier="consumer")
    forged = forged.replace(b"consumer", b"prosumer")
    bad = answering(world, "bad", encode_frame(encode_answer(Announcements((b"junk", expired, forged, good)))))
    await world.nursery.start(bad.run)
    await b.network.host.connect(bad.host.addresses[0])
    assert [x.peer_id for x in await b.peers.hello.peers(bad.host.peer_id)] == [key_of("good").peer_id]


async def test_a_peer_that_greets_as_another_is_not_taken(world: World, autojump_clock: MockClock) -> None:
    b = await world.listen_only("b")
    bad = answering(world, "bad", encode_frame(encode_answer(Announced(announced("c")[1]))))
    await world.nursery.start(bad.run)
    await b.network.host.connect(bad.host.addresses[0])
    with pytest.raises(RemoteProtocolError, match="as its own"):
        await b.peers.hello.greet(bad.host.peer_id)
    assert len(b.peers.book) == 0


async def test_dial_back_tries_the_asker_alone(world: World, autojump_clock: MockClock) -> None:
    a = await world.listen_only("a", ip="203.0.113.1")
    b = await world.listen_only("b", ip="203.0.113.9")
    await b.network.host.connect(a.address)
    wanted = [
        "/tcp/4808", "/ip4/203.0.113.9/tcp/4809", "/ip4/203.0.113.1/tcp/22", "/ip4/127.0.0.1/tcp/22",
        "/dns4/victim.example/tcp/80", "/tcp/0", "junk",
    ]  # fmt: skip
    answer = await b.peers.hello.dialback(a.id, wanted)
    assert answer.observed == "203.0.113.9"
    assert [r.outcome for r in answer.results] == ["reached", "reached", *["refused"] * 5]
    assert a.probed == [("203.0.113.9", 4808), ("203.0.113.9", 4809)]


async def test_dial_backs_are_few(world: World, autojump_clock: MockClock) -> None:
    a, b = await two(world)
    await b.peers.hello.dialback(a.id, ["/tcp/1"])
    await b.peers.hello.dialback(a.id, ["/tcp/2"])
    with pytest.raises(OctonodeError, match="dial-backs") as caught:
        await b.peers.hello.dialback(a.id, ["/tcp/3"])
    assert caught.value.code == "RATE_LIMITED"
    assert len(a.probed) == 2
    assert await code_of(b, a, encode_request(DialBack(tuple(f"/tcp/{n}" for n in range(1, 20))))) == "TOO_LARGE"


async def test_two_hundred_peers_say_hello(world: World, autojump_clock: MockClock) -> None:
    a = await world.listen_only("a", peerbook_peers_max=50, connections_max=300)
    for index in range(200):
        peer = await world.listen_only(f"stranger {index}")
        await peer.network.host.connect(a.address)
        await peer.peers.hello.greet(a.id)
        await peer.network.host.disconnect(a.id)
    assert len(a.peers.book) == 50
    last = await world.listen_only("last")
    await last.network.host.connect(a.address)
    assert len(await last.peers.hello.peers(a.id)) == 16


async def test_requests_of_every_kind_work_in_one_connection_at_once(world: World, autojump_clock: MockClock) -> None:
    a, b = await two(world)
    async with trio.open_nursery() as nursery:
        for _ in range(8):
            nursery.start_soon(b.peers.hello.ping, a.id)
            nursery.start_soon(b.peers.hello.greet, a.id)
            nursery.start_soon(b.peers.hello.peers, a.id)
            nursery.start_soon(b.peers.hello.manifest, a.id, a.id, "none")
    await settled(b)
    assert await raw(b, a, encode_request(FindPeers(1)))
    assert await raw(b, a, encode_request(Ping(b"\1" * 16))) == Pong(b"\1" * 16)
