"""What any host does, in memory and over libp2p."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio

from octonode.errors import Refused, Unreachable
from octonode.network.host import Host, ProtocolNotSupported, Stream, StreamReset

ECHO = "/test/echo/1"
OTHER = "/test/other/1"
Handler = Callable[[Stream], Awaitable[None]]
Ask = Callable[[Stream, bytes], Awaitable[bytes]]
Until = Callable[[Callable[[], Any]], Awaitable[None]]
GENEROUS_SECONDS = 60


async def test_addresses_are_known_once_it_runs(world: Any) -> None:
    network = world.network()
    assert network.host.addresses == ()
    await world.nursery.start(network.run)
    assert network.host.addresses
    assert all(address.endswith(f"/p2p/{network.host.peer_id}") for address in network.host.addresses)


async def test_connect_makes_both_ends_see_each_other(world: Any, until: Until) -> None:
    a, b = await world.running(), await world.running()
    assert a.host.observed_ip(b.host.peer_id) is None
    with trio.fail_after(GENEROUS_SECONDS):
        assert await a.host.connect(b.host.addresses[0]) == b.host.peer_id
        assert await a.host.connect(b.host.addresses[0]) == b.host.peer_id
        await until(lambda: a.host.peer_id in b.host.connected)
    assert a.host.connected == {b.host.peer_id}
    assert a.host.observed_ip(b.host.peer_id) == "127.0.0.1"
    assert b.host.observed_ip(a.host.peer_id) == "127.0.0.1"


@pytest.mark.parametrize(
    "address",
    ["", "nonsense", "/ip4/127.0.0.1/tcp/1", "/ip4/127.0.0.1/tcp/1/p2p/short", "/ip4/127.0.0.1/udp/1/p2p/", "/p2p/x"],
)
async def test_a_malformed_address_is_a_value_error(world: Any, address: str) -> None:
    a = await world.running()
    with pytest.raises(ValueError):
        await a.host.connect(address)


async def test_another_peer_at_the_address_is_refused(world: Any) -> None:
    a, b = await world.running(), await world.running()
    stranger = world.key().peer_id
    place = b.host.addresses[0].rpartition("/p2p/")[0]
    with trio.fail_after(GENEROUS_SECONDS):
        with pytest.raises(Unreachable):
            await a.host.connect(f"{place}/p2p/{stranger}")
        assert a.host.connected == frozenset()
        await a.host.connect(b.host.addresses[0])


async def test_nobody_at_the_address_is_unreachable(world: Any) -> None:
    a = await world.running()
    with trio.fail_after(GENEROUS_SECONDS), pytest.raises(Unreachable):
        await a.host.connect(f"/ip4/127.0.0.1/tcp/1/p2p/{world.key().peer_id}")


async def test_we_do_not_dial_ourselves(world: Any) -> None:
    a = await world.running()
    with trio.fail_after(GENEROUS_SECONDS), pytest.raises(Unreachable):
        await a.host.connect(a.host.addresses[0])


async def test_a_peer_without_an_address_is_unreachable(world: Any) -> None:
    a = await world.running()
    with trio.fail_after(GENEROUS_SECONDS), pytest.raises(Unreachable):
        await a.host.open(world.key().peer_id, ECHO)


async def test_a_protocol_that_is_not_served(world: Any, echo: Handler, ask: Ask) -> None:
    a, b = await world.pair()
    b.handle(ECHO, echo)
    with trio.fail_after(GENEROUS_SECONDS):
        with pytest.raises(ProtocolNotSupported):
            await a.open(b.peer_id, OTHER)
        assert await ask(await a.open(b.peer_id, ECHO), b"still here") == b"still here"


async def test_learned_addresses_are_dialled(world: Any, echo: Handler, ask: Ask) -> None:
    a, b = await world.running(), await world.running()
    b.host.handle(ECHO, echo)
    a.host.learn(b.host.peer_id, ("nonsense", f"/ip4/127.0.0.1/tcp/1/p2p/{b.host.peer_id}", *b.host.addresses))
    with trio.fail_after(GENEROUS_SECONDS):
        assert await ask(await a.host.open(b.host.peer_id, ECHO), b"hello") == b"hello"


async def test_an_address_of_somebody_else_is_not_learned(world: Any) -> None:
    a, b = await world.running(), await world.running()
    stranger = world.key().peer_id
    a.host.learn(stranger, b.host.addresses)
    with trio.fail_after(GENEROUS_SECONDS), pytest.raises(Unreachable):
        await a.host.open(stranger, ECHO)


async def test_disconnect_resets_streams_and_open_dials_again(
    world: Any, echo: Handler, ask: Ask, until: Until
) -> None:
    a, b = await world.pair()
    b.handle(ECHO, echo)
    with trio.fail_after(GENEROUS_SECONDS):
        stream = await a.open(b.peer_id, ECHO)
        await stream.send(b"x")
        assert await stream.receive() == b"x"
        await a.disconnect(b.peer_id)
        with pytest.raises(StreamReset):
            await stream.receive()
        assert a.connected == frozenset()
        await until(lambda: not b.connected)
        assert await ask(await a.open(b.peer_id, ECHO), b"again") == b"again"


async def fail_with_value_error(stream: Stream) -> None:
    raise ValueError("a bug")


async def fail_with_reset(stream: Stream) -> None:
    raise StreamReset("of another stream")


async def fail_with_group(stream: Stream) -> None:
    raise ExceptionGroup("two bugs", [ValueError("one"), KeyError("two")])


async def fail_with_stray_cancelled(stream: Stream) -> None:
    stray: BaseException = ValueError("never raised")
    with trio.CancelScope() as scope:
        scope.cancel()
        try:
            await trio.sleep_forever()
        except trio.Cancelled as error:
            stray = error
            raise
    raise stray


async def fail_half_way(stream: Stream) -> None:
    await stream.send(b"so far")
    await trio.sleep(0.01)
    raise RuntimeError("then nothing")


async def open_and_read(a: Host, b: Host, protocol: str) -> None:
    """A reset may already be there when the stream is opened."""
    stream = await a.open(b.peer_id, protocol)
    while await stream.receive():
        pass


FAILURES = [fail_with_value_error, fail_with_reset, fail_with_group, fail_with_stray_cancelled, fail_half_way]


@pytest.mark.parametrize("failing", FAILURES, ids=lambda f: f.__name__)
async def test_a_handler_that_fails_hurts_only_its_stream(
    world: Any, echo: Handler, ask: Ask, failing: Handler
) -> None:
    a, b = await world.pair()
    b.handle(OTHER, failing)
    b.handle(ECHO, echo)
    with trio.fail_after(GENEROUS_SECONDS):
        for _ in range(3):
            with pytest.raises(StreamReset):
                await open_and_read(a, b, OTHER)
            assert await ask(await a.open(b.peer_id, ECHO), b"still here") == b"still here"
        assert b.peer_id in a.connected


async def test_streams_over_the_limit_wait_for_their_turn(world: Any, echo: Handler, ask: Ask) -> None:
    a, b = await world.pair(streams_per_peer_max=2)
    b.handle(ECHO, echo)
    with trio.fail_after(GENEROUS_SECONDS):
        first, second = await a.open(b.peer_id, ECHO), await a.open(b.peer_id, ECHO)
        third: list[Stream] = []
        async with trio.open_nursery() as nursery:

            async def open_third() -> None:
                third.append(await a.open(b.peer_id, ECHO))

            nursery.start_soon(open_third)
            await trio.sleep(0.1)
            assert not third
            assert await ask(first, b"1") == b"1"
        assert await ask(third[0], b"3") == b"3"
        assert await ask(second, b"2") == b"2"


async def test_the_queue_before_a_full_house_is_bounded(world: Any, echo: Handler) -> None:
    a, b = await world.pair(streams_per_peer_max=1)
    b.handle(ECHO, echo)
    with trio.fail_after(GENEROUS_SECONDS):
        held = await a.open(b.peer_id, ECHO)
        async with trio.open_nursery() as nursery:
            for _ in range(2):
                nursery.start_soon(a.open, b.peer_id, ECHO)
            await trio.sleep(0.1)
            with pytest.raises(Refused) as refusal:
                await a.open(b.peer_id, ECHO)
            assert refusal.value.code == "OVERLOADED"
            nursery.cancel_scope.cancel()
        await held.reset()


async def test_a_host_that_ends_resets_its_streams(world: Any, echo: Handler, until: Until) -> None:
    a = await world.running()
    with trio.fail_after(GENEROUS_SECONDS):
        async with trio.open_nursery() as nursery:
            b = world.network()
            b.host.handle(ECHO, echo)
            await nursery.start(b.run)
            await a.host.connect(b.host.addresses[0])
            stream = await a.host.open(b.host.peer_id, ECHO)
            nursery.cancel_scope.cancel()
        with pytest.raises(StreamReset):
            await stream.receive()
        await until(lambda: not a.host.connected)
        with pytest.raises(Unreachable):
            await a.host.open(b.host.peer_id, ECHO)
