"""Pictures and sounds, good ones and such as cannot be, with the code and the way out of each refusal."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image, ImageDraw, ImageFont

WRITTEN = "OCTONODE 42"
RATE_HZ = 16_000


def sign() -> bytes:
    image = Image.new("RGB", (400, 80), "white")
    ImageDraw.Draw(image).text((20, 20), WRITTEN, fill="black", font=ImageFont.load_default(32))
    return png(image)


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def picture_of(width: int, height: int, rows: bytes, *before: bytes) -> bytes:
    """A PNG that declares so many pixels of one bit, whatever it holds."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(before) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def wav(samples_bytes: bytes, *, kind: int = 1, bits: int = 16, declared: int | None = None) -> bytes:
    size = len(samples_bytes) if declared is None else declared
    form = struct.pack("<HHIIHH", kind, 1, RATE_HZ, RATE_HZ * bits // 8, bits // 8, bits)
    head = b"fmt " + struct.pack("<I", len(form)) + form + b"data" + struct.pack("<I", size)
    return b"RIFF" + struct.pack("<I", min(size + 36, 2**32 - 1)) + b"WAVE" + head + samples_bytes


TONE = wav(np.round(9000 * np.sin(np.arange(RATE_HZ) / 8)).astype("<i2").tobytes())

BILLION = picture_of(40_000, 25_000, bytes(100))
TEXT_BOMB = picture_of(8, 8, bytes(16), chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(50 << 20))))
BAD_PICTURES = {
    "a billion pixels": (BILLION, "TOO_LARGE", "scale it down"),
    "text that unpacks to 50 MiB": (TEXT_BOMB, "BAD_REQUEST", "send it whole"),
    "cut off": (sign()[:200], "BAD_REQUEST", "send it whole"),
    "no picture": (b"%PDF-1.7 a page", "BAD_REQUEST", "convert it to PNG"),
}

NAN = np.full(RATE_HZ, np.nan, "<f4").tobytes()
BAD_SOUNDS = {
    "three hours by its header": (wav(bytes(32_000), declared=3 * 3600 * RATE_HZ * 2), "TOO_LARGE", "cut it into"),
    "no numbers": (wav(NAN, kind=3, bits=32), "BAD_REQUEST", "no numbers"),
    "cut off": (TONE[:1000], "BAD_REQUEST", "cut off"),
    "no sound": (b"MThd\0\0\0\6", "BAD_REQUEST", "ffmpeg"),
    "over 15 MiB": (wav(bytes(15 << 20)), "TOO_LARGE", "takes 1 to"),
}
