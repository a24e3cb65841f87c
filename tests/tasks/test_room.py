"""Models that do not fit beside each other: who is loaded where, who leaves, who comes back, and what is said."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock as Clock

from octonode.engines.contract import GenerateRequest, LoadRequest
from octonode.engines.placement import RAM, Model, Seat, Shortage, Space
from octonode.errors import OctonodeError
from octonode.models.requirements import Fit, Need
from octonode.tasks.residency import Residency
from octonode.tasks.resident import ModelStatus, ResolvedModel
from octonode.tasks.room import NoRoom, Room, Use, in_words
from octonode.testing.engine import TwinEngines
from tests.tasks.nodes import Source

GB = 10**9
GPU = Space("cuda:0", 24 * GB, kind="cuda")
NO_FIT = Fit("free", 2048, "vram", Need(0, 0, 0), 0)


class Machine:
    """A machine of one's wish; every model takes 10 GB of a GPU, or what `sizes` says."""

    def __init__(self, *spaces: Space) -> None:
        self.now = spaces
        self.sizes: dict[str, int] = {}
        self.seen: list[Mapping[str, Seat]] = []
        self.fits = NO_FIT

    async def spaces(self, seats: Mapping[str, Seat]) -> tuple[Space, ...]:
        self.seen.append(dict(seats))
        await trio.lowlevel.checkpoint()
        return self.now

    async def need(self, model: ResolvedModel, request: LoadRequest) -> Model:
        size_bytes = self.sizes.get(model.root, 10 * GB)
        ram_bytes = size_bytes if model.root.startswith("ram") else None
        return Model(model.root, None if ram_bytes else size_bytes, ram_bytes, ("cuda",))

    async def fit(self, model: ResolvedModel, request: LoadRequest, short: Shortage) -> Fit:
        return self.fits


class SlowEngines(TwinEngines):
    """Processes that take a while to end, as real ones do."""

    def __init__(self) -> None:
        super().__init__()
        self.ending: dict[str, float] = {}
        self.end_seconds = 3.0
        self.alive_at_load: list[tuple[str, tuple[str, ...]]] = []
        """Each loaded root with those whose process had not ended then."""
        self.requests: dict[str, LoadRequest] = {}

    def set_desired(self, desired: Mapping[str, LoadRequest]) -> None:
        for root in set(self.twins) - set(desired):
            self.ending[root] = trio.current_time() + self.end_seconds
        self.requests = dict(desired)
        super().set_desired(desired)

    async def wait_gone(self, model_root: str) -> None:
        await trio.sleep_until(self.ending.get(model_root, 0.0))

    async def wait_ready(self, model_root: str):  # type: ignore[no-untyped-def]
        now = trio.current_time()
        self.alive_at_load.append((model_root, tuple(root for root, end in self.ending.items() if end > now)))
        return await super().wait_ready(model_root)


@asynccontextmanager
async def resident(
    home: Path, machine: Machine, *, idle: float = 60.0, keep: tuple[str, ...] = ()
) -> AsyncIterator[tuple[Residency, SlowEngines]]:
    engines = SlowEngines()
    residency = Residency(
        source=Source(home),
        engines=engines,
        load_request=lambda model, path, folder: LoadRequest("scripted", path, model.root),
        room=Room(machine, evict_idle_seconds=idle),
        keep_loaded=keep,
    )
    async with trio.open_nursery() as nursery:
        await nursery.start(residency.run)
        yield residency, engines
        nursery.cancel_scope.cancel()


def state(residency: Residency, root: str) -> str:
    status = residency.model(root)
    return status.state if status else ""


async def until(residency: Residency, root: str, wanted: str) -> ModelStatus:
    with trio.fail_after(3600):
        while True:
            seen = residency.changes
            status = residency.model(root)
            if status is not None and status.state == wanted:
                return status
            await residency.wait_changed(seen)


async def test_models_that_fit_are_loaded_side_by_side(tmp_path: Path, autojump_clock: Clock) -> None:
    async with resident(tmp_path, Machine(GPU, replace(GPU, id="cuda:1"))) as (residency, engines):
        for name in ("a", "b", "c"):
            residency.add(name)
        for name in ("a", "b", "c"):
            await until(residency, name, "serving")
        devices = {name: engines.requests[name].devices for name in ("a", "b", "c")}
        assert sorted(devices.values()) == [("cuda:0",), ("cuda:0",), ("cuda:1",)]


async def test_the_longest_idle_leaves_for_one_that_is_added(tmp_path: Path, autojump_clock: Clock) -> None:
    async with resident(tmp_path, Machine(GPU)) as (residency, engines):
        residency.add("old")
        await until(residency, "old", "serving")
        residency.add("new")
        await until(residency, "new", "serving")
        await trio.sleep(100)
        residency.ask("new")
        residency.used("new")
        residency.add("newest")
        await until(residency, "newest", "serving")
        status = residency.model("old")
        assert status is not None
        assert (status.state, state(residency, "new")) == ("standby", "serving")
        assert status.reason == "unloaded to make room for newest, until it is asked for"
        assert engines.alive_at_load[-1] == ("newest", ()), "not before the other has given its memory back"


async def test_an_unloaded_model_comes_back_when_it_is_asked_for(tmp_path: Path, autojump_clock: Clock) -> None:
    async with resident(tmp_path, Machine(GPU)) as (residency, engines):
        for name in ("old", "new", "newest"):
            residency.add(name)
            await until(residency, name, "serving") if name != "newest" else None
            await trio.sleep(100)
        assert state(residency, "old") == "standby"
        await trio.sleep(10_000)
        assert state(residency, "old") == "standby", "nobody asks, nobody leaves"
        residency.ask("old")
        assert state(residency, "old") == "loading", "who asks can wait for it"
        residency.ask("old")
        await until(residency, "old", "serving")
        assert state(residency, "new") == "standby"
        assert engines.loads == ["old", "new", "newest", "old"]


async def test_it_comes_back_by_itself_once_there_is_room(tmp_path: Path, autojump_clock: Clock) -> None:
    async with resident(tmp_path, Machine(GPU)) as (residency, _):
        for name in ("a", "b", "c"):
            residency.add(name)
            await trio.sleep(100)
        assert [state(residency, name) for name in ("a", "b", "c")] == ["standby", "serving", "serving"]
        residency.remove("b")
        await until(residency, "a", "serving")
        assert state(residency, "c") == "serving"


async def test_who_is_busy_pinned_or_just_used_stays(tmp_path: Path, autojump_clock: Clock) -> None:
    machine = Machine(GPU)
    async with resident(tmp_path, machine, keep=("pinned",)) as (residency, engines):
        for name in ("pinned", "busy"):
            residency.add(name)
            await until(residency, name, "serving")
        engines.twins["busy"].script.hang_at = 0
        async with engines.twins["busy"].generate(GenerateRequest(({"role": "user", "content": "x"},), 4)):
            await trio.sleep(100)
            residency.add("third")
            failed = await until(residency, "third", "failed")
            assert failed.code == "MODEL_UNAVAILABLE"
            assert "it needs 10 GB of GPU memory and 4 GB are free for it: 6 GB are missing" in failed.reason
            assert "octonode models serve busy --stop" in failed.reason
        await until(residency, "third", "standby")
        residency.ask("third")
        await until(residency, "third", "serving")
        assert [state(residency, name) for name in ("pinned", "busy")] == ["serving", "standby"]


async def test_a_model_too_large_for_the_machine_is_refused_and_the_others_go_on(
    tmp_path: Path, autojump_clock: Clock
) -> None:
    machine = Machine(GPU, Space(RAM, 16 * GB))
    machine.sizes = {"huge": 40 * GB, "ram-huge": 17 * GB}
    machine.fits = replace(NO_FIT, smaller=("Q4_K_M",), largest_context_tokens=1024)
    async with resident(tmp_path, machine) as (residency, engines):
        residency.add("small")
        await until(residency, "small", "serving")
        await trio.sleep(1000)
        for name in ("huge", "ram-huge"):
            residency.add(name)
        huge, in_ram = await until(residency, "huge", "failed"), await until(residency, "ram-huge", "failed")
        assert huge.reason == (
            "it needs 40 GB of GPU memory and 14 GB are free for it: 26 GB are missing; serve a smaller quantization"
            " (Q4_K_M would fit), or lower engines.context_tokens (to 1k)"
        )
        assert "17 GB of memory and 16 GB are free" in in_ram.reason
        assert engines.loads == ["small"], "nobody was unloaded for what does not fit anyhow"
        machine.now = (replace(GPU, total_bytes=80 * GB), machine.now[1])
        await until(residency, "huge", "serving")


async def test_asking_again_and_again_does_not_try_again_and_again(tmp_path: Path, autojump_clock: Clock) -> None:
    machine = Machine(replace(GPU, others_bytes=20 * GB))
    async with resident(tmp_path, machine) as (residency, _):
        residency.add("m")
        failed = await until(residency, "m", "failed")
        assert "end the other programs that use GPU memory" in failed.reason
        tries = len(machine.seen)
        for _ in range(1000):
            residency.ask("m")
            await trio.sleep(0.001)
        assert len(machine.seen) - tries <= 2


async def test_a_removed_model_gives_its_memory_back_before_the_next_is_loaded(
    tmp_path: Path, autojump_clock: Clock
) -> None:
    async with resident(tmp_path, Machine(GPU)) as (residency, engines):
        for name in ("a", "b"):
            residency.add(name)
            await until(residency, name, "serving")
        engines.end_seconds = 20.0
        residency.remove("a")
        residency.add("c")
        await until(residency, "c", "serving")
        assert engines.alive_at_load[-1] == ("c", ())


async def test_a_model_removed_while_its_memory_is_looked_at_takes_none(tmp_path: Path, autojump_clock: Clock) -> None:
    machine = Machine(GPU)
    room = Room(machine)
    with trio.CancelScope() as scope:
        scope.cancel()
        await room.take(ResolvedModel("m", "gguf"), LoadRequest("llama", None, "m"), asked=True, use=unused)
    assert room.seat("m") is None


async def test_a_crash_keeps_the_seat_and_a_failure_gives_it_back(tmp_path: Path, autojump_clock: Clock) -> None:
    machine = Machine(GPU)
    machine.sizes = {"a": 20 * GB, "b": 20 * GB}
    async with resident(tmp_path, machine) as (residency, engines):
        residency.add("a")
        await until(residency, "a", "serving")
        engines.load_seconds = 5.0
        engines.lose("a")
        await trio.sleep(1)
        assert state(residency, "a") == "loading"
        residency.add("b")
        await until(residency, "b", "failed")
        engines.failures = [OctonodeError("out of memory", code="ENGINE_FAILED")]
        await until(residency, "a", "failed")
        await until(residency, "b", "serving")
        await until(residency, "a", "standby")


async def test_what_runs_on_the_cpu_beside_gpus_is_kept_from_them(tmp_path: Path, autojump_clock: Clock) -> None:
    async with resident(tmp_path, Machine(GPU, Space(RAM, 64 * GB))) as (residency, engines):
        residency.add("ram-small")
        await until(residency, "ram-small", "serving")
        assert engines.requests["ram-small"].devices == ("cpu",)
    async with resident(tmp_path, Machine(Space(RAM, 64 * GB))) as (residency, engines):
        residency.add("ram-small")
        await until(residency, "ram-small", "serving")
        assert engines.requests["ram-small"].devices == ()


def unused(root: str) -> Use:
    return Use(root, busy=False, pinned=False, idle_seconds=0.0)


@pytest.mark.parametrize(
    ("short", "words"),
    [
        (Shortage("no_gpu", "gpu"), "needs a GPU and none is here"),
        (Shortage("too_large", "ram", 5 * GB, 2 * GB), "serve a smaller model, or ask a node that has more"),
        (Shortage("others", "ram", 5 * GB, 2 * GB), "end the other programs that use memory"),
        (Shortage("held", "gpu", 5 * GB, 2 * GB, ("m",)), "unload what has the rest (octonode models serve m --stop)"),
    ],
)
def test_each_shortage_says_what_to_do(short: Shortage, words: str) -> None:
    assert words in in_words(short, NO_FIT, list(short.holders))
    error = NoRoom("x", short, asked=True)
    assert (error.code, error.held) == ("MODEL_UNAVAILABLE", short.reason == "held")
    assert error.detail["missing_bytes"] == max(0, short.need_bytes - short.free_bytes)
