"""The pure parts of making models smaller: what is needed, what a child may say, how embeddings are compared."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octonode.engines.quantizing import comparing, needs, said
from octonode.engines.quantizing.job import KINDS, Made, Quality, ratios
from octonode.errors import ConfigError, OctonodeError
from octonode.models.quantized import QUANTIZED_KEY, Quantized, ext_of, quantized_from

MADE = Made("/x/made", 400, 100, 100, Quality("cosine", 1.0, 0.9, 0.95), 2.5)
SAID = Quantized("INT8", "p/words@1.0.0", 400, 100, 0.25, 0.5, "cosine", 1.0, 0.9, 0.95)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(["cosine", "INT8"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from([*asdict(SAID), *asdict(MADE), "type", "stage", "measure"]), inner, max_size=8
        )
    ),
    max_leaves=20,
)


def test_what_the_child_writes_is_what_is_read() -> None:
    assert said.read(json.dumps({"type": "result", **asdict(MADE)}).encode()) == MADE
    line = b'{"type": "progress", "stage": "weights", "done": 1, "total": 2}'
    assert said.read(line) == said.Progress("weights", 1, 2)


@given(values | st.binary(max_size=200))
def test_whatever_a_child_says_is_read_or_a_typed_error(value: Any) -> None:
    line = value if isinstance(value, bytes) else json.dumps(value).encode()
    found: Made | said.Progress | OctonodeError
    try:
        found = said.read(line)
    except OctonodeError as error:
        found = error
    if isinstance(found, OctonodeError):
        assert found.code in ("ENGINE_FAILED", "CONFIG", "UNSUPPORTED", "FORMAT_REFUSED", "DISK_FULL")


def test_deep_nesting_in_a_line_is_no_crash() -> None:
    with pytest.raises(OctonodeError, match="cannot be read"):
        said.read(b"[" * said.LINE_BYTES_MAX)


def test_ext_of_a_manifest_is_read_as_written() -> None:
    assert quantized_from(ext_of(SAID)) == SAID
    assert quantized_from({}) is None


@given(values)
def test_a_publisher_may_claim_anything(value: Any) -> None:
    found = quantized_from({QUANTIZED_KEY: value})
    assert found is None or (found.kind and math.isfinite(found.quality) and found.size_bytes >= 0)


def test_ratios_are_to_four_and_to_two_bytes_a_weight() -> None:
    assert ratios(125, 100) == (0.3125, 0.625)
    assert ratios(125, 0) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("model_format", "kind", "options", "code", "words"),
    [
        ("tensorrt", "INT8", {}, "UNSUPPORTED", "gguf, onnx, safetensors are"),
        ("gguf", "INT8", {}, "UNSUPPORTED", "take one of F16, Q8_0"),
        ("gguf", "Q8_0", {"quantized": "Q8_0"}, "UNSUPPORTED", "is Q8_0 already"),
        ("safetensors", "FP16", {"quantized": "F16"}, "UNSUPPORTED", "is FP16 already"),
        ("safetensors", "FP16", {"quantized": "fp8"}, "UNSUPPORTED", "quantized already (fp8)"),
        ("safetensors", "FP8", {"quantized": "BF16"}, "UNSUPPORTED", "there is none here"),
        ("safetensors", "FP8", {"quantized": "BF16", "capability": (8, 0)}, "UNSUPPORTED", "the one here has 8.0"),
        ("safetensors", "FP8", {"quantized": "BF16", "capability": (9, 0), "python": "/x"}, "", ""),
        ("safetensors", "FP16", {"quantized": "BF16", "python": "/x"}, "", ""),
        ("onnx", "INT4", {}, "", ""),
    ],
)
def test_what_can_be_made_and_why_not(
    model_format: str, kind: str, options: dict[str, Any], code: str, words: str
) -> None:
    found = needs.problem(model_format, kind, **options)
    assert found[0] == code
    assert words in found[1]
    assert bool(found[0]) == bool(found[1])


def test_a_missing_library_is_named_with_what_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(needs, "_is_there", lambda module: False)
    assert needs.problem("gguf", "Q8_0") == (
        "CONFIG", "llama_cpp is not installed; run: pip install 'octonode[llama-cpp-python]'",
    )  # fmt: skip
    assert needs.problem("gguf", "Q8_0", python="/other/python") == ("", ""), "another interpreter is believed"


def test_the_interpreter_is_that_of_the_engine_with_the_library() -> None:
    pythons = ("llama-cpp-python=/llama/python",)
    assert needs.interpreter("gguf", pythons, "/workers/python") == "/llama/python"
    assert needs.interpreter("onnx", pythons, "/workers/python") == "/workers/python"
    with pytest.raises(ConfigError):
        needs.interpreter("gguf", ("nonsense",), "")


@pytest.mark.parametrize("kind", [kind for kinds in KINDS.values() for kind in kinds])
def test_room_is_asked_for_by_the_number_of_weights(kind: str) -> None:
    model_format = next(name for name, kinds in KINDS.items() if kind in kinds)
    few = needs.bytes_for(model_format, kind, size_bytes=10**9, weights_bytes=9 * 10**8, parameters=10**8)
    assert 10**8 < few <= 10**9 + needs.SPARE_BYTES, "with the files beside the weights, and some to spare"
    unknown = needs.bytes_for(model_format, kind, size_bytes=10**9, weights_bytes=0, parameters=0)
    assert unknown >= 10**9


def test_pooling_is_that_of_the_folder(tmp_path: Path) -> None:
    assert comparing.pooling_of(tmp_path) == "mean"
    (tmp_path / "pool").mkdir()
    (tmp_path / "modules.json").write_text(
        '[{"type": "x.Transformer", "path": ""}, {"type": "x.Pooling", "path": "pool"}]'
    )
    (tmp_path / "pool" / "config.json").write_text('{"pooling_mode_cls_token": true}')
    assert comparing.pooling_of(tmp_path) == "cls"
    (tmp_path / "modules.json").write_text("[1]")
    assert comparing.pooling_of(tmp_path) == "mean"


def test_cosines_are_of_pairs_and_numbers_that_are_none_are_seen() -> None:
    found = comparing.cosines([[1.0, 0.0], [1.0, 1.0]], [[2.0, 0.0], [1.0, 0.0]])
    assert (found.measure, found.parent) == ("cosine", 1.0)
    assert found.value == pytest.approx(math.sqrt(0.5))
    assert found.mean == pytest.approx((1 + math.sqrt(0.5)) / 2)
    broken = comparing.cosines([[1.0]], [[math.nan]])
    assert (broken.value, bool(broken.reason)) == (0.0, True)
