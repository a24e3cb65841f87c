"""Heavy engines between real daemons: a picture, a sound and a transcript asked of C and made by A."""

from __future__ import annotations

import base64
import io
import wave
from collections.abc import Callable, Iterator
from pathlib import Path

import openai
import pytest
from PIL import Image

from octonode.api.schema import AddModel, ServeModel
from octonode.client import Client
from octonode.testing.daemon import Daemon
from tests.engines_heavy.working import WORDS, spoken
from tests.process.fleet import Fleet, known, octonode, proven, running_fleet, works

pytestmark = [pytest.mark.process, pytest.mark.model, pytest.mark.slow]

MODELS = ("tiny-sd", "whisper-tiny-en")


@pytest.fixture(scope="module")
def fleet(lasting_children: set[int]) -> Iterator[Fleet]:
    with running_fleet(lasting_children) as fleet:
        yield fleet


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("homes")


@pytest.fixture(scope="module")
def a(fleet: Fleet, place: Path, built_model: Callable[[str], Path]) -> Daemon:
    node = fleet.start(place / "a")
    with Client.from_home(node.home) as client:
        for name in MODELS:
            client.add_model(AddModel(path=str(built_model(name)), name=name, publish=True))
            client.serve_model(ServeModel(reference=f"{node.peer_id}/{name}"))
    return node


@pytest.fixture(scope="module")
def c(fleet: Fleet, place: Path, a: Daemon) -> Daemon:
    """Has joined A and has heard of what it serves."""
    node = fleet.start(place / "c", "--bootstrap", a.ready.join)
    fleet.met(node, a)
    with Client.from_home(node.home) as client:
        fleet.until(lambda: all(known(client, f"{a.peer_id}/{name}") for name in MODELS))
    return node


@pytest.fixture(scope="module")
def speech(built_model: Callable[[str], Path]) -> bytes:
    return spoken(built_model("piper-joe"))


def test_a_picture(a: Daemon, c: Daemon, place: Path) -> None:
    """By OpenAI's client, by ours with its steps, and by the command line: the same seed, the same picture."""
    model, prompt = f"{a.peer_id}/tiny-sd", "a lighthouse at night"
    with openai.OpenAI(base_url=f"{c.api}/v1", api_key="none", max_retries=0, timeout=300) as client:
        answer = client.images.generate(
            model=model, prompt=prompt, size="64x64", extra_body={"octonode": {"seed": 7, "steps": 4}}
        )
    assert answer.data is not None
    first = base64.b64decode(answer.data[0].b64_json or "")
    proven(answer.model_extra["octonode"], a, c)  # type: ignore[index]
    with Image.open(io.BytesIO(first)) as picture:
        assert (picture.format, picture.size) == ("PNG", (64, 64))
    done: list[tuple[str, int, int]] = []
    with Client.from_home(c.home) as ours:
        made = ours.image(
            model, prompt, seed=7, steps=4, width_pixels=64, height_pixels=64,
            on_progress=lambda progress: done.append((progress.stage, progress.done, progress.total)),
        )  # fmt: skip
    assert made.result.images == (first,)
    assert all(total in (0, 4) for stage, _, total in done if stage == "step")
    out = place / "lighthouse.png"
    options = ("--seed", "7", "--steps", "4", "--size", "64x64", "--out", str(out))
    told = works(c.home, "run", model, prompt, *options)
    assert out.read_bytes() == first
    assert (told["files"], told["result"]["seed"]) == ([str(out)], 7)


def test_a_picture_from_a_picture(a: Daemon, c: Daemon, place: Path) -> None:
    given = place / "given.png"
    Image.new("RGB", (64, 64), "red").save(given)
    with openai.OpenAI(base_url=f"{c.api}/v1", api_key="none", max_retries=0, timeout=300) as client:
        answer = client.images.edit(
            model=f"{a.peer_id}/tiny-sd", image=given, prompt="a sunset",
            extra_body={"octonode": {"seed": 3, "steps": 4, "strength": 0.5}},
        )  # fmt: skip
    assert answer.data is not None
    with Image.open(io.BytesIO(base64.b64decode(answer.data[0].b64_json or ""))) as picture:
        assert picture.size == (64, 64)
    proven(answer.model_extra["octonode"], a, c)  # type: ignore[index]


def heard(text: str) -> set[str]:
    return {word.strip(".,!?").lower() for word in text.split()} & set(WORDS)


def test_a_transcript_has_times(a: Daemon, c: Daemon, place: Path, speech: bytes) -> None:
    model, sound = f"{a.peer_id}/whisper-tiny-en", place / "fox.wav"
    sound.write_bytes(speech)
    with wave.open(io.BytesIO(speech)) as file:
        seconds = file.getnframes() / file.getframerate()
    with openai.OpenAI(base_url=f"{c.api}/v1", api_key="none", max_retries=0, timeout=300) as client:
        answer = client.audio.transcriptions.create(
            model=model, file=sound, response_format="verbose_json", timestamp_granularities=["segment", "word"]
        )
    assert heard(answer.text) == set(WORDS)
    assert answer.segments
    assert answer.words
    assert 0 <= answer.segments[0].start < answer.segments[-1].end <= seconds + 1
    assert [each.start for each in answer.words] == sorted(each.start for each in answer.words)
    proven(answer.model_extra["octonode"], a, c)  # type: ignore[index]
    shown = octonode(c.home, "run", model, "--input", str(sound)).out
    assert shown.startswith("[00:00:0")
    assert heard(shown) == set(WORDS)
    told = works(c.home, "run", model, "--input", str(sound), "--out", str(place / "fox.srt"))
    proven(told["octonode"], a, c)
    assert (place / "fox.srt").read_text().startswith("1\n00:00:0")
