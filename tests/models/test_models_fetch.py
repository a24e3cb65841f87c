"""Fetching between real stores over real gateways: whole, resumed, from several, and from those that lie."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import random
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio

from octonode.errors import NotFound, Unreachable, VerificationFailed
from octonode.ipfs.blocks import Body, FileRange
from octonode.ipfs.cid import Cid
from octonode.ipfs.gateway import GatewayLimits
from octonode.ipfs.gateway_client import Timeouts
from octonode.models import bitmap
from octonode.models.fetch import FetchLimits, FetchProgress, GatewayAddress, fetch
from octonode.models.library import Library, ModelEntry
from octonode.models.sources.file import FileSource
from octonode.models.sources.gateway import GatewaySource
from octonode.models.sources.https import HttpsSource
from octonode.models.sources.source import Source
from octonode.models.store import ModelStore

MIB = 1024 * 1024
LIMITS = FetchLimits(
    window_bytes_start=2 * MIB,
    window_bytes_max=4 * MIB,
    retry_seconds=0.05,
    set_aside_seconds=0.3,
    look_seconds=0.1,
    read_bitmap_seconds=0.1,
    give_up_seconds=30.0,
    timeouts=Timeouts(head_seconds=5.0, stall_seconds=2.0),
)
Make = Callable[..., Library]


class _Peers:
    def __init__(self, *addresses: GatewayAddress) -> None:
        self.addresses = list(addresses)
        self.asked = 0

    async def sources(self, root: Cid) -> Sequence[Source]:
        self.asked += 1
        return [GatewaySource(address, LIMITS.timeouts) for address in self.addresses]


@pytest.fixture
def published(make_library: Make, model_file: Path) -> ModelEntry:
    return make_library("a").add(model_file)


@pytest.fixture
def store_a(make_library: Make, published: ModelEntry) -> ModelStore:
    return make_library("a").store


@pytest.fixture
async def gateway_a(store_a: ModelStore, serve_store: Any) -> AsyncIterator[GatewayAddress]:
    with trio.fail_after(60):
        async with serve_store(store_a) as address:
            yield address


class _Altered:
    """The blocks of a store, seen through `change`: how a faulty or hostile holder looks."""

    def __init__(self, store: ModelStore, change: Callable[[Body], Body], *, nodes_too: bool = False) -> None:
        self._store, self._change, self._nodes_too = store, change, nodes_too

    def block(self, cid: Cid) -> Body | None:
        body = self._store.block(cid)
        return self._change(body) if body is not None and self._nodes_too else body

    def run(self, root: Cid, first_byte: int, last_byte: int | None, *, nodes: bool) -> Body | None:
        body = self._store.run(root, first_byte, last_byte, nodes=nodes)
        return self._change(body) if body is not None else None

    def have(self, root: Cid) -> bytes | None:
        return self._store.have(root)


def _wrong(body: Body) -> Body:
    """Every block with its last byte flipped."""
    parts: list[bytes | FileRange] = []
    for part in body.parts:
        if isinstance(part, FileRange):
            data = bytearray(os.pread(part.fd, part.size_bytes, part.offset_bytes))
            data[-1] ^= 1
            parts.append(bytes(data))
        else:
            parts.append(part)
    if len(parts) == 1:
        parts = [bytes(parts[0][:-1]) + b"!"]  # type: ignore[index]
    body.close()
    return Body(parts)


async def test_a_whole_model_with_progress(
    gateway_a: GatewayAddress, published: ModelEntry, make_library: Make, model_file: Path
) -> None:
    library = make_library("b", trust_all=True)
    assert published.manifest is not None
    signed = library.accept(published.manifest.encode())
    seen: list[FetchProgress] = []
    report = await fetch(
        published.root,
        library.store,
        peers=_Peers(gateway_a),
        manifest=signed.manifest,
        progress=seen.append,
        limits=LIMITS,
    )
    entry = library.entry(published.root)
    assert entry is not None
    assert entry.complete
    assert entry.path.name == "tiny.gguf"
    assert entry.path.read_bytes() == model_file.read_bytes()
    assert report.bytes_by_source == {str(gateway_a): model_file.stat().st_size}
    assert (report.banned, report.size_bytes) == ({}, model_file.stat().st_size)
    assert (seen[0].phase, seen[-1].phase, seen[-1].done_bytes) == ("nodes", "done", report.size_bytes)
    assert library.verify(str(published.root)).ok
    again = await fetch(published.root, library.store, limits=LIMITS)
    assert again.bytes_by_source == {}


async def test_a_directory_of_files(
    serve_store: Any, make_library: Make, tmp_path: Path, gguf: Callable[..., bytes]
) -> None:
    folder = tmp_path / "many"
    (folder / "w").mkdir(parents=True)
    for number in range(3):
        (folder / "w" / f"{number}.gguf").write_bytes(gguf(2 * MIB + number, seed=number))
    (folder / "config.json").write_text("{}")
    (folder / "empty.txt").write_bytes(b"")
    library, other = make_library("a"), make_library("b")
    entry = library.add(folder)
    with trio.fail_after(60):
        async with serve_store(library.store) as address:
            await fetch(entry.root, other.store, sources=[GatewaySource(address)], limits=LIMITS)
    got = other.entry(entry.root)
    assert got is not None
    assert got.complete
    assert [path.read_bytes() for path in got.paths] == [path.read_bytes() for path in entry.paths]


async def test_a_tiny_model_is_one_raw_block(
    serve_store: Any, make_library: Make, tmp_path: Path, gguf: Callable[..., bytes]
) -> None:
    (tmp_path / "t.gguf").write_bytes(gguf(1000))
    library, other = make_library("a"), make_library("b")
    entry = library.add(tmp_path / "t.gguf")
    with trio.fail_after(60):
        async with serve_store(library.store) as address:
            await fetch(entry.root, other.store, sources=[GatewaySource(address)], limits=LIMITS)
    assert entry.root.matches(other.show(str(entry.root)).path.read_bytes())


async def test_a_liar_is_banned_and_no_wrong_byte_is_written(
    gateway_a: GatewayAddress,
    store_a: ModelStore,
    published: ModelEntry,
    serve_store: Any,
    home: Path,
    model_file: Path,
) -> None:
    store = ModelStore(home)
    async with serve_store(_Altered(store_a, _wrong)) as liar:
        with pytest.raises(VerificationFailed, match="wrong bytes"):  # alone, it gives nothing
            await fetch(published.root, store, sources=[GatewaySource(liar)], limits=LIMITS)
        model = store.require(published.root)
        assert model.have_bits() == 0
        assert model.paths[0].read_bytes().strip(b"\0") == b""
        report = await fetch(
            published.root, store, sources=[GatewaySource(liar), GatewaySource(gateway_a)], limits=LIMITS
        )
    assert "wrong bytes" in report.banned[str(liar)]
    assert report.bytes_by_source == {str(gateway_a): model_file.stat().st_size}
    assert model.paths[0].read_bytes() == model_file.read_bytes()


async def test_wrong_nodes_are_banned_before_disk_is_taken(
    gateway_a: GatewayAddress, store_a: ModelStore, published: ModelEntry, serve_store: Any, home: Path
) -> None:
    store = ModelStore(home)
    async with serve_store(_Altered(store_a, _wrong, nodes_too=True)) as liar:
        with pytest.raises(VerificationFailed):
            await fetch(published.root, store, sources=[GatewaySource(liar)], limits=LIMITS)
        assert store.roots() == ()
        report = await fetch(
            published.root, store, sources=[GatewaySource(liar), GatewaySource(gateway_a)], limits=LIMITS
        )
    assert set(report.banned) == {str(liar)}


async def test_three_sources_share_the_work(
    store_a: ModelStore, published: ModelEntry, serve_store: Any, home: Path, model_file: Path
) -> None:
    store = ModelStore(home)
    async with contextlib.AsyncExitStack() as stack:
        addresses = [await stack.enter_async_context(serve_store(store_a)) for _ in range(3)]
        limits = dataclasses.replace(LIMITS, window_bytes_start=2 * MIB, window_bytes_max=2 * MIB)
        with trio.fail_after(60):
            report = await fetch(published.root, store, peers=_Peers(*addresses), limits=limits, rng=random.Random(7))
    assert set(report.bytes_by_source) == {str(address) for address in addresses}
    assert sum(report.bytes_by_source.values()) == model_file.stat().st_size
    assert store.require(published.root).paths[0].read_bytes() == model_file.read_bytes()


@contextlib.asynccontextmanager
async def _proxy(target: GatewayAddress, cut_after: int, *, stall: bool) -> AsyncIterator[GatewayAddress]:
    """Passes bytes on and, in each connection, cuts or falls silent after so many of them."""

    broken = (trio.BrokenResourceError, trio.ClosedResourceError)

    async def pass_on(
        receive: trio.SocketStream, send: trio.SocketStream, left: float, scope: trio.CancelScope
    ) -> None:
        with contextlib.suppress(*broken):
            async for data in receive:
                await send.send_all(data[: int(min(left, len(data)))])
                left -= len(data)
                if left <= 0:
                    break
            if left <= 0 and stall:
                await trio.sleep_forever()
        scope.cancel()

    async def handle(stream: trio.SocketStream) -> None:
        async with stream, await trio.open_tcp_stream(target.host, target.port) as upstream, trio.open_nursery() as n:
            n.start_soon(pass_on, stream, upstream, float("inf"), n.cancel_scope)
            n.start_soon(pass_on, upstream, stream, cut_after, n.cancel_scope)

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, handle, 0)
        yield GatewayAddress("127.0.0.1", listeners[0].socket.getsockname()[1])
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("stall", [False, True], ids=["cut", "stalled"])
async def test_what_a_failing_source_owes_is_fetched_elsewhere(
    gateway_a: GatewayAddress, published: ModelEntry, home: Path, model_file: Path, stall: bool
) -> None:
    store = ModelStore(home)
    async with _proxy(gateway_a, 2 * MIB + 12345, stall=stall) as failing:
        sources = [GatewaySource(address, LIMITS.timeouts) for address in (failing, gateway_a)]
        report = await fetch(published.root, store, sources=sources, limits=LIMITS)
    assert report.banned == {}
    assert sum(report.bytes_by_source.values()) == model_file.stat().st_size
    assert store.require(published.root).paths[0].read_bytes() == model_file.read_bytes()


async def test_connections_that_break_all_the_time_still_bring_it(
    gateway_a: GatewayAddress, published: ModelEntry, home: Path, model_file: Path
) -> None:
    store = ModelStore(home)
    async with _proxy(gateway_a, 3 * MIB, stall=False) as failing:
        await fetch(published.root, store, sources=[GatewaySource(failing, LIMITS.timeouts)], limits=LIMITS)
    assert store.require(published.root).paths[0].read_bytes() == model_file.read_bytes()


async def test_nobody_has_it(home: Path, published: ModelEntry, autojump_clock: Any) -> None:
    hasty = replace(LIMITS, give_up_seconds=3.0)
    with pytest.raises(Unreachable, match="octonode peers"):
        await fetch(published.root, ModelStore(home), peers=_Peers(), limits=hasty)
    with pytest.raises(Unreachable):
        await fetch(published.root, ModelStore(home), limits=LIMITS)
    with pytest.raises(NotFound, match="right CID"):  # with time to look for others: nobody was ever known to have it
        await fetch(published.root, ModelStore(home), peers=_Peers(), limits=replace(LIMITS, nobody_seconds=1.0))
    assert ModelStore(home).roots() == ()


async def test_a_partial_holder_gives_what_it_has_and_a_late_peer_the_rest(
    gateway_a: GatewayAddress, published: ModelEntry, serve_store: Any, home: Path, tmp_path: Path, model_file: Path
) -> None:
    partial, store = ModelStore(tmp_path / "partial"), ModelStore(home)
    await fetch(published.root, partial, sources=[GatewaySource(gateway_a)], limits=LIMITS)
    partial.require(published.root).change_bits(drop=0b11111)
    async with serve_store(partial) as address, trio.open_nursery() as nursery:
        peers = _Peers(address)

        def seen(progress: FetchProgress) -> None:
            if progress.phase == "leaves" and progress.done_bytes > 5 * MIB and len(peers.addresses) == 1:
                peers.addresses.append(gateway_a)

        report = await fetch(published.root, store, peers=peers, limits=LIMITS, progress=seen)
        nursery.cancel_scope.cancel()
    assert report.bytes_by_source[str(gateway_a)] == 5 * MIB
    assert store.require(published.root).row.complete


async def test_a_manifest_that_lies_about_sizes_is_found_before_disk_is_taken(
    gateway_a: GatewayAddress, published: ModelEntry, home: Path
) -> None:
    assert published.manifest is not None
    manifest = published.manifest.manifest
    lying = dataclasses.replace(manifest, files=(dataclasses.replace(manifest.files[0], size_bytes=5),))
    with pytest.raises(VerificationFailed, match="does not match the manifest"):
        await fetch(published.root, ModelStore(home), peers=_Peers(gateway_a), manifest=lying, limits=LIMITS)
    assert ModelStore(home).roots() == ()


async def test_a_cancelled_fetch_keeps_what_it_has_and_goes_on(
    gateway_a: GatewayAddress,
    store_a: ModelStore,
    published: ModelEntry,
    serve_store: Any,
    home: Path,
    model_file: Path,
) -> None:
    store = ModelStore(home)
    with trio.CancelScope() as scope:

        def seen(progress: FetchProgress) -> None:
            if progress.done_bytes:
                scope.cancel()

        async with serve_store(store_a, GatewayLimits(upload_bytes_per_second_max=4 * MIB)) as slow:
            await fetch(published.root, store, sources=[GatewaySource(slow)], progress=seen, limits=LIMITS)
    assert scope.cancelled_caught
    model = store.require(published.root)
    held = model.have_bits().bit_count()
    assert 0 < held < 11
    report = await fetch(published.root, store, sources=[GatewaySource(gateway_a)], limits=LIMITS)
    kept = sum(leaf.size_bytes for leaf in model.layout().leaves) - sum(report.bytes_by_source.values())
    assert kept >= (held - 1) * MIB
    assert model.paths[0].read_bytes() == model_file.read_bytes()


async def test_strangers_are_asked_only_for_what_nobody_nearer_has(
    gateway_a: GatewayAddress, store_a: ModelStore, published: ModelEntry, serve_store: Any, home: Path, tmp_path: Path
) -> None:
    partial = ModelStore(tmp_path / "partial")
    await fetch(published.root, partial, sources=[GatewaySource(gateway_a)], limits=LIMITS)
    partial.require(published.root).change_bits(drop=0b11)
    async with serve_store(partial) as near, serve_store(store_a) as far:
        stranger = HttpsSource(f"http://{far}")
        report = await fetch(published.root, ModelStore(home), sources=[stranger], peers=_Peers(near), limits=LIMITS)
    assert report.bytes_by_source == {str(near): published.row.size_bytes - 2 * MIB, stranger.name: 2 * MIB}


async def test_other_gateways_over_http_and_a_local_file(
    gateway_a: GatewayAddress, published: ModelEntry, home: Path, tmp_path: Path, model_file: Path
) -> None:
    store = ModelStore(home)
    source = HttpsSource(f"http://{gateway_a}")
    report = await fetch(published.root, store, sources=[source], limits=LIMITS)
    assert report.bytes_by_source == {source.name: model_file.stat().st_size}
    other = ModelStore(tmp_path / "other")
    stale = tmp_path / "stale.gguf"
    stale.write_bytes(model_file.read_bytes()[: 4 * MIB])
    sources = [GatewaySource(gateway_a), FileSource(stale, published.root)]
    await fetch(published.root, other, sources=sources, limits=LIMITS)
    assert other.require(published.root).paths[0].read_bytes() == model_file.read_bytes()


def _rot(path: Path, offset: int) -> None:
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(b"rot")


async def test_damage_is_repaired_by_fetching_the_bad_leaf_alone(
    gateway_a: GatewayAddress, published: ModelEntry, make_library: Make, model_file: Path
) -> None:
    library = make_library("b")
    await fetch(published.root, library.store, sources=[GatewaySource(gateway_a)], limits=LIMITS)
    path = library.show(str(published.root)).path
    path.chmod(0o644)
    _rot(path, 3 * MIB)
    assert library.verify(str(published.root)).bad_leaves == (3,)
    report = await fetch(published.root, library.store, sources=[GatewaySource(gateway_a)], limits=LIMITS)
    assert report.bytes_by_source == {str(gateway_a): MIB}
    assert library.verify(str(published.root)).ok
    assert bitmap.from_bytes(library.store.have(published.root) or b"", 11) == bitmap.full(11)


@pytest.mark.model
async def test_the_real_model_goes_from_store_to_store(make_library: Make, smollm2: Path, serve_store: Any) -> None:
    a, b = make_library("a"), make_library("b", trust_all=True)
    entry = a.add(smollm2, name="smollm2-135m-instruct")
    assert entry.manifest is not None
    assert entry.manifest.manifest.architecture == "llama"
    with trio.fail_after(120):
        async with serve_store(a.store) as address:
            manifest = b.accept(entry.manifest.encode()).manifest
            report = await fetch(entry.root, b.store, peers=_Peers(address), manifest=manifest)
    assert report.bytes_by_source == {str(address): smollm2.stat().st_size}
    assert b.verify("smollm2-135m-instruct").ok
