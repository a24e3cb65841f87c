"""What is never taken, whatever it is called: pickles in any wrapping, programs, engines of strangers."""

from __future__ import annotations

import io
import json
import pickle
import struct
import tarfile
import zipfile

import pytest

from octonode.models.formats import SCRIPTED_MAGIC, FormatRefused
from octonode.models.headers.pickles import refusal
from tests.models.samples import gguf, inspect, onnx, safetensors, shard, tensorrt

NAMES = (
    "pytorch_model.bin",
    "model.pt",
    "m.ckpt",
    "weights.pkl",
    "model.gguf",
    "config.json",
    "README.md",
    "vocab.txt",
)


def _zip(name: str = "archive/data.pkl") -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr(name, pickle.dumps({"w": 1}))
        archive.writestr("archive/data/0", bytes(64))
    return out.getvalue()


def _tar() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        info = tarfile.TarInfo("pickle")
        info.size = 10
        archive.addfile(info, io.BytesIO(bytes(10)))
    return out.getvalue()


def _npy(descr: str, version: int = 1) -> bytes:
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': (3,), }}".encode()
    length = struct.pack("<H" if version == 1 else "<I", len(header))
    return b"\x93NUMPY" + bytes([version, 0]) + length + header + bytes(24)


class Evil:
    def __reduce__(self) -> tuple[object, ...]:
        return print, ("run",)


PICKLES = [
    *(pickle.dumps({"weights": [1.5] * 10}, protocol=protocol) for protocol in range(6)),
    *(pickle.dumps(Evil(), protocol=protocol) for protocol in range(6)),
    b"cos\nsystem\n(S'id'\ntR" + b"and no end at all " * 20,
    b"(i__builtin__\neval\n" + b"x" * 50,
    b"\n\n(dp0\n."[2:] + b"",
    _zip(),
    _tar(),
    _npy("'|O'"),
    _npy("[('a', '<f4'), ('b', 'O')]", 2),
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("data", PICKLES, ids=range(len(PICKLES)))
def test_pickles_are_refused_whatever_they_are_called(name: str, data: bytes) -> None:
    for contents in (
        {name: data},
        {"a/model.safetensors": shard("a"), f"a/{name}": data},
        {"m.gguf2": gguf(), name: data},
    ):
        with pytest.raises(FormatRefused) as caught:
            inspect(contents)
        assert caught.value.code == "FORMAT_REFUSED"
        assert caught.value.detail["file"] in contents


def test_the_reason_says_pickle_where_there_is_one() -> None:
    for data in PICKLES:
        if len(data) >= 8:
            with pytest.raises(FormatRefused, match="pickle"):
                inspect({"m.bin": data})


@pytest.mark.parametrize(
    "data",
    [
        b"\x7fELF" + bytes(60),
        b"MZ" + bytes(60),
        b"\xcf\xfa\xed\xfe" + bytes(60),
        b"#!/bin/sh\nrm -rf /\n",
        b"\x1f\x8b" + bytes(60),
        b"7z\xbc\xaf\x27\x1c" + bytes(60),
        b"\x89HDF\r\n\x1a\n" + bytes(60),
    ],
)
def test_programs_and_archives_are_refused_beside_a_model(data: bytes) -> None:
    for name in ("vocab.txt", "tokenizer.model", "README.md"):
        with pytest.raises(FormatRefused) as caught:
            inspect({"m.gguf": gguf(), name: data})
        assert caught.value.detail["file"] == name


@pytest.mark.parametrize(
    "name",
    [
        "libops.so",
        "ops.so.1",
        "x/ops.dll",
        "ops.dylib",
        "ops.pyd",
        "k.cubin",
        "modeling_x.py",
        "run.sh",
        "x.ipynb",
        "m.LUA",
    ],
)
def test_code_is_refused_by_its_name(name: str) -> None:
    with pytest.raises(FormatRefused, match="brings no code") as caught:
        inspect({"m.onnx": onnx(), name: b"harmless text"})
    assert caught.value.detail["file"] == name


def test_texts_that_only_look_like_it_are_taken() -> None:
    contents = {
        "m.gguf": gguf(),
        "LICENSE": b"(c) 2024 Somebody\nAll rights reserved.\n",
        "NOTICE.txt": b"cats and dogs\nare here\n",
        "README.md": b"(dogs)\n\nThe model. I1 is a number.\n" * 50,
        "vocab.txt": b"}\n.\nN.\n" * 9,
        "plain.npy": _npy("'<f4'"),
        "merges.txt": b"",
    }
    info = inspect(contents)
    assert info.files == dict.fromkeys(contents, "other") | {"m.gguf": "gguf"}


def test_what_is_nothing_known_is_refused_by_name() -> None:
    for name in ("weights.dat", "model.h5", "noend"):
        with pytest.raises(FormatRefused, match="the content is not GGUF"):
            inspect({"m.gguf": gguf(), name: b"some bytes of no format"})
    with pytest.raises(FormatRefused, match="not GGUF"):
        inspect({"README.md": b"some text"})
    with pytest.raises(FormatRefused, match="7 bytes"):
        inspect({"x": b"1234567"})
    with pytest.raises(FormatRefused, match="1 to 1024 files"):
        inspect({})


def test_a_safetensors_that_is_a_pickle_too_is_read_as_what_it_is() -> None:
    """A header of 0x...80 bytes begins as a pickle does; it is whole as SafeTensors, and opened as that."""
    body = json.dumps({"__metadata__": {"x": ""}}).encode()
    header = body[:-3] + b" " * (0x0480 - len(body)) + body[-3:]
    data = safetensors(header)
    assert data[:2] == b"\x80\x04"
    assert inspect({"m.safetensors": data}).format == "safetensors"


def test_opcodes_that_never_end_are_not_read_for_ever() -> None:
    assert refusal(b"N" * 65536, 10**9) is not None
    assert refusal(b"N" * 8 + b"x", 9) is None


# -- TensorRT -----------------------------------------------------------------------------------------------------


def test_an_engine_directory_of_a_trusted_publisher() -> None:
    info = inspect(tensorrt(), signed=True)
    assert (info.format, info.architecture, info.quantization) == ("tensorrt", "LlamaForCausalLM", "FP8")
    assert (info.context_tokens, info.made_with, info.shape.kv_heads, info.opens) == (
        4096,
        "TensorRT-LLM 0.20.0",
        32,
        "",
    )
    assert info.weights_bytes == 408
    nested = {f"engines/{path}": data for path, data in tensorrt(1).items()}
    assert inspect({**nested, "tokenizer.json": b"{}"}, signed=True).format == "tensorrt"


def test_engines_of_strangers_are_refused() -> None:
    with pytest.raises(FormatRefused, match="a publisher you trust alone: octonode models trust"):
        inspect(tensorrt())
    with pytest.raises(FormatRefused, match="TensorRT engine"):
        inspect({"m.gguf": gguf(), "yolo.engine": b"ftrt" + bytes(100)})
    wrapped = json.dumps({"task": "detect"}).encode()
    with pytest.raises(FormatRefused, match="TensorRT engine"):
        inspect({"yolo.engine": struct.pack("<I", len(wrapped)) + wrapped + b"ftrt" + bytes(100)})


@pytest.mark.parametrize(
    ("contents", "why"),
    [
        ({"rank0.engine": b"ftrt" + bytes(200)}, "one directory with its config.json"),
        ({**tensorrt(), "rank2.engine": b"ftrt" + bytes(200)}, r"says 2 ranks, and the engines there are \[0, 1, 2\]"),
        ({**tensorrt(), "extra.engine": b"ftrt" + bytes(200)}, "not named rank<N>.engine"),
        ({**tensorrt(), "rank1.engine": b"ftrt" + bytes(8)}, "cut short"),
        ({**tensorrt(), "sub/rank0.engine": b"ftrt" + bytes(200)}, "one directory"),
        ({**tensorrt(), "config.json": b"[" * 5000}, "config.json"),
        ({**tensorrt(), "config.json": b'{"version":"1.0","version":"2.0"}'}, "twice"),
        (tensorrt(version="newest"), "does not say version"),
        (tensorrt(pretrained_config=5), "does not say version"),
        (tensorrt(pretrained_config={"mapping": {"world_size": 10**9}}), "says 0 ranks"),
    ],
)
def test_engine_directories_that_are_not_whole_are_refused(contents: dict[str, bytes], why: str) -> None:
    with pytest.raises(FormatRefused, match=why):
        inspect(contents, signed=True)


# -- together -----------------------------------------------------------------------------------------------------


def test_several_formats_of_one_model_are_told() -> None:
    info = inspect({"model.safetensors": shard("a"), "onnx/model.onnx": onnx(), "config.json": b"{}"})
    assert info.format == "safetensors"
    assert info.notes == ("the same model as onnx is there as well and is not opened",)


def test_categories_by_what_stands_beside() -> None:
    weights = {"unet/model.safetensors": shard("a")}
    assert inspect({**weights, "model_index.json": b'{"_class_name":"X"}'}).category == "diffusion"
    assert inspect({"m.onnx": onnx(), "modules.json": b"[]"}).category == "embeddings"
    scripted = inspect({"m": SCRIPTED_MAGIC + bytes(100)})
    assert (scripted.format, scripted.opens) == ("scripted", "m")
