"""js-libp2p and us: who dials whom, over tcp and WebSocket; pings, echoes, crowds of streams, ends and resets."""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from typing import Any

import pytest
import trio

from octonode.network.host import StreamReset
from tests.interop import talking
from tests.interop.conftest import DIRECTIONS
from tests.interop.hosts import OWN, SIDES, TELLS_RESETS, only, protocols_of
from tests.interop.talking import DIGEST, ECHO, FEW, IDENTIFY, PAUSE, PING, RESET, WATCH

SIZES = [0, 100, 1_000_000, 20_000_000]
LARGE_BYTES = 4 * 1024 * 1024
each_side = pytest.mark.parametrize("side", SIDES, ids=str)
each_direction = pytest.mark.parametrize("direction", DIRECTIONS)
each_side_and_size = pytest.mark.parametrize(
    ("side", "size"),
    # Over WebSocket js sends a Noise message in pieces of 12 bytes now and then, and the stock reader gives one up that
    # comes in more than 100 pieces.
    [(side, size) for side in SIDES for size in SIZES if side in OWN or side.transport == "tcp" or size < LARGE_BYTES],
    ids=str,
)
where_resets_are_told = pytest.mark.parametrize("side", TELLS_RESETS, ids=str)
where_writers_are_patient = pytest.mark.parametrize("side", only(OWN, "tcp"), ids=str)


@each_side
@each_direction
async def test_we_know_and_ping_each_other(host: Any, js: Any, link: Any, until: Any, direction: str) -> None:
    with trio.fail_after(talking.GENEROUS_SECONDS):
        peer_id = await link(js, direction)
        await talking.ping(host, peer_id, count=3)
        assert await js.tell("ping", peer=host.peer_id) >= 0
        await until(lambda: {ECHO, PING, IDENTIFY} <= protocols_of(host, peer_id))
        while not {ECHO, PING, IDENTIFY} <= set(await js.tell("protocols", peer=host.peer_id)):
            await trio.sleep(0.02)


@each_side_and_size
@each_direction
async def test_js_echoes(host: Any, js: Any, link: Any, direction: str, size: int) -> None:
    with trio.fail_after(talking.GENEROUS_SECONDS):
        assert await talking.echoes(host, await link(js, direction), size)


@each_side_and_size
@each_direction
async def test_we_echo(host: Any, js: Any, link: Any, direction: str, size: int) -> None:
    with trio.fail_after(talking.GENEROUS_SECONDS):
        await link(js, direction)
        answer = await js.tell("ask", peer=host.peer_id, protocol=ECHO, bytes=size)
        assert (answer["answered"], answer["bytes"], answer["ending"]) == (answer["asked"], size, "end")


@each_side
@each_direction
async def test_many_streams_at_once(host: Any, js: Any, link: Any, direction: str) -> None:
    with trio.fail_after(talking.GENEROUS_SECONDS):
        peer_id = await link(js, direction)
        await talking.crowd(host, peer_id, ECHO, 200)
        assert await js.tell("crowd", peer=host.peer_id, protocol=ECHO, streams=200) == 200


@pytest.mark.parametrize("side", OWN, ids=str)
async def test_more_streams_than_the_stock_muxer_has(host: Any, js: Any, link: Any) -> None:
    with trio.fail_after(talking.GENEROUS_SECONDS):
        peer_id = await link(js)
        await talking.crowd(host, peer_id, ECHO, 600)
        assert await js.tell("crowd", peer=host.peer_id, protocol=ECHO, streams=600) == 600


@each_side
@each_direction
async def test_many_streams_one_after_the_other(host: Any, js: Any, link: Any, direction: str) -> None:
    with trio.fail_after(talking.GENEROUS_SECONDS):
        peer_id = await link(js, direction)
        for _ in range(200):
            assert await talking.echoes(host, peer_id, 100)
        for _ in range(200):
            answer = await js.tell("ask", peer=host.peer_id, protocol=ECHO, bytes=100)
            assert answer["answered"] == answer["asked"]


@each_side
@pytest.mark.parametrize("size", [0, 100, 1_000_000])
async def test_an_answer_after_we_have_finished(host: Any, js: Any, link: Any, size: int) -> None:
    with trio.fail_after(talking.GENEROUS_SECONDS):
        question = os.urandom(size)
        answer = await talking.ask(host, await link(js), DIGEST, question)
        assert answer.decode() == hashlib.sha256(question).hexdigest()


@each_side
@pytest.mark.parametrize("size", [0, 100, 1_000_000])
async def test_an_answer_after_js_has_finished(host: Any, js: Any, link: Any, size: int) -> None:
    with trio.fail_after(talking.GENEROUS_SECONDS):
        await link(js)
        answer = await js.tell("ask", peer=host.peer_id, protocol=DIGEST, bytes=size)
        assert (answer["text"], answer["ending"]) == (answer["asked"], "end")


@where_resets_are_told
async def test_a_reset_by_js_is_no_end(host: Any, js: Any, link: Any, endings: list[str], until: Any) -> None:
    with trio.fail_after(talking.GENEROUS_SECONDS):
        peer_id = await link(js)
        stream = await host.open(peer_id, RESET)
        await stream.send(FEW)
        with pytest.raises(StreamReset):
            await talking.receive_all(stream)
        await js.tell("reset", peer=host.peer_id, protocol=WATCH)
        await until(lambda: endings)
        assert endings == ["reset"]
        assert await talking.echoes(host, peer_id, 100)


@each_side
async def test_a_reset_by_us_is_no_end(host: Any, js: Any, link: Any) -> None:
    with trio.fail_after(talking.GENEROUS_SECONDS):
        peer_id = await link(js)
        assert await js.tell("ending", peer=host.peer_id, protocol=RESET) == "reset"
        await js.tell("endings")
        stream = await host.open(peer_id, WATCH)
        assert await stream.receive() == FEW
        await stream.reset()
        while not (seen := await js.tell("endings")):
            await trio.sleep(0.02)
        assert seen == ["reset"]
        assert await talking.echoes(host, peer_id, 100)


@where_writers_are_patient
async def test_js_reads_nothing_for_seven_seconds_and_gets_all(host: Any, js: Any, link: Any) -> None:
    with trio.fail_after(talking.GENEROUS_SECONDS):
        peer_id = await link(js)
        question = os.urandom(LARGE_BYTES)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(talking.echoes, host, peer_id, 1_000_000)  # the other streams run on
            answer = await talking.ask(host, peer_id, PAUSE, question)
        assert answer.decode() == hashlib.sha256(question).hexdigest()


@each_side
async def test_we_read_nothing_for_a_while_and_get_all(host: Any, js: Any, link: Any) -> None:
    with trio.fail_after(talking.GENEROUS_SECONDS):
        await link(js)
        answer = await js.tell("ask", peer=host.peer_id, protocol=PAUSE, bytes=LARGE_BYTES)
        assert (answer["text"], answer["ending"]) == (answer["asked"], "end")


@where_resets_are_told
async def test_a_connection_that_js_cuts(host: Any, js: Any, link: Any, until: Any) -> None:
    with trio.fail_after(talking.GENEROUS_SECONDS):
        peer_id = await link(js, identified=True)
        stream = await host.open(peer_id, WATCH)
        assert await stream.receive() == FEW
        await js.tell("abort", peer=host.peer_id)
        with pytest.raises(StreamReset):
            await talking.receive_all(stream)
        await until(lambda: not host.connected)
        assert await talking.echoes(host, await link(js), 100)


@each_side
@each_direction
async def test_a_connection_that_js_ends(host: Any, js: Any, link: Any, until: Any, direction: str) -> None:
    """js finishes every stream first, so ours may see an end."""
    with trio.fail_after(talking.GENEROUS_SECONDS):
        stream = await host.open(await link(js, direction, identified=True), WATCH)
        assert await stream.receive() == FEW
        await js.hang_up(host.peer_id)
        with suppress(StreamReset):
            assert await talking.receive_all(stream) == b""
        await until(lambda: not host.connected)
        assert await talking.echoes(host, await link(js), 100)


@each_side
@each_direction
async def test_a_connection_that_we_end(host: Any, js: Any, link: Any, until: Any, direction: str) -> None:
    with trio.fail_after(talking.GENEROUS_SECONDS):
        peer_id = await link(js, direction, identified=True)
        stream = await host.open(peer_id, WATCH)
        assert await stream.receive() == FEW
        await host.disconnect(peer_id)
        while host.peer_id in await js.tell("connected"):
            await trio.sleep(0.02)
        await until(lambda: not host.connected)
        assert await talking.echoes(host, await link(js), 100)
