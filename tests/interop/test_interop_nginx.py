"""A real nginx from the system's packages as a cache in front of our gateway, with the config that we ship."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from octonode.errors import VerificationFailed
from octonode.identity import NodeKey
from octonode.ipfs.blocks import Body, FoundFile
from octonode.ipfs.cid import Cid, raw_cid
from octonode.ipfs.gateway import Gateway
from octonode.ipfs.gateway_client import GatewayAddress, GatewayClient
from octonode.ipfs.gateway_query import RAW_TYPE, block_target, run_target
from octonode.models.fetch import FetchLimits, fetch
from octonode.models.library import Library, ModelEntry
from octonode.models.sources.gateway import GatewaySource
from octonode.models.sources.https import HttpsSource
from octonode.models.store import ModelStore
from octonode.models.trust import TrustTable
from octonode.testing.testnet import write_scripted_model
from tests.interop.nginx import Nginx, running_nginx

MIB = 1024 * 1024
QUICK = FetchLimits(retry_seconds=0.05, nobody_seconds=0.5, give_up_seconds=10)


class CountingStore:
    """The store of the origin, which counts what it is asked."""

    def __init__(self, store: ModelStore) -> None:
        self._store = store
        self.asked: Counter[str] = Counter()

    def block(self, cid: Cid) -> Body | None:
        self.asked["block"] += 1
        return self._store.block(cid)

    def run(self, root: Cid, first_byte: int, last_byte: int | None, *, nodes: bool) -> Body | None:
        self.asked["run"] += 1
        return self._store.run(root, first_byte, last_byte, nodes=nodes)

    def file(self, root: Cid, path: tuple[str, ...]) -> FoundFile | None:
        self.asked["file"] += 1
        return self._store.file(root, path)

    def have(self, root: Cid) -> bytes | None:
        self.asked["have"] += 1
        return self._store.have(root)


class Origin:
    """A library with one model, and its gateway, for one test."""

    def __init__(self, folder: Path) -> None:
        self.home = folder / "origin"
        self.home.mkdir()
        self.library = Library(ModelStore(self.home), TrustTable(self.home), NodeKey(bytes(32)))
        self.path = write_scripted_model(folder / "words.model", seed=7)
        self.model: ModelEntry = self.library.add(self.path, name="words")
        self.store = CountingStore(self.library.store)
        self.gateway = Gateway("127.0.0.1:0", self.store)
        self.stop = trio.CancelScope()

    @property
    def data(self) -> bytes:
        return self.path.read_bytes()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        with self.stop:
            await self.gateway.run(task_status=task_status)


@pytest.fixture
async def origin(tmp_path: Path, nursery: trio.Nursery) -> AsyncIterator[Origin]:
    origin = Origin(tmp_path)
    await nursery.start(origin.run)
    yield origin
    origin.stop.cancel()


@pytest.fixture
def nginx(tmp_path: Path, origin: Origin) -> Iterator[Nginx]:
    folder = tmp_path / "nginx"
    folder.mkdir()
    with running_nginx(folder, origin.gateway.port) as found:
        yield found


async def ask(nginx: Nginx, target: str, method: str = "GET", **headers: str) -> httpx.Response:
    async with httpx.AsyncClient(trust_env=False, timeout=30) as client:
        return await client.request(
            method, nginx.url + target, headers={name.replace("_", "-"): value for name, value in headers.items()}
        )


def new_store(tmp_path: Path, name: str) -> ModelStore:
    (tmp_path / name).mkdir()
    return ModelStore(tmp_path / name)


async def kept(nginx: Nginx, pieces: int) -> None:
    """Until that many whole pieces are in the cache: the last is moved there once the asker has it."""
    with trio.fail_after(60):
        while len(nginx.kept(MIB)) != pieces:
            await trio.sleep(0.01)


def bytes_of(store: ModelStore, root: Cid) -> bytes:
    return store.require(root).paths[0].read_bytes()


async def test_the_second_asker_gets_it_from_the_cache(origin: Origin, nginx: Nginx) -> None:
    root, data = origin.model.root, origin.data
    leaf = raw_cid(data[:MIB])
    for target, content in ((f"/ipfs/{root}", data), (block_target(leaf), data[:MIB])):
        first = await ask(nginx, target)
        assert (first.status_code, first.content) == (200, content)
        assert first.headers["x-cache-status"] == "MISS"
        assert "immutable" in first.headers["cache-control"]
        asked = origin.store.asked.copy()
        for _ in range(3):
            again = await ask(nginx, target)
            assert (again.status_code, again.content) == (200, content)
            assert again.headers["x-cache-status"] == "HIT"
            assert again.headers["etag"] == first.headers["etag"]
        head = await ask(nginx, target, "HEAD")
        assert (head.headers["x-cache-status"], head.headers["content-length"]) == ("HIT", str(len(content)))
        same = await ask(nginx, target, if_none_match=first.headers["etag"])
        assert (same.status_code, same.content) == (304, b"")
        assert origin.store.asked == asked


async def test_ranges_through_the_cache(origin: Origin, nginx: Nginx) -> None:
    root, data = origin.model.root, origin.data
    part = await ask(nginx, f"/ipfs/{root}", range=f"bytes={MIB + 5}-{MIB + 9}")
    assert (part.status_code, part.content) == (206, data[MIB + 5 : MIB + 10])
    assert part.headers["content-range"] == f"bytes {MIB + 5}-{MIB + 9}/{len(data)}"
    await kept(nginx, 1)  # the piece with the range in it, and no other
    for said, first, last in (
        ("bytes=0-0", 0, 0),
        (f"bytes={MIB - 3}-{2 * MIB + 3}", MIB - 3, 2 * MIB + 3),
        ("bytes=-7", len(data) - 7, len(data) - 1),
        (f"bytes={2 * MIB}-", 2 * MIB, len(data) - 1),
    ):
        for _ in range(2):
            part = await ask(nginx, f"/ipfs/{root}", range=said)
            assert (part.status_code, part.content) == (206, data[first : last + 1])
            assert part.headers["content-range"] == f"bytes {first}-{last}/{len(data)}"
    assert part.headers["x-cache-status"] == "HIT"
    behind = await ask(nginx, f"/ipfs/{root}", range=f"bytes={len(data)}-")
    assert behind.status_code == 416


async def test_what_accept_decides_is_kept_apart(origin: Origin, nginx: Nginx) -> None:
    root = origin.model.root
    for _ in range(2):
        raw = await ask(nginx, f"/ipfs/{root}", accept=RAW_TYPE)
        assert root.matches(raw.content)
        assert (await ask(nginx, f"/ipfs/{root}", accept="*/*")).content == origin.data
        whole = await ask(nginx, f"/ipfs/{root}", accept="text/html, image/png")
        assert whole.content == origin.data
    assert (raw.headers["x-cache-status"], whole.headers["x-cache-status"]) == ("HIT", "HIT")


async def test_errors_and_bitmaps_are_not_kept(origin: Origin, nginx: Nginx) -> None:
    root = origin.model.root
    origin.library.publish(f"cid:{root}", public=False)
    have = f"/octonode/v1/blocks/{root}/have"
    for target in (f"/ipfs/{root}", block_target(root), have):
        assert (await ask(nginx, target)).status_code == 404
    origin.library.publish(f"cid:{root}")
    assert (await ask(nginx, f"/ipfs/{root}")).content == origin.data
    assert root.matches((await ask(nginx, block_target(root))).content)
    for number in range(1, 3):
        assert (await ask(nginx, have)).content == origin.library.store.have(root)
        assert origin.store.asked["have"] == 1 + number
    assert (await ask(nginx, "/elsewhere")).status_code == 404


async def test_our_own_client_through_the_cache(origin: Origin, nginx: Nginx) -> None:
    root, data = origin.model.root, origin.data
    client = GatewayClient(GatewayAddress("127.0.0.1", nginx.port))
    for _ in range(2):
        assert root.matches(await client.block(root))
        assert await client.have(root) == origin.library.store.have(root)
        sections: list[Any] = []
        buffer = bytearray(3 * MIB)
        length = await client.run(root, MIB, 3 * MIB - 1, buffer, sections.extend)
        found = b"".join(bytes(buffer[each.start : each.end]) for each in sections)
        assert (found, length > len(found)) == (data[MIB : 3 * MIB], True)
    assert origin.store.asked["block"] == 1
    client.close()
    assert (await ask(nginx, run_target(root, MIB, 3 * MIB - 1))).headers["x-cache-status"] == "HIT"


async def test_a_fetch_through_the_cache_and_one_more_without_the_origin(
    origin: Origin, nginx: Nginx, tmp_path: Path
) -> None:
    root = origin.model.root
    store = new_store(tmp_path, "first")
    report = await fetch(root, store, sources=[HttpsSource(nginx.url)], limits=QUICK)
    assert bytes_of(store, root) == origin.data
    assert report.bytes_by_source == {nginx.url: len(origin.data)}
    asked = origin.store.asked.copy()
    origin.stop.cancel()
    store = new_store(tmp_path, "second")
    await fetch(root, store, sources=[HttpsSource(nginx.url)], limits=QUICK)
    assert bytes_of(store, root) == origin.data
    assert origin.store.asked == asked


async def test_a_fetch_as_from_a_gateway_of_ours(origin: Origin, nginx: Nginx, tmp_path: Path) -> None:
    store = new_store(tmp_path, "runs")
    await fetch(
        origin.model.root, store, sources=[GatewaySource(GatewayAddress("127.0.0.1", nginx.port))], limits=QUICK
    )
    assert bytes_of(store, origin.model.root) == origin.data


async def test_a_poisoned_cache_is_named_and_another_source_gives_the_rest(
    origin: Origin, nginx: Nginx, tmp_path: Path
) -> None:
    root = origin.model.root
    await fetch(root, new_store(tmp_path, "warm"), sources=[HttpsSource(nginx.url)], limits=QUICK)
    await kept(nginx, len(origin.data) // MIB)
    nginx.poison(MIB)
    assert (await ask(nginx, block_target(raw_cid(origin.data[:MIB])))).headers["x-cache-status"] == "HIT"
    store = new_store(tmp_path, "alone")
    with pytest.raises(VerificationFailed, match=nginx.url):
        await fetch(root, store, sources=[HttpsSource(nginx.url)], limits=QUICK)
    assert store.require(root).have_bits() == 0  # nothing false was written
    direct = GatewaySource(GatewayAddress("127.0.0.1", origin.gateway.port))
    report = await fetch(root, store, sources=[HttpsSource(nginx.url), _Late(direct)], limits=QUICK)
    assert bytes_of(store, root) == origin.data
    assert "wrong bytes" in report.banned[nginx.url]
    assert report.bytes_by_source == {direct.name: len(origin.data)}


class _Late:
    """A source that stands behind gateways of the world, so that those are asked first."""

    rank = 3

    def __init__(self, source: GatewaySource) -> None:
        self._source = source

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)
