"""Peers of other implementations that are killed, or stopped: the connection ends and nothing waits for them."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest
import trio

from octonode.network.host import Stream, StreamReset
from tests.interop import talking
from tests.interop.hosts import PRODUCTS, TELLS_RESETS
from tests.interop.js_peer import JsPeer
from tests.interop.talking import PING


@pytest.fixture
async def peer(mortal: Any) -> AsyncIterator[Any]:
    async with AsyncExitStack() as stack:
        if isinstance(mortal, JsPeer):
            await stack.enter_async_context(mortal.attached())
        yield mortal


async def open_and_use(host: Any, peer_id: str) -> Stream:
    stream: Stream = await host.open(peer_id, PING)
    await stream.send(bytes(32))
    assert await talking.receive_exactly(stream, 32) == bytes(32)
    return stream


@pytest.mark.parametrize("side", [side for side in TELLS_RESETS if side.transport == "tcp"], ids=str)
async def test_a_peer_that_is_killed(host: Any, peer: Any, link: Any, until: Any) -> None:
    with trio.fail_after(talking.GENEROUS_SECONDS):
        stream = await open_and_use(host, await link(peer))
        peer.process.signal(signal.SIGKILL)
        with pytest.raises(StreamReset):
            await stream.receive()
        await until(lambda: not host.connected)


@pytest.mark.parametrize("side", PRODUCTS, ids=str)
async def test_a_peer_that_is_stopped(host: Any, peer: Any, link: Any, until: Any) -> None:
    host.links.pulse_seconds, host.links.pulse_timeout_seconds = 0.2, 0.5
    with trio.fail_after(talking.GENEROUS_SECONDS):
        stream = await open_and_use(host, await link(peer))
        await trio.sleep(1.5)
        assert host.connected == {peer.peer_id}  # it has answered our pings
        peer.process.signal(signal.SIGSTOP)
        with pytest.raises(StreamReset):
            await stream.receive()
        await until(lambda: not host.connected)
