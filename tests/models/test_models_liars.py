"""Sources that lie: each is named and given up, nothing false is written, and the rest bring the model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from octonode.errors import OctonodeError, RemoteProtocolError, Unreachable, VerificationFailed
from octonode.identity import NodeKey
from octonode.ipfs.gateway import GatewayLimits
from octonode.ipfs.gateway_client import GatewayAddress, Timeouts
from octonode.ipfs.outside import OutsideTimeouts
from octonode.models import bitmap
from octonode.models.fetch import FetchLimits, fetch
from octonode.models.library import Library, ModelEntry
from octonode.models.sources.gateway import GatewaySource
from octonode.models.sources.https import HttpsSource
from octonode.models.sources.source import Source
from octonode.models.store import ModelStore
from tests.models.liars import LIES, Answer, bystander, denies, lying, wrong_bytes

MIB = 1024 * 1024
HONEST = GatewayLimits(upload_bytes_per_second_max=8 * MIB)
"""Slow enough that the liar is always asked too."""
LIMITS = FetchLimits(
    window_bytes_start=2 * MIB,
    window_bytes_max=2 * MIB,
    failures_max=2,
    set_aside_max=2,
    retry_seconds=0.02,
    set_aside_seconds=0.1,
    look_seconds=0.1,
    read_bitmap_seconds=0.2,
    idle_bitmap_seconds=0.1,
    give_up_seconds=4.0,
    nobody_seconds=1.0,
    timeouts=Timeouts(head_seconds=0.4, stall_seconds=0.4),
)
OUTSIDE = OutsideTimeouts(connect_seconds=1.0, head_seconds=0.4, stall_seconds=0.4)
"""For liars, some of which fall silent. Who is honest has the usual time, also on a busy machine."""
Make = Callable[..., Library]
KINDS = ("octonode gateway", "outside gateway")


def _source(kind: str, port: int, *, honest: bool = False) -> Source:
    if kind == "octonode gateway":
        return GatewaySource(GatewayAddress("127.0.0.1", port), Timeouts() if honest else LIMITS.timeouts)
    return HttpsSource(f"http://127.0.0.1:{port}", OutsideTimeouts() if honest else OUTSIDE)


@pytest.fixture
def published(make_library: Make, model_file: Path) -> ModelEntry:
    return make_library("a").add(model_file)


@pytest.fixture
def store_a(make_library: Make, published: ModelEntry) -> ModelStore:
    return make_library("a").store


@pytest.mark.parametrize("lie", LIES, ids=lambda lie: lie.__name__)
@pytest.mark.parametrize("kind", KINDS)
async def test_the_liar_is_named_and_the_rest_bring_the_model(
    store_a: ModelStore, published: ModelEntry, make_library: Make, serve_store: Any, model_file: Path, lie: Answer,
    kind: str,
) -> None:  # fmt: skip
    store = make_library("b").store
    with trio.fail_after(60):
        async with bystander() as (heard, elsewhere), lying(store_a, lie) as (liar, port):
            liar.elsewhere = elsewhere
            source = _source(kind, port)
            async with serve_store(store_a, HONEST) as honest:
                honest_source = _source(kind, honest.port, honest=True)
                report = await fetch(published.root, store, sources=[source, honest_source], limits=LIMITS)
            assert liar.asked, "the liar was never asked: this proves nothing"
            assert heard == []
    assert store.require(published.root).paths[0].read_bytes() == model_file.read_bytes()
    assert honest_source.name not in report.banned
    assert report.bytes_by_source.get(source.label, 0) == 0
    assert report.bytes_by_source[honest_source.label] == model_file.stat().st_size
    if lie not in (denies,):
        assert source.name in report.banned or liar.asked <= 2 * LIMITS.failures_max * source.lanes


@pytest.mark.parametrize("lie", LIES, ids=lambda lie: lie.__name__)
@pytest.mark.parametrize("kind", KINDS)
async def test_a_liar_alone_gives_a_typed_error_that_names_it(
    store_a: ModelStore, published: ModelEntry, make_library: Make, serve_store: Any, model_file: Path, lie: Answer,
    kind: str,
) -> None:  # fmt: skip
    store = make_library("b").store
    with trio.fail_after(60):
        async with lying(store_a, lie) as (_, port):
            source = _source(kind, port)
            with pytest.raises(OctonodeError) as caught:
                await fetch(published.root, store, sources=[source], limits=LIMITS)
        assert isinstance(caught.value, (Unreachable, VerificationFailed, RemoteProtocolError))
        assert str(port) in caught.value.message
        model = store.require(published.root)
        assert model.have_bits() == 0
        async with serve_store(store_a) as honest:
            await fetch(published.root, store, sources=[_source(kind, honest.port, honest=True)], limits=LIMITS)
    assert model.paths[0].read_bytes() == model_file.read_bytes()


@pytest.mark.parametrize("bits", [b"", b"\xff" * 300_000, b"\x00\x00"], ids=["empty", "oversize", "nothing"])
async def test_bitmaps_that_cannot_be(
    store_a: ModelStore, published: ModelEntry, make_library: Make, serve_store: Any, model_file: Path, bits: bytes
) -> None:
    store = make_library("b").store
    with trio.fail_after(60):
        async with lying(store_a, wrong_bytes) as (liar, port), serve_store(store_a) as honest:
            liar.bitmap = lambda _: bits
            sources = [_source(KINDS[0], port), _source(KINDS[0], honest.port, honest=True)]
            report = await fetch(published.root, store, sources=sources, limits=LIMITS)
    assert report.bytes_by_source == {str(honest): model_file.stat().st_size}
    assert not liar.asked, "what it does not claim to have is not asked of it"


async def test_many_liars_and_one_who_is_honest(
    store_a: ModelStore, published: ModelEntry, make_library: Make, serve_store: Any, model_file: Path
) -> None:
    store = make_library("b").store
    with trio.fail_after(60):
        async with (
            lying(store_a, wrong_bytes) as (_, one),
            lying(store_a, LIES[1]) as (_, two),
            lying(store_a, LIES[3]) as (_, three),
            lying(store_a, denies) as (_, four),
            serve_store(store_a, HONEST) as honest,
        ):
            liars = [_source(KINDS[0], port) for port in (one, two, three, four)]
            sources = [*liars, _source(KINDS[0], honest.port, honest=True)]
            report = await fetch(published.root, store, sources=sources, limits=LIMITS)
    assert report.bytes_by_source == {str(honest): model_file.stat().st_size}
    assert store.require(published.root).have_bits() == bitmap.full(11)


async def test_a_peer_whose_gateway_does_not_answer_is_asked_another_way(
    store_a: ModelStore, published: ModelEntry, make_library: Make, serve_store: Any, model_file: Path
) -> None:
    """Of one peer's sources the first that works is used, and never two at the same time."""
    peer = NodeKey(b"p" * 32).peer_id
    store = make_library("b").store
    with trio.fail_after(60):
        async with lying(store_a, LIES[6]) as (silent, dead), serve_store(store_a) as honest:
            first = GatewaySource(GatewayAddress("127.0.0.1", dead, peer), LIMITS.timeouts)
            second = GatewaySource(GatewayAddress("127.0.0.1", honest.port, peer))
            report = await fetch(published.root, store, sources=[first, second], limits=LIMITS)
    assert silent.asked
    assert report.bytes_by_source == {f"gateway:{peer}": model_file.stat().st_size}
    assert store.require(published.root).row.complete
