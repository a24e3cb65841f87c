"""CTranslate2's `model.bin`: taken by its content, refused with its reason, never taken for a pickle."""

from __future__ import annotations

import pickle
import struct

import pytest

from octonode.models.formats import FormatRefused
from octonode.models.headers import ctranslate2 as reader
from octonode.models.manifest import WEIGHT_FORMATS
from tests.models.samples import ct2_text, ct2_variable, ctranslate2, inspect

A, B = ct2_variable("decoder/weight"), ct2_variable("decoder/scale", (), 1, b"\x03")
SIDES = {"config.json": b'{"suppress_ids": [1]}', "vocabulary.txt": b"a\nb\n", "tokenizer.json": b"{}"}


def test_a_whisper_folder_is_described() -> None:
    info = inspect({"model.bin": ctranslate2(A, B, aliases=[("decoder/tied", "decoder/weight")]), **SIDES})
    assert (info.format, info.architecture, info.category) == ("ctranslate2", "Whisper", "audio")
    assert (info.quantization, info.weights_bytes, info.shape.parameters) == ("F16", 13, 7)
    assert (info.opens, info.made_with) == ("model.bin", "CTranslate2 6, revision 3")
    assert info.files == {"model.bin": "ctranslate2"} | dict.fromkeys(SIDES, "other")
    assert "ctranslate2" in WEIGHT_FORMATS


@pytest.mark.parametrize(
    ("spec", "category"),
    [("TransformerSpec", "other"), ("TransformerDecoderModelSpec", "llm"), ("Wav2Vec2Spec", "audio")],
)
def test_the_spec_tells_the_category(spec: str, category: str) -> None:
    assert inspect({"model.bin": ctranslate2(A, spec=spec)}).category == category


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (ctranslate2(A, version=7), "version 7"),
        (ctranslate2(A, version=3), "version 3"),
        (ctranslate2(A, A), "two variables"),
        (ctranslate2(A, aliases=[("x", "nowhere")]), "not there"),
        (ctranslate2(A) + b"\x00", "behind its end"),
        (ctranslate2(A)[:-1], "cut short"),
        (ctranslate2(A)[:40], "cut short"),
        (ctranslate2(ct2_variable("a", kind=6)), "unknown type 6"),
        (ctranslate2(ct2_variable("a", (2, 3), 0)), "do not fit"),
        (ctranslate2(ct2_variable("a", (1,) * 9, 1, b"x")), "9 dimensions"),
        (ctranslate2(ct2_variable("a", (2**32 - 1,) * 8, 1, b"")), "do not fit"),
        (ctranslate2(ct2_variable("a\n")), "name that is none"),
        (ctranslate2(ct2_variable("a" * 600)), "name of 601 bytes"),
        (struct.pack("<I", 6) + ct2_text("WhisperSpec") + struct.pack("<II", 3, 2**32 - 1), "4294967295 variables"),
    ],
)
def test_what_does_not_hold_together_is_refused(data: bytes, why: str) -> None:
    with pytest.raises(FormatRefused, match=why) as caught:
        inspect({"model.bin": data, **SIDES})
    assert caught.value.detail["file"] == "model.bin"


def test_two_models_and_another_name_are_refused() -> None:
    with pytest.raises(FormatRefused, match="second CTranslate2 model"):
        inspect({"a/model.bin": ctranslate2(A), "b/model.bin": ctranslate2(A)})
    with pytest.raises(FormatRefused, match=r"has to be called model\.bin"):
        inspect({"weights.bin": ctranslate2(A), **SIDES})


@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_of_the_same_name_is_still_a_pickle(protocol: int) -> None:
    data = pickle.dumps({"WhisperSpec": print}, protocol)
    assert not reader.looks_like_ctranslate2(data)
    with pytest.raises(FormatRefused, match="pickle"):
        inspect({"model.bin": data, **SIDES})
    with pytest.raises(FormatRefused, match="pickle"):
        inspect({"model.bin": ctranslate2(A), "vocabulary.txt": data})
