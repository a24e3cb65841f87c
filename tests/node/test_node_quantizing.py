"""Smaller models at a node, with a child of ours that does as a test says: what is made and kept, and what a child that
lies, dies, hangs or fills the disk leaves behind, which is nothing."""

from __future__ import annotations

import json
import sys
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio

from octonode.api.ports import Report
from octonode.api.schema import ModelFacts, ModelOutcome, ModelProgress, PublishModel
from octonode.api.schema.quantizing import QuantizeModel, QuantizeOutcome
from octonode.config_engines import EnginesConfig
from octonode.errors import OctonodeError
from octonode.identity import NodeKey
from octonode.models.library import Library, ModelEntry
from octonode.models.quantized import quantized_from
from octonode.models.store import ModelStore
from octonode.models.trust import TrustTable
from octonode.node import quantizing
from octonode.node.gate import Gate
from octonode.node.quantizing import Quantizing
from tests.conftest import alive
from tests.models.samples import gguf, tensor

KEY = NodeKey(b"quantize".ljust(32, b"."))
PARENT = gguf({"general.file_type": 1, "llama.context_length": 64}, [tensor("t", [4096], 0)], 16384)
CHILD = gguf({"general.file_type": 7}, [tensor("t", [1024], 0)], 4096)
QUALITY = {"measure": "perplexity", "parent": 20.0, "value": 21.5, "mean": 0.0, "reason": ""}
PRELUDE = f"""\
#!{sys.executable}
import json, os, signal, subprocess, sys, time
from pathlib import Path
job = json.loads(sys.stdin.readline())
target = Path(job["target"])
made = target / "small.gguf"
def say(**value):
    print(json.dumps(value), flush=True)
def result(**changes):
    fields = dict(path=str(made), parent_bytes=7, bytes=9, weights=1024, quality={QUALITY!r}, seconds=0.5)
    say(type="result", **{{**fields, **changes}})
def write(data=bytes.fromhex("{CHILD.hex()}")):
    made.write_bytes(data)
say(type="progress", stage="weights", done=1, total=2)
"""


class Place:
    """A node's library with one model, and a quantizer whose child runs `body`."""

    def __init__(self, folder: Path, body: str = "write(); result()", **settings: Any) -> None:
        self.home = folder / "home"
        self.home.mkdir(mode=0o700)
        (self.home / "node.key").write_bytes(b"the key of this node, which nobody may read")
        self.script = folder / "child"
        self.script.write_text(PRELUDE + textwrap.dedent(body))
        self.script.chmod(0o755)
        self.library = Library(
            ModelStore(self.home, disk_bytes_max=settings.pop("disk_bytes_max", 0)), TrustTable(self.home), KEY
        )
        source = folder / "words.gguf"
        source.write_bytes(PARENT)
        self.parent = self.library.add(source, name="words", version="1.2.0", licence="MIT", placement="copy")
        self.asked_for: list[int] = []
        self.told: list[ModelProgress] = []
        self.refreshed = 0
        self.quantizing = Quantizing(
            own=KEY.peer_id, home=self.home, settings=EnginesConfig(pythons=(f"llama-cpp-python={self.script}",),
            **settings), library=self.library, gate=Gate(self.library), refresh=self._refresh,
            make_room=self._make_room,
        )  # fmt: skip
        self.quantizing.connect(self)

    async def _refresh(self) -> None:
        self.refreshed += 1

    async def _make_room(self, missing_bytes: int) -> bool:
        self.asked_for.append(missing_bytes)
        return False

    def facts(self, root: str) -> ModelFacts:
        return ModelFacts(f"cid:{root}", root)

    async def publish(self, request: PublishModel, report: Report) -> ModelOutcome:
        entry = self.library.publish(request.reference)
        return ModelOutcome(self.facts(entry.root.text), records=3, note="told")

    async def make(self, to: str = "Q8_0", **fields: Any) -> QuantizeOutcome:
        return await self.quantizing.quantize(QuantizeModel("words", to, **fields), self.told.append)

    async def fails(self, code: str, **fields: Any) -> str:
        """Its message; nothing is left of what was begun."""
        with pytest.raises(OctonodeError) as caught:
            await self.make(**fields)
        assert caught.value.code == code, caught.value.message
        self.nothing_left()
        assert [each.root for each in self.library.list()] == [self.parent.root]
        return caught.value.message

    def nothing_left(self) -> None:
        assert not any((self.home / "quantizing").glob("*"))
        assert not list(self.library.store.require(self.parent.root).leases.holders())

    def entry(self, outcome: QuantizeOutcome) -> ModelEntry:
        return self.library.show(f"cid:{outcome.model.root}")


async def test_a_new_model_names_its_parent_and_what_was_lost(tmp_path: Path) -> None:
    place = Place(tmp_path)
    outcome = await place.make()
    entry = place.entry(outcome)
    assert entry.manifest is not None
    assert place.parent.manifest is not None
    manifest = entry.manifest.manifest
    assert (manifest.publisher, manifest.name, manifest.version) == (KEY.peer_id, "words-q8_0", "1.2.0")
    assert manifest.derived_from == (place.parent.manifest.cid,)
    assert (manifest.quantization, manifest.licence, manifest.context_tokens) == ("Q8_0", "MIT", 64)
    said = quantized_from(manifest.ext)
    assert said == outcome.made
    assert (said.kind, said.parent) == ("Q8_0", f"{KEY.peer_id}/words@1.2.0")
    assert (said.parent_bytes, said.size_bytes) == (len(PARENT), len(CHILD)), "as it lies on the disk, not as told"
    assert said.ratio_fp32 == pytest.approx(len(CHILD) / (4 * 4096)), "to the weights that the parent has"
    assert said.ratio_fp16 == pytest.approx(2 * said.ratio_fp32)
    assert (said.measure, said.quality_parent, said.quality) == ("perplexity", 20.0, 21.5)
    assert not entry.row.public, "private until it is published"
    assert place.told[0] == ModelProgress("weights", 1, 2)
    assert place.refreshed == 1
    place.nothing_left()


async def test_the_same_again_is_the_one_made_before(tmp_path: Path) -> None:
    place = Place(tmp_path, "write(); result()")
    first = await place.make()
    place.script.unlink()  # would be CONFIG if it were started
    again = await place.make(publish=True)
    assert again.model.root == first.model.root
    assert again.made == first.made
    assert again.records == 3
    assert again.note == "it was made before; nothing was done; told"
    assert place.entry(again).row.public


async def test_a_name_that_is_taken_is_refused_before_anything_is_done(tmp_path: Path) -> None:
    place = Place(tmp_path)
    place.script.unlink()
    message = await place.fails("FORBIDDEN", name="words")
    assert "--version" in message
    assert not place.told


@pytest.mark.parametrize(
    ("body", "code", "words"),
    [
        ("print('hello', flush=True)", "ENGINE_FAILED", "cannot be read"),
        ("print('[' * 9000, flush=True)", "ENGINE_FAILED", "cannot be read"),
        ("sys.stdout.write('x' * 100000); sys.stdout.flush(); time.sleep(60)", "ENGINE_FAILED", "16384 bytes"),
        ("say(type='error', code='BUDGET_EXCEEDED', message='pay\\x1b me')", "ENGINE_FAILED", "pay  me"),
        ("say(type='error', code='UNSUPPORTED', message='no, for a reason')", "UNSUPPORTED", "no, for a reason"),
        ("write(); result(weights=-1)", "ENGINE_FAILED", "cannot be read"),
        ("write(); result(seconds=float('nan'))", "ENGINE_FAILED", "cannot be read"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", "ENGINE_CRASHED", "died of SIGSEGV"),
        ("print('so it ends', file=sys.stderr)", "ENGINE_CRASHED", "ended with status 0: so it ends"),
        ("result()", "ENGINE_FAILED", "not where it was to be"),
        ("write(); result(path='/etc/hostname')", "ENGINE_FAILED", "not where it was to be"),
        ("write(); result(path=str(target / '..'))", "ENGINE_FAILED", "not where it was to be"),
        ("made.symlink_to('../../../node.key'); result()", "ENGINE_FAILED", "not a plain file"),
        ("write(); os.link(made, target / 'again.gguf'); result()", "ENGINE_FAILED", "not a plain file"),
        ("write(); os.mkfifo(target / 'pipe'); result()", "ENGINE_FAILED", "not a plain file"),
        ("write(); os.truncate(made, 10 * 2**30); result()", "ENGINE_FAILED", "more than"),
        ("write(b'I am no model at all, but text'); result()", "FORMAT_REFUSED", "GGUF"),
    ],
)  # fmt: skip
async def test_a_child_that_lies_or_dies_leaves_nothing(tmp_path: Path, body: str, code: str, words: str) -> None:
    place = Place(tmp_path, body)
    with trio.fail_after(60):
        assert words in await place.fails(code)


async def test_leaving_ends_the_child_and_whatever_it_started(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    place = Place(
        tmp_path,
        f"""
        write()
        other = subprocess.Popen(["sleep", "1000"])
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        open({str(pids)!r}, "w").write(json.dumps([os.getpid(), other.pid]))
        say(type="progress", stage="hanging", done=0, total=0)
        time.sleep(1000)
        """,
    )
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(place.make)
            while not any(each.stage == "hanging" for each in place.told):
                await trio.sleep(0.02)
            assert [each.owner for each in place.library.store.require(place.parent.root).leases.holders()]
            nursery.cancel_scope.cancel()
        for pid in json.loads(pids.read_text()):
            while alive(pid):  # the other one is reaped by init
                await trio.sleep(0.02)
    place.nothing_left()
    assert [each.root for each in place.library.list()] == [place.parent.root]


async def test_a_full_quota_is_told_before_anything_is_begun(tmp_path: Path) -> None:
    place = Place(tmp_path, disk_bytes_max=len(PARENT) + 2**20)
    place.script.unlink()
    assert "models.disk_bytes_max" in await place.fails("DISK_FULL")
    assert place.asked_for, "other models were asked to make room"


async def test_a_full_disk_is_told_before_anything_is_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = Place(tmp_path)
    place.script.unlink()
    monkeypatch.setattr("shutil.disk_usage", lambda _: _Full())
    assert "are free at" in await place.fails("DISK_FULL")


class _Full:
    free = 70 * 2**20


async def test_a_child_that_takes_too_much_memory_is_ended(tmp_path: Path) -> None:
    place = Place(tmp_path, "held = bytearray(64 * 2**20); time.sleep(1000)", memory_bytes_max=32 * 2**20)
    with trio.fail_after(60):
        assert "engines.memory_bytes_max" in await place.fails("ENGINE_FAILED")


async def test_what_cannot_be_made_is_refused_with_the_way_out(tmp_path: Path) -> None:
    place = Place(tmp_path)
    assert "take one of F16, Q8_0, Q4_0, Q4_K_M" in await place.fails("UNSUPPORTED", to="Q5_K_M")
    assert "is F16 already" in await place.fails("UNSUPPORTED", to="F16")
    place.script.unlink()
    assert "cannot be started" in await place.fails("CONFIG")
    with pytest.raises(OctonodeError) as caught:
        await place.quantizing.quantize(QuantizeModel("other", "Q8_0"), place.told.append)
    assert caught.value.code in ("NOT_FOUND", "MODEL_NOT_FOUND")


async def test_choices_say_what_can_be_made_here_and_why_not(tmp_path: Path) -> None:
    place = Place(tmp_path)
    found = await place.quantizing.choices("words")
    assert (found.reference, found.format, found.quantization) == (f"{KEY.peer_id}/words@1.2.0", "gguf", "F16")
    problems = {each.kind: each.problem for each in found.choices}
    assert problems == {"F16": "the model is F16 already", "Q8_0": "", "Q4_0": "", "Q4_K_M": ""}
    assert all(each.words and each.expected_bytes > 0 for each in found.choices)
    scripted = tmp_path / "scripted.model"
    scripted.write_bytes(b"octonode scripted model 1\n" + bytes(100))
    place.library.add(scripted, name="scripted")
    none = await place.quantizing.choices("scripted")
    assert none.choices == ()
    assert "gguf, onnx, safetensors are" in none.note


async def test_one_is_made_at_a_time_and_few_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantizing, "WAITING_MAX", 1)
    place = Place(tmp_path, "time.sleep(1000)")
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(place.make, "Q8_0")
            while not place.told:
                await trio.sleep(0.02)
            nursery.start_soon(place.make, "Q4_0")
            while not any(each.stage == "wait" for each in place.told):  # the first goes on telling of itself
                await trio.sleep(0.02)
            with pytest.raises(OctonodeError) as caught:
                await place.make("Q4_K_M")
            assert caught.value.code == "OVERLOADED"
            nursery.cancel_scope.cancel()
    place.nothing_left()


async def test_what_a_killed_daemon_left_is_removed_at_the_next_start(tmp_path: Path) -> None:
    place = Place(tmp_path)
    left = place.home / "quantizing" / "0123" / "made"
    left.mkdir(parents=True)
    (left / "half.gguf").write_bytes(b"half")
    await place.quantizing.run()
    assert not left.exists()


async def test_a_parent_that_nobody_signed_is_named_by_its_root(tmp_path: Path) -> None:
    place = Place(tmp_path)
    entry = replace(place.parent, manifest=None)
    parent = await quantizing.parent_of(entry, Gate(place.library))
    assert (parent.cid, parent.name, parent.version) == (entry.root, f"cid:{entry.root}", "1.0.0")
    with pytest.raises(OctonodeError) as caught:
        parent.child_name("Q8_0", "")
    assert caught.value.code == "BAD_REQUEST"
    assert parent.child_name("Q8_0", "mine") == "mine"
