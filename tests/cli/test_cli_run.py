"""`octonode run` for every skill, in front of the real faces and clients, with a stand-in of who answers."""

from __future__ import annotations

import io
import json
import os
import sys
from array import array
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trio
from typer.testing import CliRunner

from octonode.api.schema import ModelProgress
from octonode.cli.main import app
from octonode.cli.run_show import steps
from octonode.errors import OctonodeError
from octonode.protocol.work.audio import Segment, Sound, Span, SpeakRequest, Transcription, VoiceActivity, Word
from octonode.protocol.work.image import ImageRequest, Images
from octonode.protocol.work.skills import WorkResult
from octonode.protocol.work.text import Embeddings, EmbedRequest
from octonode.protocol.work.vision import (
    Box,
    Classification,
    DetectedObject,
    Detection,
    Label,
    ReadText,
    TextLine,
)
from octonode.testing.faces import PROVIDER, PlayedAsking, PlayedModels, Stage, a_model, home_of, makes, says

PNG = b"\x89PNG a picture"
RESULTS: dict[str, WorkResult] = {
    "embed": Embeddings(array("f", [0.5, -0.25]).tobytes(), 2, 3),
    "classify": Classification((Label("cat", 0.75), Label("dog", 0.125))),
    "detect": Detection((DetectedObject("square", 0.9, Box(1, 2, 30, 40)),), 64, 64),
    "read": ReadText((TextLine("HELLO", 0.98, Box(0, 0, 9, 9)),), 64, 64),
    "transcribe": Transcription("Hi.", "en", 2.0, (Segment(" Hi.", 0.5, 1.5, (Word(" Hi.", 0.5, 1.5),)),)),
    "voice_activity": VoiceActivity((Span(0.25, 1.75),), 2.0),
    "speak": Sound(b"RIFF speech", 22_050, 1.5),
    "sound": Sound(b"RIFF rain", 16_000, 5.0),
    "image": Images((PNG, PNG + b"2"), 64, 64, 4, 7),
}


@dataclass
class Ran:
    code: int
    out: str
    error: OctonodeError | None
    stage: Stage

    @property
    def json(self) -> Any:
        assert self.error is None, self.error
        return json.loads(self.out)


Run = Callable[..., Any]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the command runs, with a picture and a sound in it."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    (here / "a.png").write_bytes(PNG)
    (here / "a.wav").write_bytes(b"RIFF a sound")
    return here


@asynccontextmanager
async def staged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *skills: str, category: str = ""
) -> AsyncIterator[Run]:
    """A model with these skills, the first of which is answered; gives what runs the command."""
    script = makes(RESULTS[skills[0]], steps=2) if skills[0] in RESULTS else says("Hello", ".")
    models = PlayedModels(held=[a_model(skills=skills, category=category)])
    async with Stage(asking=PlayedAsking(script), models=models).run() as stage:
        monkeypatch.setenv("OCTONODE_HOME", str(home_of(stage, tmp_path)))

        async def run(*arguments: str, given: str | bytes = "") -> Ran:
            result = await trio.to_thread.run_sync(
                lambda: CliRunner().invoke(app, ["run", "tiny", *arguments], input=given)
            )
            error = result.exception if isinstance(result.exception, OctonodeError) else None
            assert error is not None or result.exit_code == 0, result.output
            return Ran(result.exit_code, result.stdout, error, stage)

        yield run


@pytest.mark.parametrize(
    ("skill", "arguments", "shown"),
    [
        ("embed", ("a text",), ["[0.5000, -0.2500, ...]", "2 dimensions"]),
        ("classify", ("--input", "a.png"), ["LABEL", "cat", "0.750"]),
        ("detect", ("--input", "a.png"), ["square", "0.900", "1,2 30,40"]),
        ("read", ("--input", "a.png"), ["0.980", "HELLO"]),
        ("transcribe", ("--input", "a.wav", "--words"), ["[00:00:00.500 - 00:00:01.500]  Hi.", "  00:00:00.500  Hi."]),
        ("voice_activity", ("--input", "a.wav"), ["00:00:00.250", "of 00:00:02.000"]),
        ("speak", ("Good day",), ["good-day.wav", "1.5 s", "22050 Hz"]),
        ("sound", ("rain on a roof", "--seconds", "5", "--seed", "3"), ["rain-on-a-roof.wav", "16000 Hz"]),
        (
            "image",
            ("A lighthouse!", "--count", "2"),
            ["a-lighthouse.png  64x64  4 steps  seed 7", "a-lighthouse-2.png"],
        ),
    ],
)
async def test_each_skill_shows_what_it_made(
    skill: str, arguments: tuple[str, ...], shown: list[str],
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    async with staged(tmp_path, monkeypatch, skill) as run:
        ran = await run(*arguments)
        told = await run(*arguments, "--json")
    assert ran.error is None
    assert all(each in ran.out for each in shown), ran.out
    assert told.json["skill"] == skill
    assert told.json["octonode"]["provider"] == PROVIDER
    assert told.json["octonode"]["verified"] is True
    assert "result" in told.json


async def test_what_was_typed_is_what_is_asked_for(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with staged(tmp_path, monkeypatch, "image") as run:
        options = ("--size", "64x128", "--steps", "9", "--seed", "5", "--negative", "rain", "--guidance", "2.5")
        ran = await run("a tower", *options, "--input", "a.png", "--strength", "0.5", "--peer", PROVIDER)
    (asked,) = ran.stage.asking.asked
    assert asked.work == ImageRequest(
        "a tower", "rain", PNG, 0.5, width_pixels=64, height_pixels=128, steps=9, guidance=2.5, seed=5
    )
    assert asked.peer == PROVIDER
    async with staged(tmp_path, monkeypatch, "speak") as run:
        ran = await run("--voice", "joe", "--speed", "1.5", "--mode", "batch", given="from standard input")
    (asked,) = ran.stage.asking.asked
    assert (asked.work, asked.mode) == (SpeakRequest("from standard input", "joe", 1.5), "batch")


async def test_files_are_never_written_over_unasked(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with staged(tmp_path, monkeypatch, "speak") as run:
        first, second = (await run("Hello"), await run("Hello"))
        assert first.out.split()[0] == "hello.wav"
        assert second.out.split()[0] == "hello-2.wav"
        assert (folder / "hello.wav").read_bytes() == b"RIFF speech"
        (folder / "mine.wav").write_bytes(b"mine")
        refused = await run("Hello", "--out", "mine.wav")
        assert refused.error is not None
        assert "--force" in refused.error.message
        assert len(refused.stage.asking.asked) == 2, "nobody is asked for what could not be kept"
        assert (folder / "mine.wav").read_bytes() == b"mine"
        await run("Hello", "--out", "mine.wav", "--force")
        assert (folder / "mine.wav").read_bytes() == b"RIFF speech"
        nowhere = await run("Hello", "--out", "no/such/place.wav")
        assert nowhere.error is not None
        assert "no folder" in nowhere.error.message


async def test_a_question_that_is_no_utf_8_is_told_so(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with staged(tmp_path, monkeypatch, "chat") as run:
        refused = await run(given="caf\u00e9".encode("latin-1"))
    assert refused.error is not None
    assert "iconv" in refused.error.message


async def test_what_could_not_be_kept_is_not_begun(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A picture takes minutes: the file of the second of them is looked at before the first is made."""
    (folder / "made-2.png").write_bytes(b"mine")
    async with staged(tmp_path, monkeypatch, "image") as run:
        for arguments, told in (
            (("x", "--count", "2", "--out", "made.png"), "made-2.png exists"),
            (("x", "--out", str(folder), "--force"), "is a folder"),
            (("x", "--count", "1000000000000", "--out", "."), "is a folder"),
        ):
            refused = await run(*arguments)
            assert refused.error is not None
            assert told in refused.error.message
        monkeypatch.setattr(os, "access", lambda *_: False)
        for arguments in (("x",), ("x", "--out", "new.png")):
            refused = await run(*arguments)
            assert refused.error is not None
            assert refused.error.code == "READ_ONLY"
        assert refused.stage.asking.asked == []
    assert (folder / "made-2.png").read_bytes() == b"mine"


async def test_pictures_and_transcripts_go_where_they_are_told(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with staged(tmp_path, monkeypatch, "image") as run:
        told = await run("x", "--count", "2", "--out", "made.png", "--json")
        assert told.json["files"] == ["made-1.png", "made-2.png"]
        assert (folder / "made-2.png").read_bytes() == PNG + b"2"
        assert "images" not in told.json["result"]
    async with staged(tmp_path, monkeypatch, "transcribe") as run:
        await run("--input", "a.wav", "--out", "talk.srt")
        assert (folder / "talk.srt").read_text() == "1\n00:00:00,500 --> 00:00:01,500\nHi.\n"
    async with staged(tmp_path, monkeypatch, "embed") as run:
        await run("x", "--out", "v.json")
        assert json.loads((folder / "v.json").read_text()) == [[0.5, -0.25]]


@pytest.mark.parametrize(
    ("skills", "arguments", "told"),
    [
        (("read",), ("what is it?",), "read needs a picture: octonode run MODEL --input FILE"),
        (("transcribe",), ("--task", "transcribe", "words"), "needs a sound"),
        (("read",), ("--input", "a.png", "words"), "takes no prompt"),
        (("embed",), ("--input", "a.png"), "embed takes no --input"),
        (("chat",), ("hi", "--steps", "5"), "--steps means nothing to chat; it is for sound, image"),
        (("chat",), ("hi", "--out", "a.txt"), "--out is for pictures"),
        (("classify",), ("--input", "a.png", "--out", "a.json"), "--out means nothing to classify"),
        (("image",), ("x", "--size", "large"), "--size is WIDTHxHEIGHT"),
        (("image",), ("x", "--strength", "0.5"), "picture of --input"),
        (("classify", "detect"), ("--input", "a.png"), "--task classify | detect"),
        (("image",), ("x", "--input", "missing.png"), "missing.png does not exist"),
        (("chat",), ("hi", "--task", "paint"), "there is no task 'paint'"),
        (("chat",), (), "there is no question"),
        (("read",), (), "or a picture or sound by --input FILE"),
        (("chat",), ("hi", "--mode", "async"), "octonode task submit --mode async"),
    ],
)
async def test_errors_say_what_to_do(
    skills: tuple[str, ...], arguments: tuple[str, ...], told: str,
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    async with staged(tmp_path, monkeypatch, *skills) as run:
        ran = await run(*arguments)
    assert ran.error is not None
    assert told in ran.error.message
    assert ran.stage.asking.asked == []


async def test_a_model_whose_skills_nobody_told_is_asked_by_its_category(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with staged(tmp_path, monkeypatch, "embed") as run:
        ran = await run("x")
        ran.stage.models.held[:] = [a_model(category="embeddings")]
        await run("y")
        ran.stage.models.held[:] = [a_model()]
        ran.stage.asking.script = says("words")
        answer = await run("z", "--json")
    assert [each.work for each in ran.stage.asking.asked] == [EmbedRequest(("x",)), EmbedRequest(("y",)), None]
    assert answer.json["answer"] == "words"


async def test_a_file_that_is_too_large_is_not_read(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (folder / "large.wav").open("wb") as file:
        file.truncate(16 << 20)
    async with staged(tmp_path, monkeypatch, "transcribe") as run:
        ran = await run("--input", "large.wav")
    assert ran.error is not None
    assert ran.error.code == "TOO_LARGE"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_steps_are_shown_at_a_terminal_and_nowhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    for stderr, quiet, told in ((Terminal(), False, True), (Terminal(), True, False), (io.StringIO(), False, False)):
        monkeypatch.setattr(sys, "stderr", stderr)
        with steps("image with tiny", quiet=quiet) as tell:
            tell(ModelProgress("step", 3, 20))
        assert ("image with tiny: step" in stderr.getvalue()) is told
        assert ("3/20" in stderr.getvalue()) is told
