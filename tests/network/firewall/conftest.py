"""Real hosts on loopback, and peers in processes of their own."""

from __future__ import annotations

import hashlib
import itertools
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from octonode.config import NetworkConfig
from octonode.identity import NodeKey
from octonode.network.host import Stream
from octonode.network.libp2p.host import Libp2pHost

ECHO = "/test/echo/1"
_SERIAL = itertools.count(1)


async def echo(stream: Stream) -> None:
    while data := await stream.receive():
        await stream.send(data)


def new_key() -> NodeKey:
    return NodeKey(hashlib.sha256(f"firewall {next(_SERIAL)}".encode()).digest())


@pytest.fixture(params=["own", "stock"])
def muxer(request: pytest.FixtureRequest) -> str:
    """What hosts stand on, where a test does not say."""
    return str(request.param)


@pytest.fixture
def new_host(nursery: trio.Nursery, muxer: str) -> Callable[..., Awaitable[Libp2pHost]]:
    """A running host that serves echo; keyword arguments are settings of the network."""

    async def start(**settings: Any) -> Libp2pHost:
        settings.setdefault("listen", "127.0.0.1:0")
        settings.setdefault("muxer", muxer)
        host = Libp2pHost(new_key(), NetworkConfig(**settings))
        host.handle(ECHO, echo)
        await nursery.start(host.run)
        return host

    return start


@pytest.fixture
def echoes() -> Callable[[Libp2pHost, Libp2pHost], Awaitable[bool]]:
    """Whether `a` gets an echo from `b` on a new stream."""

    async def check(a: Libp2pHost, b: Any) -> bool:
        stream = await a.open(b.peer_id, ECHO)
        await stream.send(b"are you there?")
        answer = await stream.receive()
        await stream.finish()
        return bool(answer == b"are you there?" and await stream.receive() == b"")

    return check


@pytest.fixture
def until() -> Callable[[Callable[[], Any]], Awaitable[None]]:
    async def wait(condition: Callable[[], Any]) -> None:
        while not condition():
            await trio.sleep(0.02)

    return wait


class PeerProcess:
    def __init__(self, process: trio.Process, address: str) -> None:
        self._process = process
        self.address = address
        self.peer_id = address.rpartition("/")[2]

    def signal(self, number: int) -> None:
        self._process.send_signal(signal.Signals(number))


@pytest.fixture
def peer_process(muxer: str) -> Callable[[], AbstractAsyncContextManager[PeerProcess]]:
    @asynccontextmanager
    async def start() -> AsyncIterator[PeerProcess]:
        seed = hashlib.sha256(f"process {next(_SERIAL)}".encode()).hexdigest()
        script = str(Path(__file__).with_name("peer_process.py"))
        process = await trio.lowlevel.open_process([sys.executable, script, seed, muxer], stdout=subprocess.PIPE)
        try:
            assert process.stdout is not None
            with trio.fail_after(60):
                line = b""
                while not line.endswith(b"\n"):
                    line += await process.stdout.receive_some(1000)
            yield PeerProcess(process, line.decode().strip())
        finally:
            process.kill()
            with trio.CancelScope(shield=True):
                await process.wait()
                if process.stdout is not None:
                    await process.stdout.aclose()

    return start
