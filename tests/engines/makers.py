"""One case a maker for `test_maker_conformance`: how it is loaded, and what it is asked. Ring 2 adds its own."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from octonode.engines.contract import Engine, EngineEvent, Finished, LoadRequest, Made, Step
from octonode.protocol.work.audio import (
    Sound,
    SoundRequest,
    SpeakRequest,
    TranscribeRequest,
    VoiceActivityRequest,
)
from octonode.protocol.work.image import ImageRequest
from octonode.protocol.work.skills import WorkRequest, WorkResult
from octonode.protocol.work.text import Embeddings, EmbedRequest
from octonode.protocol.work.vision import ClassifyRequest, DetectRequest, ReadRequest
from tests.engines_heavy.working import spoken

ROOT = "bafy-test-root"
Folder = Callable[[str], Path]
Alike = Callable[[Any, Any], bool]


def unheard(done: int, total: int) -> None:
    """For those to whom progress does not matter."""


def equal(left: WorkResult, right: WorkResult) -> bool:
    return left == right


@dataclass(frozen=True)
class MakerCase:
    """What the suite does with one maker."""

    name: str
    load: Callable[[Folder], LoadRequest]
    requests: Callable[[Folder], Sequence[WorkRequest]]
    """At least three, all good and all different."""
    long: Callable[[Folder], WorkRequest]
    """Takes seconds, so that it can be left in the middle."""
    bad: WorkRequest | None = None
    """Within the bounds of its record, and still nothing that the maker can use; None: it takes all there is."""
    code: str = "BAD_REQUEST"
    """What it gets."""
    alike: Alike = equal
    """Whether two results of one request are as near as the engine promises."""
    alone_alike: Alike = equal
    """The same for a request that ran alone, and with others."""


@dataclass
class Work:
    """What one request gave."""

    result: Any = None
    steps: list[Step] = field(default_factory=list)
    events: list[EngineEvent] = field(default_factory=list)


async def made(engine: Engine, request: WorkRequest) -> Work:
    """Runs a request to its end; raises what the engine does."""
    work = Work()
    async with engine.make(request) as events:
        async for event in events:
            work.events.append(event)
            if isinstance(event, Step):
                work.steps.append(event)
            elif isinstance(event, Made):
                work.result = event.result
    assert isinstance(work.events[-1], Finished)
    return work


# -- Pictures, sounds -------------------------------------------------------------------------------------------------


def png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG", compress_level=1)
    return file.getvalue()


def plain(colour: str, width: int = 64, height: int = 48) -> Image.Image:
    return Image.new("RGB", (width, height), colour)


def written(*lines: str, width: int = 480, line_pixels: int = 60) -> Image.Image:
    """Black text on white, one line under the other, each in a row of `line_pixels`."""
    picture = Image.new("RGB", (width, line_pixels * len(lines)), "white")
    font = ImageFont.load_default(32)
    for number, line in enumerate(lines):
        ImageDraw.Draw(picture).text((20, number * line_pixels + 10), line, fill="black", font=font)
    return picture


def squares(*boxes: tuple[str, int, int, int, int], size: tuple[int, int] = (320, 320)) -> Image.Image:
    """(colour, left, top, right, bottom) each, on black; right and bottom are outside."""
    picture = Image.new("RGB", size, "black")
    for colour, left, top, right, bottom in boxes:
        ImageDraw.Draw(picture).rectangle((left, top, right - 1, bottom - 1), fill=colour)
    return picture


def wav_of(
    samples: bytes, rate_hz: int, *, bits: int = 16, channels: int = 1, kind: int = 1, declared: int = 0
) -> bytes:
    """A WAV file around raw samples; `declared`: bytes that it says there are, where these are others."""
    frame = channels * bits // 8
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, kind, channels, rate_hz, rate_hz * frame, frame, bits)
    data = struct.pack("<4sI", b"data", declared or len(samples)) + samples
    return struct.pack("<4sI4s", b"RIFF", 4 + len(form) + len(data), b"WAVE") + form + data


def tone(seconds: float, rate_hz: int = 16_000, hertz: float = 440.0) -> bytes:
    times = np.arange(int(seconds * rate_hz)) / rate_hz
    return wav_of((np.sin(2 * np.pi * hertz * times) * 12_000).astype("<i2").tobytes(), rate_hz)


@cache
def speech(voice: Path) -> bytes:
    """A real voice, the same each time: The quick brown fox jumps over the lazy dog."""
    return spoken(voice)


# -- What is promised -------------------------------------------------------------------------------------------------


def cosines(left: Embeddings, right: Embeddings) -> np.ndarray[Any, Any]:
    """Of the vectors in the same place."""
    a, b = (np.frombuffer(each.vectors, "<f4").reshape(-1, each.dimensions) for each in (left, right))
    return np.asarray((a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1))


def near(least: float) -> Alike:
    def compare(left: Embeddings, right: Embeddings) -> bool:
        counts = (left.tokens_in, left.texts_cut) == (right.tokens_in, right.texts_cut)
        return counts and bool((cosines(left, right) >= least).all())

    return compare


def scores_near(left: Any, right: Any) -> bool:
    """Labels or lines in the same order; batches are summed otherwise, so that scores differ in their last digits."""
    a, b = (getattr(each, "labels", None) or getattr(each, "objects", None) or each.lines for each in (left, right))
    names = [
        [getattr(each, "name", None) or getattr(each, "label", None) or each.text for each in side] for side in (a, b)
    ]
    return names[0] == names[1] and all(abs(x.score - y.score) < 1e-3 for x, y in zip(a, b, strict=True))


def sounds_alike(left: Sound, right: Sound) -> bool:
    """A voice varies: it takes about as long."""
    return left.sample_rate_hz == right.sample_rate_hz and 0.7 < left.seconds / right.seconds < 1.4


# -- The cases --------------------------------------------------------------------------------------------------------


def load(engine: str, folder: str, category: str, **options: str | float | bool) -> Callable[[Folder], LoadRequest]:
    """Batch sizes are not measured, which takes a second, but where a test is about them."""
    settings: dict[str, str | int | float | bool] = {"measure_seconds": 0, **options}
    return lambda find: LoadRequest(engine, find(folder) if folder else None, ROOT, 512, 2, 1, settings, category)


def scripted(category: str, requests: Sequence[WorkRequest]) -> MakerCase:
    return MakerCase(
        f"scripted-{category}",
        load("scripted", "", category, seconds_per_request=0.05),
        lambda _: requests,
        lambda _: requests[0],
    )


NOTHING = b"this is neither a picture nor a sound"
TEXTS = (
    "The tide comes in.",
    "A cat sleeps on the warm roof of the harbour office.",
    "Zwölf Boote 🦉",
    "one two " * 60,
)
_PICTURES = tuple(png(plain(colour)) for colour in ("red", "green", "blue"))

SCRIPTED = (
    scripted("embeddings", [EmbedRequest((text,)) for text in TEXTS]),
    scripted("vision", [each(_PICTURES[0]) for each in (ClassifyRequest, DetectRequest, ReadRequest)]),
    scripted("audio", [SpeakRequest("hello"), SoundRequest("rain", seed=1), TranscribeRequest(tone(0.1))]),
    scripted("diffusion", [ImageRequest("a boat", seed=seed) for seed in (1, 2, 3)]),
)
_SQUARES = (("red", 40), ("blue", 160), ("lime", 90))
_LINES = (("Octonode",), ("Twelve boats", "at noon"), ("1234",))
_PAGE = tuple(f"This is line {number} of a long page" for number in range(24))
REAL = (
    *(
        MakerCase(
            name,
            load("onnx-embeddings", name, "embeddings"),
            lambda _: [*(EmbedRequest((text,)) for text in TEXTS), EmbedRequest(TEXTS)],
            lambda _: EmbedRequest(("a long text of many words " * 60,) * 400),
            EmbedRequest(("many words " * 2000,), truncate=False),
            "CONTEXT_EXCEEDED",
            near(0.99999),
            near(alone),
        )
        # INT8 scales its activations by what a batch holds, so that others in it show
        for name, alone in (("minilm", 0.99999), ("minilm-int8", 0.98))
    ),
    MakerCase(
        "colours",
        load("onnx-vision", "colours-synthetic", "vision"),
        lambda _: [ClassifyRequest(each) for each in _PICTURES],
        lambda _: ClassifyRequest(png(plain("red", 7000, 7000))),
        ClassifyRequest(NOTHING),
        alone_alike=scores_near,
    ),
    MakerCase(
        "squares",
        load("onnx-vision", "squares-synthetic", "vision"),
        lambda _: [DetectRequest(png(squares((colour, 40, 40, 40 + side, 80)))) for colour, side in _SQUARES],
        lambda _: DetectRequest(png(squares(("red", 0, 0, 6000, 6000), size=(7000, 7000)))),
        DetectRequest(NOTHING),
        alone_alike=scores_near,
    ),
    MakerCase(
        "ocr",
        load("rapidocr", "ocr", "vision"),
        lambda _: [ReadRequest(png(written(*lines))) for lines in _LINES],
        lambda _: ReadRequest(png(written(*_PAGE, width=1200))),
        ReadRequest(NOTHING),
    ),
    MakerCase(
        "silero-vad",
        load("silero-vad", "silero-vad", "audio"),
        lambda find: [
            VoiceActivityRequest(speech(find("piper-joe"))),
            VoiceActivityRequest(tone(1.0)),
            VoiceActivityRequest(speech(find("piper-joe")), threshold=0.9),
        ],
        lambda _: VoiceActivityRequest(wav_of(bytes(8000 * 1500), 8000, bits=8)),
        VoiceActivityRequest(NOTHING),
    ),
    MakerCase(
        "piper",
        load("piper", "piper-joe", "audio"),
        lambda _: [SpeakRequest(text) for text in ("Hello.", "Twelve boats come home.", "It is 3 o'clock.")],
        lambda _: SpeakRequest("The harbour lies still in the evening, and the boats come home with the tide. " * 50),
        SpeakRequest("Привет"),
        alike=sounds_alike,
        alone_alike=sounds_alike,
    ),
)
