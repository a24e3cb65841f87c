"""Files are told by their content: GGUF, SafeTensors and ONNX are taken, pickle never, whatever its name."""

from __future__ import annotations

import contextlib
import io
import json
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octonode.models.formats import CacheGroup, FormatInfo, FormatRefused, Shape, sniff


def _safetensors(header: object, data: bytes = b"") -> bytes:
    body = json.dumps(header).encode()
    return struct.pack("<Q", len(body)) + body + data


TENSOR = {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]}
ONNX = b"\x08\x09" + b"\x12\x07pytorch" + b"\x3a\x05\x12\x03net" + b"\x42\x02\x10\x11"


def _sniff(data: bytes) -> FormatInfo:
    return sniff(io.BytesIO(data))


def test_gguf(gguf: Callable[..., bytes]) -> None:
    info = _sniff(gguf())
    assert (info.format, info.architecture, info.quantization, info.context_tokens) == ("gguf", "llama", "Q4_1", 2048)
    assert (info.name, info.licence, len(info.chat_template_sha256)) == ("Tiny Test", "mit", 32)


@pytest.mark.model
def test_a_real_gguf(smollm2: Path) -> None:
    with open(smollm2, "rb") as file:
        info = sniff(file)
    assert (info.architecture, info.quantization, info.context_tokens) == ("llama", "Q4_1", 8192)
    assert info.licence == "apache-2.0"
    assert info.shape == Shape(
        parameters=134_515_008, layers=30, heads=9, kv_heads=3, head_dim=64, embedding=576, feed_forward=1536,
        vocab=49152, caches=(CacheGroup(30, 192, 192),),
    )  # fmt: skip


def test_safetensors() -> None:
    info = _sniff(_safetensors({"__metadata__": {"format": "pt"}, "w": TENSOR}, bytes(12)))
    assert (info.format, info.quantization) == ("safetensors", "BF16")


def test_onnx() -> None:
    assert _sniff(ONNX).format == "onnx"
    with pytest.raises(FormatRefused):
        _sniff(ONNX + b"\x00")


def _checkpoint() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"w": 1}))
        archive.writestr("archive/data/0", bytes(64))
    return out.getvalue()


@pytest.mark.parametrize("protocol", range(2, 6))
def test_pickles_of_every_protocol_are_refused(protocol: int) -> None:
    with pytest.raises(FormatRefused, match="pickle") as caught:
        _sniff(pickle.dumps({"weights": [1.5] * 10}, protocol=protocol))
    assert caught.value.code == "FORMAT_REFUSED"


@pytest.mark.parametrize("protocol", [0, 1])
def test_the_oldest_pickles_are_refused(protocol: int) -> None:
    for value in ({"weights": [1.5] * 10}, [1] * 20, io.BytesIO, "text" * 10):
        with pytest.raises(FormatRefused):
            _sniff(pickle.dumps(value, protocol=protocol))


def test_checkpoints_and_other_files_are_refused() -> None:
    with pytest.raises(FormatRefused, match="PyTorch checkpoint with a pickle"):
        _sniff(_checkpoint())
    for data in (
        b"",
        b"short",
        b"#!/bin/sh\nrm -rf /\n",
        b"\x7fELF" + bytes(100),
        b"\x89HDF\r\n\x1a\n" + bytes(90),
        bytes(4096),
    ):
        with pytest.raises(FormatRefused):
            _sniff(data)
    with pytest.raises(FormatRefused, match="zip"):
        _sniff(b"PK\x03\x04" + bytes(100))


@pytest.mark.parametrize("missing", [1, 100, 128])
def test_a_gguf_that_is_cut_short_is_refused(gguf: Callable[..., bytes], missing: int) -> None:
    """A download that broke off: the header is whole and says how much should follow, 128 bytes of one tensor."""
    header_bytes = gguf().index(b"tensor") + len(b"tensor") + 4 + 8 + 4 + 8
    whole = gguf(size=-(-header_bytes // 32) * 32 + 128)
    assert _sniff(whole).format == "gguf"
    with pytest.raises(FormatRefused, match="cut short"):
        _sniff(whole[:-missing])


def _gguf_head(tensors: int = 0, keys: int = 0, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, keys)


KEY = struct.pack("<Q", 1) + b"k"


@pytest.mark.parametrize(
    "data",
    [
        _gguf_head(),  # no architecture
        _gguf_head(version=1),
        _gguf_head(version=3 << 24),  # big-endian
        _gguf_head(tensors=2**40),
        _gguf_head(keys=2**40),
        _gguf_head(keys=1) + struct.pack("<Q", 2**60),
        _gguf_head(keys=1) + KEY + struct.pack("<IQ", 8, 2**60),
        _gguf_head(keys=1) + KEY + struct.pack("<IIQ", 9, 4, 2**60),
        _gguf_head(keys=1) + KEY + struct.pack("<IIQ", 9, 9, 1),  # an array of arrays
        _gguf_head(keys=1) + KEY + struct.pack("<I", 77),
        _gguf_head(keys=2) + (KEY + struct.pack("<IB", 0, 1)) * 2,
        _gguf_head(keys=1) + KEY,
    ],
)
def test_hostile_gguf_headers_are_refused(data: bytes) -> None:
    with pytest.raises(FormatRefused, match="GGUF is damaged"):
        _sniff(data)


@pytest.mark.parametrize(
    "data",
    [
        _safetensors({"w": TENSOR}, bytes(11)),
        _safetensors({"w": TENSOR}, bytes(13)),
        _safetensors({"w": {**TENSOR, "data_offsets": [4, 16]}}, bytes(16)),
        _safetensors({"w": TENSOR, "x": TENSOR}, bytes(12)),
        _safetensors({"w": {**TENSOR, "shape": [9]}}, bytes(12)),
        _safetensors({"w": {**TENSOR, "shape": [2**70]}}, bytes(12)),
        _safetensors({"w": {**TENSOR, "data_offsets": [12, 0]}}, bytes(12)),
        _safetensors({"w": 5}),
        _safetensors({"__metadata__": []}),
        struct.pack("<Q", 100_000) + b"{" + b"[" * 100_000,
    ],
)
def test_hostile_safetensors_are_refused(data: bytes) -> None:
    with pytest.raises(FormatRefused):
        _sniff(data)


@settings(max_examples=300)
@given(
    st.binary(max_size=400),
    st.sampled_from([b"", b"GGUF\x03\0\0\0", b"PK\x03\x04", b"\x08\x09\x12", b"\x10" + bytes(7) + b"{"]),
)
def test_any_bytes_are_a_format_or_refused(data: bytes, magic: bytes) -> None:
    with contextlib.suppress(FormatRefused):
        assert _sniff(magic + data).format in ("gguf", "safetensors", "onnx", "scripted")


@given(st.data())
def test_a_mangled_gguf_is_read_or_refused(gguf: Callable[..., bytes], data: st.DataObject) -> None:
    good = bytearray(gguf(600))
    for _ in range(data.draw(st.integers(1, 4))):
        good[data.draw(st.integers(0, 450))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(FormatRefused):
        _sniff(bytes(good[: data.draw(st.integers(0, 600))]))
