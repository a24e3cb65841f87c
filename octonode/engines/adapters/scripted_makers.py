"""The scripted engine's other skills: results by rule, without a model, for test networks and the network's benchmarks.

A result is a function of the model root, the request and its seed alone, so any two nodes give the same. It passes the
makers' conformance suite. Options: `seconds_per_request` (of a batch, however many), `steps`, `crash_at_request` N with
`crash_signal`, `hang_at_request` N; `fail` refuses every request with this code.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import signal
import struct
import sys
import zlib
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any

import trio

from octonode.engines.adapters.base import Outcome, Progress
from octonode.engines.contract import EngineFacts, LoadRequest
from octonode.errors import OctonodeError
from octonode.protocol.work import audio, image, text, vision
from octonode.protocol.work.records import write
from octonode.protocol.work.skills import SKILLS, WorkRequest, WorkResult, skill_of

DIMENSIONS = 32
SAMPLE_RATE_HZ = 8000
STEPS = 4
_SIDE_PIXELS = 64


class ScriptedMaker:
    """See the module."""

    async def load(self, request: LoadRequest, temporary_directory: Path) -> EngineFacts:
        self._request = request
        self._begun = 0
        return EngineFacts(
            engine="scripted",
            build="1",
            backend="cpu",
            instruction_set=platform.machine(),
            context_tokens=request.context_tokens,
            parallel=request.parallel,
            quantization="none",
            category=request.category,
            skills=tuple(name for name, skill in SKILLS.items() if skill.category == request.category),
        )

    def close(self) -> None:
        pass

    def sample(self) -> WorkRequest | None:
        return None

    def key(self, request: WorkRequest) -> Hashable:
        return skill_of(request).name

    async def make(self, requests: Sequence[WorkRequest], progress: Progress) -> Sequence[Outcome]:
        options = self._request.options
        steps = int(options.get("steps", STEPS))
        pace = float(options.get("seconds_per_request", 0))
        for _ in requests:
            await self._fault()
            self._begun += 1
        progress(0, steps)
        for step in range(steps):
            await trio.sleep(pace / steps if pace else 0)
            progress(step + 1, steps)
        return [self._one(request) for request in requests]

    async def _fault(self) -> None:
        options = self._request.options
        if options.get("crash_at_request") == self._begun and "crash_at_request" in options:
            print("scripted engine: crashing, as it was told to", file=sys.stderr, flush=True)
            os.kill(os.getpid(), signal.Signals[str(options.get("crash_signal", "SIGKILL"))])
        if options.get("hang_at_request") == self._begun and "hang_at_request" in options:
            await trio.sleep_forever()

    def _one(self, request: WorkRequest) -> Outcome:
        code = self._request.options.get("fail")
        if code:
            return OctonodeError("the scripted engine refuses, as it was told to", code=str(code))
        digest = hashlib.sha256(self._request.model_root.encode() + _bytes_of(request)).digest()
        return _MAKERS[skill_of(request).name](request, digest)


def _bytes_of(request: WorkRequest) -> bytes:
    plain = {name: value.hex() if isinstance(value, bytes) else value for name, value in write(request).items()}
    return json.dumps(plain, sort_keys=True).encode()


def _embed(request: Any, digest: bytes) -> WorkResult:
    """Bags of hashed words: texts that share words are near each other."""
    vectors = b"".join(_vector(each) for each in request.texts)
    return text.Embeddings(vectors, DIMENSIONS, tokens_in=sum(len(each.split()) for each in request.texts))


def _vector(words: str) -> bytes:
    values = [0.0] * DIMENSIONS
    for word in words.split() or [""]:
        values[hashlib.sha256(word.lower().encode()).digest()[0] % DIMENSIONS] += 1.0
    length = sum(value * value for value in values) ** 0.5
    return struct.pack(f"<{DIMENSIONS}f", *(value / length for value in values))


def _classify(request: Any, digest: bytes) -> WorkResult:
    count = min(request.top, 4)
    scores = sorted((1 + digest[index] for index in range(4)), reverse=True)
    return vision.Classification(
        tuple(vision.Label(f"label-{index}", scores[index] / sum(scores)) for index in range(count))
    )


def _detect(request: Any, digest: bytes) -> WorkResult:
    left, top = digest[0] % 32, digest[1] % 32
    found = vision.DetectedObject("object", max(0.5, request.score_least), vision.Box(left, top, left + 16, top + 16))
    return vision.Detection((found,), _SIDE_PIXELS, _SIDE_PIXELS)


def _read(request: Any, digest: bytes) -> WorkResult:
    line = vision.TextLine(digest[:4].hex(), 1.0, vision.Box(0, 0, _SIDE_PIXELS, 16))
    return vision.ReadText((line,), _SIDE_PIXELS, _SIDE_PIXELS)


def _transcribe(request: Any, digest: bytes) -> WorkResult:
    words = f"{digest[:2].hex()} {digest[2:4].hex()}"
    segment = audio.Segment(words, 0.0, 1.0)
    return audio.Transcription(words, request.language or "en", 1.0, (segment,))


def _voice_activity(request: Any, digest: bytes) -> WorkResult:
    return audio.VoiceActivity((audio.Span(0.25, 0.75),), 1.0)


def _sound(request: Any, digest: bytes) -> WorkResult:
    """A quarter of a second of a square wave whose pitch is the digest's."""
    half = 8 + digest[0] % 32
    samples = b"".join(struct.pack("<h", 4000 if index // half % 2 else -4000) for index in range(SAMPLE_RATE_HZ // 4))
    head = struct.pack("<4sI4s4sIHHIIHH", b"RIFF", 36 + len(samples), b"WAVE", b"fmt ", 16, 1, 1, SAMPLE_RATE_HZ,
                       2 * SAMPLE_RATE_HZ, 2, 16)  # fmt: skip
    data = struct.pack("<4sI", b"data", len(samples))
    return audio.Sound(head + data + samples, SAMPLE_RATE_HZ, 0.25, seed=getattr(request, "seed", None))


def _image(request: Any, digest: bytes) -> WorkResult:
    width, height = request.width_pixels or _SIDE_PIXELS, request.height_pixels or _SIDE_PIXELS
    seed = 0 if request.seed is None else request.seed
    pictures = tuple(_png(width, height, digest[index : index + 3]) for index in range(request.count))
    return image.Images(pictures, width, height, request.steps or STEPS, seed)


def _png(width: int, height: int, colour: bytes) -> bytes:
    """One colour. Source of the format: https://www.w3.org/TR/png-3/"""
    rows = (b"\0" + colour * width) * height
    parts = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    )
    chunks = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    )
    return b"\x89PNG\r\n\x1a\n" + chunks


_MAKERS: dict[str, Callable[[Any, bytes], WorkResult]] = {
    "embed": _embed,
    "classify": _classify,
    "detect": _detect,
    "read": _read,
    "transcribe": _transcribe,
    "voice_activity": _voice_activity,
    "speak": _sound,
    "sound": _sound,
    "image": _image,
}
