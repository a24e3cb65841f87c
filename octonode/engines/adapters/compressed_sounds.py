"""Sound files in other forms than WAV, decoded by PyAV (FFmpeg's libraries) under limits. Blocks.

Which container it is we tell ourselves: FFmpeg's own guess would take play lists and files that name other files.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any, Final

import numpy as np

from octonode.engines.adapters.sounds import Samples, check_seconds, is_wav, read_wav
from octonode.errors import OctonodeError

_CONTAINERS: Final = (
    (0, b"OggS", "ogg"),
    (0, b"fLaC", "flac"),
    (0, b"ID3", "mp3"),
    (0, b"\x1aE\xdf\xa3", "matroska"),
    (4, b"ftyp", "mov"),
    (0, b"\xff\xf1", "aac"),
    (0, b"\xff\xf9", "aac"),
    (0, b"\xff\xfb", "mp3"),
    (0, b"\xff\xfa", "mp3"),
    (0, b"\xff\xf3", "mp3"),
    (0, b"\xff\xf2", "mp3"),
)
"""(where, what stands there, FFmpeg's name of the demuxer)."""
KINDS: Final = "WAV, MP3, FLAC, Ogg (Opus, Vorbis), MP4 (AAC), WebM or AAC"
DAMAGED_FRAMES_MAX: Final = 100


def read_sound(data: bytes, rate_hz: int, check: Callable[[], None]) -> Samples:
    """One channel of float32 at `rate_hz`. `check` is called now and then and may raise to end it.

    Raises OctonodeError: TOO_LARGE for more than AUDIO_SECONDS_MAX, by the header before anything is decoded, or
    while decoding where the header does not say; BAD_REQUEST for what is no sound of KINDS.
    """
    if is_wav(data):
        return read_wav(data, rate_hz)
    demuxer = next((name for at, mark, name in _CONTAINERS if data[at : at + len(mark)] == mark), None)
    if demuxer is None:
        raise OctonodeError(f"the sound is none of {KINDS}; convert it to one of them", code="BAD_REQUEST")
    import av

    try:
        with av.open(io.BytesIO(data), mode="r", format=demuxer, metadata_errors="ignore") as container:
            if not container.streams.audio:
                raise OctonodeError("the file has no sound in it", code="BAD_REQUEST")
            if container.duration is not None:
                check_seconds(container.duration / av.time_base)
            return _decoded(av, container, rate_hz, check)
    except av.error.FFmpegError as error:
        text = f"the sound cannot be decoded ({type(error).__name__}); send it whole, or as WAV"
        raise OctonodeError(text, code="BAD_REQUEST") from None


def _decoded(av: Any, container: Any, rate_hz: int, check: Callable[[], None]) -> Samples:
    resampler = av.audio.resampler.AudioResampler(format="s16", layout="mono", rate=rate_hz)
    parts: list[Any] = []
    seconds, damaged = 0.0, 0
    frames = container.decode(audio=0)
    while True:
        check()
        try:
            frame = next(frames)
        except StopIteration:
            break
        except av.error.InvalidDataError:
            damaged += 1
            if damaged > DAMAGED_FRAMES_MAX:
                raise
            continue
        seconds += frame.samples / max(1, frame.sample_rate)
        check_seconds(seconds)  # before the resampler makes many samples of few
        frame.pts = None  # times that jump would be filled with silence
        parts += [each.to_ndarray() for each in resampler.resample(frame)]
    parts += [each.to_ndarray() for each in resampler.resample(None)]
    if not parts:
        raise OctonodeError("the file has no sound in it", code="BAD_REQUEST")
    samples: Samples = np.concatenate(parts, axis=1)[0].astype(np.float32) / 32768
    return samples
