"""Makers of ring 2 as cases of `tests/engines/test_maker_conformance.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from octonode.protocol.work.audio import SoundRequest, TranscribeRequest
from octonode.protocol.work.image import ImageRequest
from octonode.protocol.work.skills import WorkRequest
from octonode.protocol.work.text import EmbedRequest
from tests.engines.makers import NOTHING, TEXTS, Folder, MakerCase, load, near, speech
from tests.engines_heavy.working import RATE_HZ, frames_of, wav


def _sentences(find: Folder) -> list[WorkRequest]:
    sound = _sound(find("piper-joe"))
    return [
        TranscribeRequest(sound),
        TranscribeRequest(sound, words=True),
        TranscribeRequest(sound, language="en", prompt="A fox."),
    ]


def _sound(voice: Path) -> bytes:
    return speech(voice)


def _two_minutes(find: Folder) -> TranscribeRequest:
    frames = frames_of(_sound(find("piper-joe"))) + bytes(2 * 9 * RATE_HZ)
    return TranscribeRequest(wav(frames * 10, RATE_HZ))


_SEEDED: Final = ((1, "a boat"), (1, "a cat"), (2, "a boat"))
CASES: Final = (
    MakerCase(
        "sentence-transformers",
        load("sentence-transformers", "minilm-safetensors", "embeddings"),
        lambda _: [*(EmbedRequest((text,)) for text in TEXTS), EmbedRequest(TEXTS)],
        lambda _: EmbedRequest(("a long text of many words " * 60,) * 400),
        EmbedRequest(("many words " * 2000,), truncate=False),
        "CONTEXT_EXCEEDED",
        near(0.99999),
        near(0.99999),
    ),
    MakerCase(
        "diffusers",
        load("diffusers", "tiny-sd", "diffusion"),
        lambda _: [ImageRequest(prompt, seed=seed, steps=2) for seed, prompt in _SEEDED],
        lambda _: ImageRequest("a boat", steps=500),
        ImageRequest("a boat", image=NOTHING),
    ),
    MakerCase(
        "audioldm",
        load("audioldm", "tiny-audioldm", "audio"),
        lambda _: [SoundRequest(prompt, seconds=0.4, steps=2, seed=seed) for seed, prompt in _SEEDED],
        lambda _: SoundRequest("rain", seconds=0.4, steps=500),
        SoundRequest("rain", seconds=60, steps=500),
        "TOO_LARGE",
    ),
    *(
        MakerCase(engine, load(engine, folder, "audio"), _sentences, _two_minutes, TranscribeRequest(NOTHING))
        for engine, folder in (("faster-whisper", "whisper-tiny-en"), ("transformers-whisper", "whisper-tiny-en-hf"))
    ),
)  # fmt: skip
