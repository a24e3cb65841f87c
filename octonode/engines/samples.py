"""A small request of the usual kind for every skill: by these a loaded model is measured, on any node alike. Pure."""

from __future__ import annotations

import struct
import zlib
from typing import Final

from octonode.engines.contract import GenerateRequest
from octonode.protocol.work import audio, image, text, vision
from octonode.protocol.work.skills import WorkRequest

SENTENCE: Final = "The harbour wakes before the town does, and the first boats leave while the lamps still burn. "
SIDE_PIXELS: Final = 224
SAMPLE_RATE_HZ: Final = 16_000


def prompt(words: int, number: int = 0) -> GenerateRequest:
    """A question of about `words` words that no prompt cache has seen: `number` is its first word."""
    body = (SENTENCE * (words // len(SENTENCE.split()) + 1)).split()[:words]
    content = " ".join([str(number), *body])
    return GenerateRequest(({"role": "user", "content": content},), max_tokens=1, temperature=0.0)


def request_for(skill: str) -> WorkRequest | None:
    """None for a skill that nothing is known of here."""
    return _SAMPLES.get(skill)


def picture(side_pixels: int = SIDE_PIXELS) -> bytes:
    """A PNG with a gradient. Source of the format: https://www.w3.org/TR/png-3/"""
    rows = b"".join(
        b"\0" + bytes(value for column in range(side_pixels) for value in (row & 255, column & 255, 128))
        for row in range(side_pixels)
    )
    head = struct.pack(">IIBBBBB", side_pixels, side_pixels, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


def sound(seconds: float = 2.0) -> bytes:
    """A WAV of a quiet square wave: 16 kHz, 16 bits, one channel."""
    count = int(SAMPLE_RATE_HZ * seconds)
    wave = struct.pack("<80h", *[400] * 40, *[-400] * 40)
    samples = (wave * (count // 80 + 1))[: 2 * count]
    form = struct.pack("<HHIIHH", 1, 1, SAMPLE_RATE_HZ, 2 * SAMPLE_RATE_HZ, 2, 16)
    parts = b"WAVEfmt " + struct.pack("<I", len(form)) + form + b"data" + struct.pack("<I", len(samples)) + samples
    return b"RIFF" + struct.pack("<I", len(parts)) + parts


_SAMPLES: Final[dict[str, WorkRequest]] = {
    "embed": text.EmbedRequest((SENTENCE,)),
    "classify": vision.ClassifyRequest(picture()),
    "detect": vision.DetectRequest(picture()),
    "read": vision.ReadRequest(picture()),
    "transcribe": audio.TranscribeRequest(sound(), language="en"),
    "voice_activity": audio.VoiceActivityRequest(sound()),
    "speak": audio.SpeakRequest("Good morning."),
    "sound": audio.SoundRequest("rain", seconds=1.0, steps=2, seed=0),
    "image": image.ImageRequest("a lighthouse", steps=2, seed=0),
}
