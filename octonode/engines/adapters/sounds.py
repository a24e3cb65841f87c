"""WAV files in and out, under limits: one channel of float32 between -1 and 1, at the rate that a model wants. Blocks.

Source of the format: Microsoft's RIFF/WAVE, https://www.mmsp.ece.mcgill.ca/Documents/AudioFormats/WAVE/WAVE.html
(the standard library reads neither floats nor, before Python 3.12, WAVE_FORMAT_EXTENSIBLE).
"""

from __future__ import annotations

import io
import math
import struct
import wave
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from octonode.errors import OctonodeError
from octonode.protocol.work.audio import AUDIO_BYTES_MAX, AUDIO_SECONDS_MAX

Samples = npt.NDArray[np.float32]

CHANNELS_MAX: Final = 16
RATE_HZ_LEAST, RATE_HZ_MOST = 1000, 384_000
CHUNKS_MAX: Final = 256
"""Of one RIFF file, before its samples."""
_PCM, _FLOAT, _EXTENSIBLE = 1, 3, 0xFFFE
_STREAMED_FROM: Final = 0x7FFF_0000
"""Lengths from here on (and 0) were written before the end was known: the samples go on to the end of the file."""
_ZEROS: Final = 16
"""Zero crossings of the sinc on each side: the pass band is flat to about 90 % of the lower rate's half."""
_BLOCK: Final = 1 << 14
"""Values of one phase that are resampled together; bounds the memory of a step."""


def is_wav(data: bytes) -> bool:
    return data[:4] == b"RIFF" and data[8:12] == b"WAVE"


def read_wav(data: bytes, rate_hz: int) -> Samples:
    """The samples of a WAV file, its channels mixed to one, resampled to `rate_hz`.

    Raises OctonodeError: TOO_LARGE for what declares more than AUDIO_SECONDS_MAX, before any of it is decoded;
    BAD_REQUEST for what is no WAV file of whole numbers (8, 16, 24, 32 bits) or floats (32, 64 bits), or is cut off.
    """
    form, body = _parse(data)
    values = _decoded(form, body)
    if form.channels > 1:
        values = values.reshape(-1, form.channels).mean(axis=1, dtype=np.float32)
    if not np.isfinite(values).all():
        raise OctonodeError("the sound holds values that are no numbers", code="BAD_REQUEST")
    return resample(values, form.rate_hz, rate_hz)


def write_wav(samples: Samples, rate_hz: int) -> bytes:
    """PCM of 16 bits, one channel; what is louder than 1 is clipped. Raises OctonodeError TOO_LARGE."""
    if 44 + 2 * len(samples) > AUDIO_BYTES_MAX:
        seconds = len(samples) / rate_hz
        raise OctonodeError(
            f"the sound of {seconds:.0f} s is more than {AUDIO_BYTES_MAX >> 20} MiB; ask for less at a time",
            code="TOO_LARGE",
        )
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(2)
        writer.setframerate(rate_hz)
        writer.writeframes((np.clip(samples, -1, 1) * 32767).round().astype("<i2").tobytes())
    return file.getvalue()


def check_seconds(seconds: float) -> None:
    """Raises OctonodeError TOO_LARGE; for whoever learns the length of a sound from another decoder."""
    if not seconds <= AUDIO_SECONDS_MAX:
        raise OctonodeError(
            f"the sound is {seconds / 60:.0f} minutes long; at most {AUDIO_SECONDS_MAX / 60:.0f} are taken: "
            "cut it into parts",
            code="TOO_LARGE",
        )


def resample(samples: Samples, from_hz: int, to_hz: int) -> Samples:
    """Band-limited interpolation by a windowed sinc, one filter for each phase that the two rates have.

    Source: J. O. Smith, Digital Audio Resampling, https://ccrma.stanford.edu/~jos/resample/
    """
    if from_hz == to_hz or not len(samples):
        return samples
    common = math.gcd(from_hz, to_hz)
    up, down = to_hz // common, from_hz // common
    cutoff = min(1.0, up / down)
    half = math.ceil(_ZEROS / cutoff)
    count = max(1, len(samples) * up // down)
    padded = np.pad(samples, (half, half + down))
    windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * half)
    result = np.zeros(count, np.float32)
    for phase in range(min(up, count)):
        start, offset = divmod(phase * down, up)
        taps = _taps(offset / up, half, cutoff)
        outputs = result[phase::up]
        for first in range(0, len(outputs), _BLOCK):
            last = min(first + _BLOCK, len(outputs))
            at = start + 1 + first * down  # the window's first sample is `half - 1` before the position
            outputs[first:last] = windows[at : at + (last - first - 1) * down + 1 : down] @ taps
    return result


def _taps(fraction: float, half: int, cutoff: float) -> Samples:
    """Weights of the `2 * half` samples around a position that lies `fraction` behind one of them."""
    distance = np.arange(1 - half, half + 1) - fraction
    window = np.cos(np.pi * np.clip(distance / half, -1, 1) / 2) ** 2
    taps = cutoff * np.sinc(cutoff * distance) * window
    return np.asarray(taps / taps.sum(), np.float32)


@dataclass(frozen=True, slots=True)
class _Format:
    kind: int
    channels: int
    rate_hz: int
    bits: int


def _parse(data: bytes) -> tuple[_Format, memoryview]:
    """(what the samples are, their bytes: whole frames)."""
    if not is_wav(data):
        raise _refused("it is no WAV file; convert it, for example: ffmpeg -i INPUT -ac 1 -ar 16000 OUTPUT.wav")
    form: _Format | None = None
    for name, start, size in _chunks(data):
        if name == b"fmt ":
            form = _format(data[start : start + min(size, 40)])
        elif name == b"data":
            if form is None:
                raise _refused("its samples come before their format")
            return form, _frames(form, data, start, size)
    raise _refused("it has no samples")


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """(name, where its content starts, its declared size) of each chunk."""
    at = 12
    for _ in range(CHUNKS_MAX):
        if at + 8 > len(data):
            return
        (size,) = struct.unpack_from("<I", data, at + 4)
        yield data[at : at + 4], at + 8, size
        at += 8 + size + size % 2


def _format(chunk: bytes) -> _Format:
    if len(chunk) < 16:
        raise _refused("its format is cut off")
    kind, channels, rate_hz, _, _, bits = struct.unpack_from("<HHIIHH", chunk)
    if kind == _EXTENSIBLE and len(chunk) >= 26:
        (kind,) = struct.unpack_from("<H", chunk, 24)  # the first two bytes of the sub-format's GUID
    if bits not in {_PCM: (8, 16, 24, 32), _FLOAT: (32, 64)}.get(kind, ()):
        raise _refused(f"its samples are of kind {kind} with {bits} bits; save it as PCM of 16 bits")
    if not 1 <= channels <= CHANNELS_MAX or not RATE_HZ_LEAST <= rate_hz <= RATE_HZ_MOST:
        raise _refused(
            f"{channels} channels at {rate_hz} Hz; 1 to {CHANNELS_MAX} at {RATE_HZ_LEAST} to {RATE_HZ_MOST} Hz are read"
        )
    return _Format(kind, channels, rate_hz, bits)


def _frames(form: _Format, data: bytes, start: int, size: int) -> memoryview:
    frame_bytes = form.channels * form.bits // 8
    there = len(data) - start
    if size == 0 or size >= _STREAMED_FROM:
        size = there
    check_seconds(size / frame_bytes / form.rate_hz)
    if size > there:
        raise _refused(f"it is cut off: {there} of {size} bytes of samples are there")
    return memoryview(data)[start : start + size - size % frame_bytes]


def _decoded(form: _Format, body: memoryview) -> Samples:
    if form.kind == _FLOAT:
        return np.frombuffer(body, f"<f{form.bits // 8}").astype(np.float32)
    if form.bits == 8:
        return np.asarray((np.frombuffer(body, np.uint8).astype(np.float32) - 128) / 128, np.float32)
    if form.bits == 24:
        # three bytes become the upper three of four, so that the sign is in its place
        whole = np.zeros((len(body) // 3, 4), np.uint8)
        whole[:, 1:] = np.frombuffer(body, np.uint8).reshape(-1, 3)
        return np.asarray(whole.view("<i4")[:, 0] / 2.0**31, np.float32)
    whole_numbers = np.frombuffer(body, f"<i{form.bits // 8}")
    return np.asarray(whole_numbers / 2.0 ** (form.bits - 1), np.float32)


def _refused(why: str) -> OctonodeError:
    return OctonodeError(f"the sound cannot be read: {why}", code="BAD_REQUEST")
