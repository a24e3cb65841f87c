"""Dial-back and what its answers mean."""

from __future__ import annotations

from functools import partial

import pytest
import trio
from trio.testing import MockClock

from octonode.ids import PeerId
from octonode.network.dialback import MULTISTREAM, dial_back, targets, tcp_probe
from octonode.network.hello_messages import Dialled, Outcome
from octonode.network.reachability import Witness, check, listening_ports, verdict
from tests.network.peers.world import World, key_of

A, B = key_of("a").peer_id, key_of("b").peer_id


def test_only_the_observed_host_is_a_target() -> None:
    seen = "203.0.113.9"
    allowed = targets(["/tcp/4808", "/ip4/203.0.113.9/tcp/1", "/ip6/::ffff:203.0.113.9/tcp/2"], seen)
    assert [target.port for target in allowed] == [4808, 1, 2]
    refused = [
        "/ip4/203.0.113.8/tcp/1", "/ip4/127.0.0.1/tcp/1", "/dns/203.0.113.9/tcp/1", "/ip4/203.0.113.9/tcp/0",
        "/ip4/203.0.113.9/tcp/1/ws", "/tcp/99999", "/tcp/-1", "/udp/1", "", "/tcp/1/../2",
    ]  # fmt: skip
    assert all(target.refusal and not target.port for target in targets(refused, seen))
    assert len(targets(["/tcp/1"] * 8, seen)) == 1, "one try for one port"


async def listener(nursery: trio.Nursery, says: bytes) -> int:
    async def serve(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.receive_some(64)
            if says:
                await stream.send_all(says)

    [listening] = await nursery.start(partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
    return int(listening.socket.getsockname()[1])


async def test_the_probe_tells_libp2p_from_others(nursery: trio.Nursery) -> None:
    with trio.fail_after(30):
        assert await tcp_probe("127.0.0.1", await listener(nursery, MULTISTREAM)) == "reached"
        assert await tcp_probe("127.0.0.1", await listener(nursery, b"HTTP/1.1 400 Bad Request\r\n\r\n")) == "stranger"
        assert await tcp_probe("127.0.0.1", await listener(nursery, b"")) == "stranger"
        [unused] = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = unused.socket.getsockname()[1]
        await unused.aclose()
        assert await tcp_probe("127.0.0.1", port) == "closed"


async def test_a_port_that_does_not_answer_is_silent(autojump_clock: MockClock) -> None:
    async def hang(ip: str, port: int) -> Outcome:
        await trio.sleep_forever()
        raise AssertionError

    [result] = await dial_back(["/tcp/4808"], "203.0.113.9", hang, 4.0)
    assert result.outcome == "silent"
    assert trio.current_time() == pytest.approx(4.0)


def witness(peer_id: PeerId, ip: str, outcome: Outcome) -> Witness:
    return Witness(peer_id, ip, (Dialled("/tcp/4808", outcome, "why"),))


@pytest.mark.parametrize(
    ("witnesses", "state", "said"),
    [
        ([], "unknown", "no peer is connected"),
        ([Witness(A, failure="RATE_LIMITED: later")], "unknown", "later"),
        ([witness(A, "8.8.8.8", "reached")], "reachable", "8.8.8.8"),
        ([witness(A, "8.8.8.8", "silent"), witness(B, "8.8.8.8", "reached")], "reachable", "8.8.8.8"),
        ([witness(A, "127.0.0.1", "reached")], "local", "near"),
        ([witness(A, "192.168.1.2", "reached")], "local", "near"),
        ([witness(A, "192.168.1.2", "reached"), witness(B, "8.8.8.8", "closed")], "local", "near"),
        ([witness(A, "8.8.8.8", "closed")], "unreachable", "8.8.8.8"),
        ([witness(A, "8.8.8.8", "silent")], "unreachable", "8.8.8.8"),
        ([witness(A, "8.8.8.8", "stranger")], "unreachable", "8.8.8.8"),
        ([witness(A, "8.8.8.8", "refused")], "unknown", "did not try"),
    ],
)
def test_the_verdict(witnesses: list[Witness], state: str, said: str) -> None:
    found = verdict([4808], witnesses)
    assert found.state == state
    assert said in found.reason
    assert found.advice or state != "unreachable", "what to do is said where something is wrong"
    assert verdict([], witnesses).state == "unknown"


def test_ports_that_can_be_tried() -> None:
    assert listening_ports(["/ip4/1.2.3.4/tcp/1", "/ip4/127.0.0.1/tcp/1", "/ip4/1.2.3.4/tcp/2/ws", "junk"]) == [1]


async def test_doctor_asks_some_peers(world: World, autojump_clock: MockClock) -> None:
    me = await world.listen_only("me", ip="8.8.8.8")
    helpers = [await world.listen_only(f"h{index}", ip=f"9.9.9.{index}") for index in range(5)]
    for helper in helpers:
        await me.network.host.connect(helper.address)
    found = await check(me.network.host, me.peers.hello, world.random)
    assert found.state == "reachable"
    assert len(found.witnesses) == 3
    assert {host for helper in helpers for host, _ in helper.probed} == {"8.8.8.8"}


async def test_doctor_is_not_held_up_by_silent_peers(world: World, autojump_clock: MockClock) -> None:
    me, mute = await world.listen_only("me"), await world.listen_only("mute")
    await me.network.host.connect(mute.address)
    world.memory.silence(mute.id)
    with trio.fail_after(25):
        found = await check(me.network.host, me.peers.hello, world.random)
    assert found.state == "unknown"
