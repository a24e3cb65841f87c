"""Many who fetch one model at once: what each takes from whom, and how little of it from the first holder."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from octonode.identity import NodeKey
from octonode.ids import PeerId
from octonode.ipfs.cid import Cid, raw_cid
from octonode.ipfs.gateway import Gateway, GatewayLimits
from octonode.ipfs.gateway_client import GatewayAddress, Timeouts
from octonode.ipfs.layout import FileLayout, Layout, Leaf
from octonode.models import bitmap
from octonode.models.fellows import Fellows
from octonode.models.fetch import FetchLimits, FetchReport, fetch
from octonode.models.library import Library
from octonode.models.memory import FetchMemory
from octonode.models.plan import FetchPlan
from octonode.models.shares import share_out
from octonode.models.sources.gateway import GatewaySource
from octonode.models.sources.source import Source

MIB = 1024 * 1024
FETCHERS = 6
LIMITS = FetchLimits(
    window_bytes_start=2 * MIB,
    window_bytes_max=4 * MIB,
    retry_seconds=0.05,
    set_aside_seconds=1.0,
    look_seconds=0.1,
    idle_bitmap_seconds=0.1,
    timeouts=Timeouts(head_seconds=5.0, stall_seconds=5.0),
)
Make = Callable[..., Library]
SEED = int(os.environ.get("SWARM_SEED", "20261127"))


# Shares.


@given(st.sets(st.text(min_size=1, max_size=8), max_size=9), st.integers(0, 5000))
def test_every_leaf_has_one_owner(names: set[str], count: int) -> None:
    shares = share_out(names, count)
    assert set(shares) == names
    together = 0
    for share in shares.values():
        assert not together & share
        together |= share
    assert together == (bitmap.full(count) if names else 0)


def test_shares_are_about_equal_and_one_more_fetcher_moves_only_its_own() -> None:
    names = [NodeKey(bytes([number]) * 32).peer_id for number in range(7)]
    before, after = share_out(names[:6], 40_960), share_out(names, 40_960)
    sizes = [share.bit_count() for share in before.values()]
    assert max(sizes) < 1.3 * min(sizes)
    for name in names[:6]:
        assert after[name] & ~before[name] == 0


def _plan(count: int) -> FetchPlan:
    leaves = tuple(Leaf(n, 0, n * 10, 10, bytes(32)) for n in range(count))
    layout = Layout(raw_cid(b""), (FileLayout("", raw_cid(b""), count * 10, 0, count),), leaves, {})
    return FetchPlan(layout, 0, random.Random(1))


def _drain(plan: FetchPlan, key: str) -> list[int]:
    taken: list[int] = []
    while run := plan.next_run(key, 1_000_000):
        taken += [leaf.number for leaf in run]
    return taken


def test_what_is_left_to_others_is_not_asked_of_a_whole_source_but_of_them_and_of_what_is_near() -> None:
    plan = _plan(100)
    plan.set_source("whole", None)
    plan.set_source("file", 0b11 << 50, near=True)
    plan.set_source("fellow", 0b11 << 60)
    plan.reserve(bitmap.full(50) << 50, ["fellow"])
    assert sorted(_drain(plan, "whole")) == list(range(50))
    assert plan.waits_at("whole")
    assert sorted(_drain(plan, "fellow")) == [60, 61]
    assert sorted(_drain(plan, "file")) == [50, 51]
    plan.reserve(0, ())
    assert not plan.waits_at("whole")
    assert sorted(_drain(plan, "whole")) == sorted({*range(50, 100)} - {50, 51, 60, 61})


def test_a_fellow_that_brings_nothing_loses_its_share_and_one_that_does_keeps_it() -> None:
    plan = _plan(1000)
    fellows = Fellows(plan, 1000, "us", patience_seconds=5.0)
    plan.set_source("whole", None)
    fellows.saw("whole", "seeder")
    assert not fellows.names
    for key in ("a", "b"):
        plan.set_source(key, 0)
        fellows.saw(key, key)
    assert fellows.names == {"a", "b"}
    shares = share_out({"us", "a", "b"}, 1000)
    assert set(_drain(plan, "whole")) == set(bitmap.members(shares["us"]))
    plan.verified([Leaf(n, 0, 0, 10, b"") for n in bitmap.members(shares["us"])])
    fellows.waits(0.0)
    plan.set_source("a", shares["a"])
    fellows.saw("a", "a")
    fellows.waits(4.0)  # a has brought its share meanwhile: the patience starts anew
    fellows.waits(8.9)
    assert fellows.names == {"a", "b"}
    fellows.waits(9.0)
    assert fellows.names == {"a"}
    fellows.saw("b", "b")
    assert fellows.names == {"a"}, "one that was slow once is not counted in again"
    assert set(_drain(plan, "whole")) == set(bitmap.members(share_out({"us", "a"}, 1000)["us"] & ~shares["us"]))


def test_a_fellow_that_has_everything_is_one_to_ask_and_no_longer_a_fellow() -> None:
    plan = _plan(100)
    fellows = Fellows(plan, 100, "us", patience_seconds=5.0)
    plan.set_source("a", 1)
    fellows.saw("a", "a")
    plan.set_source("a", None)
    fellows.saw("a", "a")
    assert not fellows.names
    assert len(_drain(plan, "a")) == 100


def test_without_a_name_of_our_own_nothing_is_left_to_others() -> None:
    plan = _plan(100)
    fellows = Fellows(plan, 100, "", patience_seconds=5.0)
    plan.set_source("a", 1)
    fellows.saw("a", "a")
    assert not fellows.names


# Memory.


async def test_memory_is_granted_by_priority_and_never_beyond_its_bound() -> None:
    memory, order = FetchMemory(100), list[str]()

    async def work(name: str, size: int, priority: int) -> None:
        async with memory.take(size, priority):
            order.append(name)
            assert memory.taken_bytes <= 100
            await trio.sleep(0.01)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(work, "first", 80, 0)
        await trio.testing.wait_all_tasks_blocked()
        for name, size, priority in (("low", 60, 0), ("high", 60, 5), ("small", 10, 0), ("huge", 1000, 9)):
            nursery.start_soon(work, name, size, priority)
            await trio.testing.wait_all_tasks_blocked()
    assert order[:3] == ["first", "huge", "high"]
    assert set(order[3:]) == {"low", "small"}
    assert (memory.taken_bytes, memory.peak_bytes) == (0, 100)


async def test_one_who_waits_for_memory_and_leaves_costs_nothing() -> None:
    memory = FetchMemory(100)
    async with memory.take(100):
        with trio.move_on_after(0.01):
            async with memory.take(50):
                raise AssertionError
        assert memory.taken_bytes == 100
    async with memory.take(100):
        assert memory.taken_bytes == 100


# The same blocks elsewhere.


async def test_blocks_of_another_model_are_not_fetched_again(
    make_library: Make, serve_store: Any, tmp_path: Path, gguf: Callable[..., bytes]
) -> None:
    old, new = tmp_path / "old.gguf", tmp_path / "new.gguf"
    data = gguf(8 * MIB)
    old.write_bytes(data)
    new.write_bytes(data[: 6 * MIB] + random.Random(SEED).randbytes(2 * MIB + 5))
    publisher, ours = make_library("a"), make_library("b")
    ours.add(old)
    entry = publisher.add(new)
    async with serve_store(publisher.store) as address:
        report = await fetch(entry.root, ours.store, sources=[GatewaySource(address)], limits=LIMITS)
    assert report.bytes_by_source == {"this store": 6 * MIB, str(address): 2 * MIB + 5}
    found = ours.entry(entry.root)
    assert found is not None
    assert found.path.read_bytes() == new.read_bytes()


async def test_a_block_that_was_damaged_here_comes_from_others(
    make_library: Make, serve_store: Any, tmp_path: Path, gguf: Callable[..., bytes]
) -> None:
    old, new = tmp_path / "old.gguf", tmp_path / "new.gguf"
    data = gguf(4 * MIB)
    old.write_bytes(data)
    new.write_bytes(data + b"more")
    publisher, ours = make_library("a"), make_library("b")
    held = ours.add(old, placement="copy")
    entry = publisher.add(new)
    held.path.chmod(0o644)
    with held.path.open("r+b") as file:
        file.seek(MIB + 7)
        file.write(b"damage")
    async with serve_store(publisher.store) as address:
        report = await fetch(entry.root, ours.store, sources=[GatewaySource(address)], limits=LIMITS)
    assert report.bytes_by_source[str(address)] >= MIB
    found = ours.entry(entry.root)
    assert found is not None
    assert found.path.read_bytes() == new.read_bytes()


# A swarm.


class _Swarm:
    """Everybody who serves the model, as each finds them."""

    def __init__(self) -> None:
        self.addresses: dict[PeerId, GatewayAddress] = {}

    def peers_of(self, own: PeerId) -> _Others:
        return _Others(self, own)


class _Others:
    def __init__(self, swarm: _Swarm, own: PeerId) -> None:
        self._swarm, self._own = swarm, own

    async def sources(self, root: Cid) -> Sequence[Source]:
        await trio.lowlevel.checkpoint()
        return [GatewaySource(each) for peer, each in self._swarm.addresses.items() if peer != self._own]


@pytest.mark.parametrize("upload_mib", [0, 16])
async def test_six_who_fetch_at_once_take_the_model_about_once_from_its_first_holder(
    make_library: Make, tmp_path: Path, gguf: Callable[..., bytes], upload_mib: int
) -> None:
    """With the first holder as fast as the machine, and with one that gives 16 MiB/s in all."""
    print("seed", SEED)
    path = tmp_path / "model.gguf"
    path.write_bytes(gguf(64 * MIB + 77, seed=SEED))
    seeder = make_library("seeder")
    entry = seeder.add(path)
    swarm = _Swarm()
    reports: dict[PeerId, FetchReport] = {}

    async def take(name: str) -> None:
        library, own = make_library(name, trust_all=True), NodeKey(name.encode().ljust(32, b".")).peer_id
        gateway = Gateway("127.0.0.1:0", library.store)

        async def prepared() -> None:
            swarm.addresses[own] = GatewayAddress("127.0.0.1", gateway.port, own)
            await trio.sleep(0.05)

        await nursery.start(gateway.run)
        reports[own] = await fetch(
            entry.root, library.store, peers=swarm.peers_of(own), limits=LIMITS, own=own, prepared=prepared,
            rng=random.Random(name),
        )  # fmt: skip
        found = library.entry(entry.root)
        assert found is not None
        assert found.path.read_bytes() == path.read_bytes()
        ended.append(name)
        if len(ended) == FETCHERS:
            nursery.cancel_scope.cancel()

    ended: list[str] = []
    first = Gateway("127.0.0.1:0", seeder.store, GatewayLimits(upload_bytes_per_second_max=upload_mib * MIB))
    seeder_id = NodeKey(b"seeder".ljust(32, b".")).peer_id
    with trio.fail_after(100):
        async with trio.open_nursery() as nursery:
            await nursery.start(first.run)
            swarm.addresses[seeder_id] = GatewayAddress("127.0.0.1", first.port, seeder_id)
            for number in range(FETCHERS):
                nursery.start_soon(take, f"fetcher-{number}")
    assert len(reports) == FETCHERS
    size = path.stat().st_size
    print("from the first holder:", first.sent_bytes / size, "times the file")
    assert first.sent_bytes <= 1.25 * size
    assert all(not report.banned for report in reports.values())


async def test_a_thin_line_that_several_share_stalls_none_of_them(
    make_library: Make, serve_store: Any, model_file: Path
) -> None:
    """What a gateway may send in all is dealt out in small steps, so that no asker hears nothing for long."""
    thin = GatewayLimits(upload_bytes_per_second_max=256 * 1024)
    patience = Timeouts(head_seconds=30.0, stall_seconds=3.0, bytes_per_second_min=1)
    library = make_library("a")
    layout = library.store.require(library.add(model_file).root).layout()
    got: list[int] = []

    async def ask(address: GatewayAddress, number: int) -> None:
        lane = GatewaySource(address, patience).open()
        try:
            await lane.leaves(layout.files[0].root, [layout.leaves[number]], lambda leaves: got.append(number))
        finally:
            lane.close()

    with trio.fail_after(60):
        async with serve_store(library.store, thin) as address, trio.open_nursery() as nursery:
            for number in range(3):
                nursery.start_soon(ask, address, number)
    assert sorted(got) == [0, 1, 2]
