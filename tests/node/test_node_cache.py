"""The cache of a node: room made on demand, the periodic check and its repair, faults of the disk in the status."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from octonode.api.schema.cache import CollectGarbage
from octonode.config import ModelsConfig
from octonode.errors import OctonodeError, Unreachable
from octonode.identity import NodeKey
from octonode.ipfs.cid import Cid, raw_cid
from octonode.models.adding import describe
from octonode.models.keeping import DAY_MS
from octonode.models.library import Library
from octonode.models.scrubbing import ScrubLog, ScrubNote
from octonode.models.store import ModelStore
from octonode.models.trust import TrustTable
from octonode.models.writing import LeafWriter
from octonode.network.clock import wall_clock_ms
from octonode.node import scrubbing
from octonode.node.cache import STORE, Cache
from octonode.node.evicting import Evictor
from octonode.node.scrubbing import Scrubber
from octonode.node.shelf import Shelf
from octonode.testing.testnet import write_scripted_model

MIB = 1024 * 1024
US = NodeKey(b"u" * 32)


class Engines:
    """A supervisor with no workers."""

    changes = 0

    def status(self) -> list[Any]:
        return []

    async def wait_changed(self, seen: int) -> int:
        if seen == self.changes:
            await trio.sleep_forever()
        return self.changes


class World:
    """A home with three models of 4 MiB, the second used last; `others` hold all of them."""

    def __init__(self, home: Path, folder: Path, **settings: Any) -> None:
        self.settings = ModelsConfig(**settings)
        self.home = home
        self.now_ms = wall_clock_ms()
        self.store = ModelStore(home, disk_bytes_max=self.settings.disk_bytes_max)
        self.library = Library(self.store, TrustTable(home), US)
        self.shelf = Shelf(self.library)
        self.files = [write_scripted_model(folder / f"{n}.model", seed=n, size_bytes=4 * MIB) for n in range(3)]
        self.roots = [self.library.add(file, name=f"m{n}", placement="copy").root for n, file in enumerate(self.files)]
        self.store.touch(self.roots[1])
        self.others = dict.fromkeys((root.text for root in self.roots), 1)
        self.served: set[str] = set()
        self.told: list[tuple[str, dict[str, Any]]] = []
        self.troubles: dict[str, str] = {}
        self.busy = False
        self.repaired: list[Cid] = []
        self.notes = ScrubLog(home)
        evictor = Evictor(
            self.library, self.shelf, others=lambda root: self.others.get(root, 0),
            in_use=self.served.__contains__, emit=self.emit,
        )  # fmt: skip
        self.scrubber = self.make_scrubber()
        self.cache = Cache(
            settings=self.settings, store=self.store, shelf=self.shelf, evictor=evictor, scrubber=self.scrubber,
            supervisor=Engines(), troubles=self.troubles, emit=self.emit,  # type: ignore[arg-type]
        )  # fmt: skip

    def make_scrubber(self) -> Scrubber:
        return Scrubber(
            settings=self.settings, store=self.store, shelf=self.shelf, notes=self.notes, busy=lambda: self.busy,
            repair=self.repair, changed=self.shelf.refresh, emit=self.emit, now_ms=lambda: self.now_ms,
        )  # fmt: skip

    def emit(self, event: str, **fields: Any) -> None:
        self.told.append((event, fields))

    async def repair(self, root: Cid) -> None:
        number = self.roots.index(root)
        data = self.files[number].read_bytes()
        model = self.store.require(root)
        writer = LeafWriter(model)
        have = model.have_bits()
        for leaf in model.layout().leaves:
            if not have >> leaf.number & 1:
                writer.write(leaf, data[leaf.offset_bytes : leaf.offset_bytes + leaf.size_bytes])
        writer.finish()
        writer.close()
        self.repaired.append(root)

    def rot(self, number: int, leaf: int) -> None:
        """A byte flips, and no time tells of it."""
        path = self.store.require(self.roots[number]).paths[0]
        status = path.stat()
        path.chmod(0o644)
        with open(path, "r+b") as file:
            file.seek(leaf * MIB + 7)
            byte = file.read(1)[0]
            file.seek(leaf * MIB + 7)
            file.write(bytes([byte ^ 1]))
        path.chmod(0o444)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))

    def leaf(self, number: int, leaf: int) -> Cid:
        return raw_cid(self.files[number].read_bytes()[leaf * MIB : (leaf + 1) * MIB])

    def named(self, event: str) -> list[dict[str, Any]]:
        return [fields for name, fields in self.told if name == event]


@pytest.fixture
def make_world(home: Path, tmp_path: Path) -> Callable[..., World]:
    return lambda **settings: World(home, tmp_path, **settings)


# -- gc --------------------------------------------------------------------------------------------------------------


async def test_a_dry_run_says_what_the_real_one_does(make_world: Callable[..., World]) -> None:
    world = make_world()
    dry = await world.cache.collect(CollectGarbage(dry_run=True, free_bytes=5 * MIB))
    assert len(world.store.roots()) == 3
    real = await world.cache.collect(CollectGarbage(free_bytes=5 * MIB))
    assert (dry.dry_run, real.dry_run) == (True, False)
    assert dry.items == real.items
    assert [each.root for each in real.items if each.goes] == [world.roots[0].text, world.roots[2].text]
    assert world.store.roots() == (world.roots[1],)
    assert real.freed_bytes == dry.freed_bytes >= 8 * MIB
    assert {each.reason for each in real.items} == {"unused for longest", "used more lately"}
    assert [fields["root"] for fields in world.named("evicted")] == [world.roots[0].text, world.roots[2].text]


async def test_what_stays_says_why_and_what_is_short(make_world: Callable[..., World]) -> None:
    world = make_world()
    world.library.pin(f"cid:{world.roots[0]}")
    world.others[world.roots[2].text] = 0
    with world.store.require(world.roots[1]).leases.take("engine", "engine llama"):
        found = await world.cache.collect(CollectGarbage(free_bytes=100 * MIB))
    assert len(world.store.roots()) == 3
    why = {each.root: each.reason for each in found.items}
    assert why[world.roots[0].text] == "pinned"
    assert "engine llama" in why[world.roots[1].text]
    assert "last known copy" in why[world.roots[2].text]
    assert (found.freed_bytes, found.short_bytes) == (0, 100 * MIB)
    forced = await world.cache.collect(CollectGarbage(free_bytes=1, force=True))
    assert [each.root for each in forced.items if each.goes] == [world.roots[2].text]


async def test_the_quota_is_kept_without_being_asked(make_world: Callable[..., World]) -> None:
    world = make_world(disk_bytes_max=9 * MIB)
    found = await world.cache.collect(CollectGarbage())
    assert [each.root for each in found.items if each.goes] == [world.roots[0].text]


async def test_leftovers_old_fetches_and_uploads_go(make_world: Callable[..., World], tmp_path: Path) -> None:
    world = make_world()
    layouts = [
        describe(write_scripted_model(tmp_path / f"p{n}.model", seed=50 + n, size_bytes=MIB)).layout for n in (0, 1)
    ]
    old, young = (world.store.prepare(layout) for layout in layouts)
    for directory, age in (
        (old.directory, 8),
        (world.home / "uploads" / "one", 9),
        (world.home / "uploads" / "two", 1),
    ):
        directory.mkdir(parents=True, exist_ok=True)
        if directory.parent.name == "uploads":
            (directory / "data").write_bytes(b"x" * 5000)
        at = (world.now_ms - age * DAY_MS) / 1000
        for path in (directory, *directory.rglob("*")):
            os.utime(path, (at, at))
    left = world.store.directory / ".new-999999999-1-x"
    (left / "data").mkdir(parents=True)
    (left / "data" / "f").write_bytes(bytes(300_000))
    dry = await world.cache.collect(CollectGarbage(dry_run=True))
    assert left.exists()
    found = await world.cache.collect(CollectGarbage())
    kinds = {each.name: (each.kind, each.goes) for each in found.items if each.kind != "model"}
    assert kinds == {
        str(left): ("leftover", True),
        f"cid:{old.root}": ("partial", True),
        f"cid:{young.root}": ("partial", False),
        str(world.home / "uploads" / "one"): ("upload", True),
        str(world.home / "uploads" / "two"): ("upload", False),
    }
    assert {each.name for each in dry.items if each.goes} == {each.name for each in found.items if each.goes}
    assert not left.exists()
    assert not (world.home / "uploads" / "one").exists()
    assert (world.home / "uploads" / "two").exists()
    assert world.store.get(old.root) is None
    assert world.store.get(young.root) is not None


async def test_one_that_is_used_between_the_look_and_the_removal_stays(make_world: Callable[..., World]) -> None:
    world = make_world()
    await world.shelf.refresh()
    remove = world.library.remove
    lease = world.store.require(world.roots[0]).leases.take("engine", "engine llama")
    world.cache._evictor._look = lambda held, on_disk: ((), 4 * MIB, 0, True)  # type: ignore[assignment,method-assign]
    found = await world.cache.collect(CollectGarbage(free_bytes=MIB))
    assert remove is not None
    assert found.freed_bytes == 0
    assert "in use: engine llama" in next(each.reason for each in found.items if each.root == world.roots[0].text)
    lease.close()


# -- the periodic check ----------------------------------------------------------------------------------------------


async def scrub(world: World, until: Callable[[], bool]) -> None:
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            await world.shelf.refresh()
            nursery.start_soon(world.make_scrubber().run)
            while not until():
                await trio.sleep(0.01)
            nursery.cancel_scope.cancel()


async def test_damage_is_found_no_longer_handed_out_and_repaired(make_world: Callable[..., World]) -> None:
    world = make_world(scrub_bytes_per_second=10**12)
    world.rot(1, 2)
    body = world.store.block(world.leaf(1, 2))
    assert body is not None, "nothing tells of it yet"
    body.close()
    world.now_ms += 31 * DAY_MS
    await scrub(
        world,
        lambda: (
            len([each for each in world.named("scrub") if each["state"] == "done"]) == 3
            and bool(world.named("repaired"))
        ),
    )
    assert world.named("damaged") == [{"root": world.roots[1].text, "blocks": 1}]
    assert world.repaired == [world.roots[1]]
    model = world.store.require(world.roots[1])
    assert model.row.complete
    assert model.paths[0].read_bytes() == world.files[1].read_bytes()
    assert {world.notes.note(root.text) for root in world.roots} == {ScrubNote(world.now_ms)}
    assert ScrubLog(world.home).note(world.roots[0].text).checked_ms == world.now_ms, "it is on disk"


async def test_what_nobody_can_repair_stays_marked(
    make_world: Callable[..., World], monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_world(scrub_bytes_per_second=10**12)
    world.rot(0, 1)
    world.rot(0, 3)
    world.now_ms += 31 * DAY_MS

    async def nobody(root: Cid) -> None:
        raise Unreachable("no source has it")

    monkeypatch.setattr(world, "repair", nobody)
    await scrub(world, lambda: len([each for each in world.named("scrub") if each["state"] == "done"]) == 3)
    assert world.notes.note(world.roots[0].text).damaged == 2
    assert world.store.block(world.leaf(0, 1)) is None
    await world.shelf.refresh()
    await world.cache._watch_models()
    (reason,) = world.troubles.values()
    assert "2 blocks are damaged" in reason
    assert f"octonode models verify cid:{world.roots[0]} --repair" in reason
    await World.repair(world, world.roots[0])
    await world.shelf.refresh()
    await world.cache._watch_models()
    assert world.troubles == {}


async def test_nothing_is_read_before_it_is_time_and_the_oldest_comes_first(
    make_world: Callable[..., World], monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_world(scrub_bytes_per_second=10**12)
    await world.shelf.refresh()
    assert world.scrubber._next() is None
    world.notes.set(world.roots[2].text, ScrubNote(world.now_ms - 40 * DAY_MS))
    world.notes.set(world.roots[0].text, ScrubNote(world.now_ms - 35 * DAY_MS))
    first = world.scrubber._next()
    assert first is not None
    assert first.root == world.roots[2].text
    world.notes.set(world.roots[1].text, ScrubNote(world.now_ms, next_leaf=2))
    begun = world.scrubber._next()
    assert begun is not None
    assert begun.root == world.roots[1].text, "what was begun is ended first"


async def test_a_restart_goes_on_where_it_was_and_a_fetch_stops_it(
    make_world: Callable[..., World], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scrubbing, "STEP_BYTES_MAX", MIB)
    monkeypatch.setattr(scrubbing, "BUSY_SECONDS", 0.01)
    world = make_world(scrub_bytes_per_second=10**12)
    world.rot(0, 0)
    world.notes.set(world.roots[0].text, ScrubNote(world.now_ms - 40 * DAY_MS))
    steps: list[int] = []
    step = Scrubber._check_some

    def counted(self: Scrubber, root: Cid, first_leaf: int, size_bytes: int) -> Any:
        steps.append(first_leaf)
        world.busy = first_leaf == 1
        return step(self, root, first_leaf, size_bytes)

    monkeypatch.setattr(Scrubber, "_check_some", counted)
    await scrub(world, lambda: world.busy)
    assert steps == [0, 1]
    assert ScrubLog(world.home).note(world.roots[0].text) == ScrubNote(world.now_ms - 40 * DAY_MS, 2, 1)
    world.notes = ScrubLog(world.home)
    world.busy = False
    await scrub(world, lambda: bool(world.repaired))
    assert steps == [0, 1, 2, 3, 4]
    assert world.named("scrub")[-1] == {"root": world.roots[0].text, "state": "done", "damaged": 1}


async def test_it_is_off_where_a_setting_says_so(make_world: Callable[..., World], autojump_clock: object) -> None:
    for settings in ({"scrub_days": 0.0}, {"scrub_bytes_per_second": 0}):
        world = make_world(**settings)
        world.now_ms += 1000 * DAY_MS
        await world.shelf.refresh()
        with trio.move_on_after(10_000):
            await world.scrubber.run()
        assert world.told == []


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{", b'{"x": 1}', b'{"x": {"checked_ms": "y"}}', b'{"x": {"what": 1}}']
)
def test_a_damaged_log_of_checks_is_begun_anew(home: Path, content: bytes) -> None:
    (home / "scrub.json").write_bytes(content)
    notes = ScrubLog(home)
    assert notes.note("x") == ScrubNote()
    notes.set("x", ScrubNote(5))
    assert ScrubLog(home).note("x") == ScrubNote(5)


# -- the disk --------------------------------------------------------------------------------------------------------


async def test_a_fault_of_the_disk_shows_and_goes(
    make_world: Callable[..., World], monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_world()
    monkeypatch.setattr("octonode.node.cache.LOOK_SECONDS", 0.01)
    faults: list[OSError | None] = [OSError(28, "No space left on device")]
    monkeypatch.setattr("octonode.node.cache.probe", lambda directory: faults[0])

    async def until(wanted: bool) -> None:
        with trio.fail_after(60):
            while bool(world.troubles.get(STORE)) is not wanted:
                await trio.sleep(0.01)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.cache._watch_disk)
        await until(True)
        assert "is full" in world.troubles[STORE]
        faults[0] = None
        await until(False)
        monkeypatch.setattr("octonode.node.cache.FREE_BYTES_MARGIN", 10**18)
        await until(True)
        assert "octonode models gc --free" in world.troubles[STORE]
        monkeypatch.setattr("octonode.node.cache.read_only", lambda directory: True)
        with trio.fail_after(60):
            while "may not be written" not in world.troubles.get(STORE, ""):
                await trio.sleep(0.01)
        nursery.cancel_scope.cancel()
    states = [fields["state"] for fields in world.named("store")]
    assert states[:2] == ["degraded", "ready"]


async def test_a_tidy_round_that_fails_is_no_end(
    make_world: Callable[..., World], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("octonode.node.cache.TIDY_SECONDS", 0.01)
    world = make_world()
    calls: list[int] = []

    async def fails(asked: CollectGarbage) -> Any:
        calls.append(1)
        raise OctonodeError("the disk fails", code="DISK_FAILED")

    monkeypatch.setattr(world.cache, "collect", fails)
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.cache._tidy)
            while len(calls) < 3:
                await trio.sleep(0.01)
            nursery.cancel_scope.cancel()
