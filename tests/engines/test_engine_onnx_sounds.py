"""Sounds and pictures of strangers: what is read, and what is refused before it is decoded."""

from __future__ import annotations

import io
import struct
import wave
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from octonode.engines.adapters import pictures, sounds
from octonode.errors import OctonodeError
from octonode.protocol.work.audio import AUDIO_BYTES_MAX
from tests.engines.makers import plain, png, tone, wav_of

SINE = np.sin(2 * np.pi * 440 * np.arange(8000) / 8000).astype(np.float64) * 0.5


def given_or_refused(work: Callable[[], Any]) -> Any:
    """What it gives, else the code of our refusal; any other error passes."""
    try:
        return work()
    except OctonodeError as error:
        return error.code


def raw(bits: int, kind: int = 1) -> bytes:
    if kind == 3:
        return SINE.astype(f"<f{bits // 8}").tobytes()
    if bits == 8:
        return (SINE * 128 + 128).round().astype(np.uint8).tobytes()
    if bits == 24:
        whole = (SINE * 2**31).astype("<i4").reshape(-1, 1).view(np.uint8).reshape(-1, 4)
        return whole[:, 1:].tobytes()
    return (SINE * 2.0 ** (bits - 1)).astype(f"<i{bits // 8}").tobytes()


@pytest.mark.parametrize(
    ("bits", "kind", "off"),
    [(8, 1, 0.008), (16, 1, 1e-4), (24, 1, 1e-6), (32, 1, 1e-6), (32, 3, 1e-7), (64, 3, 1e-7)],
)
def test_every_width_of_samples_gives_the_same_sound(bits, kind, off):
    read = sounds.read_wav(wav_of(raw(bits, kind), 8000, bits=bits, kind=kind), 8000)
    assert np.abs(read - SINE).max() < off


def test_channels_are_mixed_to_one_and_extensible_files_are_read():
    left_alone = np.stack([SINE, np.zeros_like(SINE)], axis=1)
    data = wav_of((left_alone * 32768).astype("<i2").tobytes(), 8000, channels=2)
    assert np.abs(sounds.read_wav(data, 8000) - SINE / 2).max() < 1e-4
    form = struct.pack("<4sIHHIIHHHHIH14x", b"fmt ", 40, 0xFFFE, 1, 8000, 16_000, 2, 16, 22, 16, 0, 1)
    body = raw(16)
    chunks = b"LIST" + struct.pack("<I", 3) + b"odd\0" + form + b"data" + struct.pack("<I", len(body)) + body
    assert np.abs(sounds.read_wav(b"RIFF\0\0\0\0WAVE" + chunks, 8000) - SINE).max() < 1e-4


def test_a_file_that_was_streamed_has_no_length_and_is_read_to_its_end():
    for declared in (0xFFFF_FFFF, 0x7FFF_FFFF):
        assert len(sounds.read_wav(wav_of(raw(16), 8000, declared=declared), 8000)) == len(SINE)


@pytest.mark.parametrize(
    ("from_hz", "to_hz"), [(8000, 16_000), (44_100, 16_000), (48_000, 16_000), (16_000, 22_050), (11_025, 16_000)]
)
def test_resampling_keeps_what_both_rates_can_hold_and_nothing_else(from_hz, to_hz):
    times = np.arange(from_hz) / from_hz
    heard = sounds.resample(np.sin(2 * np.pi * 440 * times).astype(np.float32), from_hz, to_hz)
    wanted = np.sin(2 * np.pi * 440 * np.arange(len(heard)) / to_hz)
    assert len(heard) == pytest.approx(to_hz, abs=2)
    assert np.abs(heard - wanted)[100:-100].max() < 1e-3
    if from_hz > to_hz:  # a tone above half of the new rate would come back as another one
        above = sounds.resample(np.sin(2 * np.pi * 0.6 * to_hz * times).astype(np.float32), from_hz, to_hz)
        assert np.abs(above)[100:-100].max() < 0.01


def test_what_is_written_is_read_again_and_by_others():
    data = sounds.write_wav(np.array([0, 0.5, -0.5, 2, -2], np.float32), 22_050)
    assert sounds.read_wav(data, 22_050) == pytest.approx([0, 0.5, -0.5, 1, -1], abs=1e-3)
    with wave.open(io.BytesIO(data)) as opened:
        assert (opened.getframerate(), opened.getnchannels(), opened.getsampwidth()) == (22_050, 1, 2)
    with pytest.raises(OctonodeError) as caught:
        sounds.write_wav(np.zeros(AUDIO_BYTES_MAX // 2, np.float32), 8000)
    assert caught.value.code == "TOO_LARGE"


def test_three_hours_are_refused_by_their_header():
    """A file of 10 MB at 1 kHz, and a header that only claims its hours: neither is decoded."""
    for data in (wav_of(bytes(3 * 3600 * 1000), 1000, bits=8), wav_of(b"\0\0", 16_000, declared=3 * 3600 * 32_000)):
        with pytest.raises(OctonodeError) as caught:
            sounds.read_wav(data, 16_000)
        assert caught.value.code == "TOO_LARGE"
        assert "180 minutes" in caught.value.message
        assert "cut it into parts" in caught.value.message


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"ID3 an mp3",
        tone(0.1)[:40],
        tone(0.1)[:-100],
        wav_of(raw(16), 8000, kind=2),
        wav_of(raw(16), 8000, bits=12),
        wav_of(raw(16), 12),
        wav_of(raw(16), 8000, channels=200),
        wav_of(np.array([np.nan, 1.0], "<f4").tobytes(), 8000, bits=32, kind=3),
        b"RIFF\0\0\0\0WAVE" + b"junk\0\0\0\0" * 1000,
    ],
)
def test_what_is_no_sound_is_refused_with_words(data):
    with pytest.raises(OctonodeError) as caught:
        sounds.read_wav(data, 16_000)
    assert caught.value.code == "BAD_REQUEST"


@given(st.binary(max_size=200), st.integers(0, 60))
def test_any_bytes_are_a_sound_or_a_refusal(data, place):
    good = tone(0.01)
    for each in (data, b"RIFF\0\0\0\0WAVE" + data, good[:place] + data + good[place:]):
        outcome = given_or_refused(lambda each=each: sounds.read_wav(each, 16_000))
        assert isinstance(outcome, str) or np.isfinite(outcome).all()


# -- Pictures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", pictures.FORMATS)
def test_pictures_of_each_format_are_opened_in_colour(kind):
    file = io.BytesIO()
    plain("red").save(file, kind, **({"lossless": True} if kind == "WEBP" else {}))
    opened = pictures.open_picture(file.getvalue())
    assert (opened.mode, opened.size) == ("RGB", (64, 48))
    red, green, blue = opened.getpixel((10, 10))
    assert red > 250
    assert max(green, blue) < 5


def test_what_is_transparent_is_white_and_exif_turns_the_picture():
    ghost = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    assert pictures.open_picture(png(ghost)).getpixel((4, 4)) == (255, 255, 255)
    file = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # on its side
    plain("blue", 64, 48).save(file, "JPEG", exif=exif)
    assert pictures.open_picture(file.getvalue()).size == (48, 64)
    assert pictures.open_picture(png(plain("blue").convert("P"))).mode == "RGB"
    assert Image.open(io.BytesIO(pictures.png_of(plain("lime")))).getpixel((0, 0)) == (0, 255, 0)


def test_a_picture_of_a_billion_pixels_is_refused_by_its_header():
    """1 GB of pixels in 50 bytes: PNG, BMP, and GIF, which holds no more than 65,535 each way."""
    bomb = bytearray(png(plain("red", 8, 8)))
    bomb[16:24] = struct.pack(">II", 40_000, 25_000)
    bomb[29:33] = struct.pack(">I", zlib.crc32(bytes(bomb[12:29])))
    bitmap = struct.pack("<2sIHHIIiiHHIIiiII", b"BM", 54, 0, 0, 54, 40, 40_000, 25_000, 1, 24, 0, 0, 0, 0, 0, 0)
    gif = (
        b"GIF89a"
        + struct.pack("<HHBBB", 40_000, 25_000, 0, 0, 0)
        + b",\0\0\0\0"
        + struct.pack("<HHB", 40_000, 25_000, 0)
    )
    for data in (bytes(bomb), bitmap, gif + b"\x02\x02\x44\x01\x00;"):
        with pytest.raises(OctonodeError) as caught:
            pictures.open_picture(data)
        assert caught.value.code == "TOO_LARGE"
        assert "scale it down" in caught.value.message
    with pytest.raises(OctonodeError) as caught:
        pictures.open_picture(png(plain("red", 100, 100)), pixels_max=9999)
    assert "100 x 100" in caught.value.message


def test_a_jpeg_of_many_scans_is_refused_before_they_are_decoded():
    """Each scan is 30 bytes or so, and takes as long as all pixels."""
    file = io.BytesIO()
    plain("red", 64, 64).save(file, "JPEG", progressive=True)
    data = file.getvalue()
    assert pictures.open_picture(data).size == (64, 64)
    last = data.rindex(b"\xff\xda")
    with pytest.raises(OctonodeError) as caught:
        pictures.open_picture(data[:-2] + data[last:-2] * 64 + data[-2:])
    assert caught.value.code == "TOO_LARGE"
    assert "save it anew" in caught.value.message


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"GIF89a",
        png(plain("red"))[:60],
        b"%PDF-1.4 a document",
        b"P6 4 4 255 " + bytes(48),  # PPM: Pillow reads it, we do not
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    ],
)
def test_what_is_no_picture_is_refused_with_words(data):
    with pytest.raises(OctonodeError) as caught:
        pictures.open_picture(data)
    assert caught.value.code == "BAD_REQUEST"
    assert "PNG" in caught.value.message


@given(st.data())
def test_a_picture_broken_anywhere_is_a_picture_or_a_refusal(data):
    kind = data.draw(st.sampled_from(("PNG", "JPEG", "GIF", "BMP", "WEBP")))
    file = io.BytesIO()
    plain("red", 16, 16).save(file, kind)
    broken = bytearray(file.getvalue())
    for _ in range(data.draw(st.integers(1, 4))):
        broken[data.draw(st.integers(0, len(broken) - 1))] = data.draw(st.integers(0, 255))
    outcome = given_or_refused(lambda: pictures.open_picture(bytes(broken)).mode)
    assert outcome in ("RGB", "BAD_REQUEST", "TOO_LARGE")
