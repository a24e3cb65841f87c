"""What an ONNX model is for: by its config, by the task a hub sorts it under, or by its engine's own file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

from octonode.models.formats import FormatRefused
from tests.models.samples import chunk, inspect, number, onnx, onnx_node, onnx_tensor

GRAPH = {"model.onnx": onnx()}
VOICE = {"audio": {"sample_rate": 22050}, "phoneme_id_map": {"_": [0]}}
GENAI = {"model": {"type": "llama", "context_length": 8192, "decoder": {"filename": "model.onnx"}}}


def folder(**files: Any) -> Any:
    named = {name.replace("_json", ".json"): json.dumps(value).encode() for name, value in files.items()}
    return inspect({**GRAPH, **named})


@pytest.mark.parametrize(
    ("config", "category"),
    [
        ({"architectures": ["ResNetForImageClassification"]}, "vision"),
        ({"architectures": ["YolosForObjectDetection"]}, "vision"),
        ({"architectures": ["YOLOv8"]}, "vision"),
        ({"architectures": ["PPOCRForTextReading"]}, "vision"),
        ({"architectures": ["BertModel"]}, "embeddings"),
        ({"architectures": ["SileroSpeechActivity"]}, "audio"),
        ({"architectures": ["PiperVits"]}, "audio"),
        ({"architectures": ["Nobody"], "pipeline_tag": "object-detection"}, "vision"),
        ({"pipeline_tag": "text-to-speech"}, "audio"),
        ({"pipeline_tag": "feature-extraction"}, "embeddings"),
        ({"pipeline_tag": ["text-generation"]}, "other"),
        ({"pipeline_tag": "tabular-regression"}, "other"),
        ({}, "other"),
    ],
)
def test_the_category_of_a_folder(config: dict[str, Any], category: str) -> None:
    assert folder(config_json=config).category == category


def test_a_folder_of_onnxruntime_genai_is_a_language_model() -> None:
    info = folder(genai_config_json=GENAI)
    assert (info.category, info.architecture, info.context_tokens) == ("llm", "llama", 8192)
    both = folder(genai_config_json=GENAI, config_json={"architectures": ["LlamaForCausalLM"]})
    assert (both.category, both.architecture) == ("llm", "LlamaForCausalLM")
    assert folder(genai_config_json={"model": {"decoder": 7}}).category == "other"
    assert folder(genai_config_json={}).category == "other"


def test_a_voice_of_piper_is_known_by_its_own_json() -> None:
    info = inspect({"en_US-joe.onnx": onnx(), "en_US-joe.onnx.json": json.dumps(VOICE).encode()})
    assert (info.category, info.architecture, info.opens) == ("audio", "PiperVits", "en_US-joe.onnx")
    assert inspect({"m.onnx": onnx(), "m.onnx.json": b'{"audio": 1}'}).category == "other"
    with pytest.raises(FormatRefused, match="not JSON"):
        inspect({"m.onnx": onnx(), "m.onnx.json": b"{"})


def test_the_quantization_is_that_of_most_weights() -> None:
    def said(*tensors: bytes, nodes: Sequence[bytes] = (onnx_node(),)) -> str:
        return inspect({"m.onnx": onnx(nodes, tensors, opsets={"": 17, "com.microsoft": 1})}).quantization

    assert said() == ""
    assert said(onnx_tensor(100), onnx_tensor(4, kind=7)) == "F32"
    assert said(onnx_tensor(10), onnx_tensor(1000, kind=3)) == "INT8"
    assert said(onnx_tensor(10), onnx_tensor(1000, kind=10)) == "F16"
    assert said(onnx_tensor(1000, kind=7)) == "", "whole numbers of 64 bits are no weights"
    bits = chunk(5, chunk(1, "bits") + number(3, 4) + number(20, 2))
    packed = onnx_node("MatMulNBits", "com.microsoft", bits)
    assert said(onnx_tensor(10), onnx_tensor(1000, kind=2), nodes=[packed]) == "INT4"
    odd = onnx_node("MatMulNBits", "com.microsoft", chunk(5, chunk(1, "bits") + number(3, 400)))
    assert said(onnx_tensor(1000, kind=2), nodes=[odd]) == "INT8"


def test_several_graphs_are_one_model_and_the_operators_of_the_runtime_are_taken() -> None:
    attention = onnx([onnx_node("GroupQueryAttention", "com.microsoft")], opsets={"": 17, "com.microsoft": 1})
    config = json.dumps({"architectures": ["PPOCRForTextReading"]}).encode()
    info = inspect(
        {"detection.onnx": onnx(), "recognition.onnx": attention, "keys.txt": b"a\nb", "config.json": config}
    )
    assert (info.format, info.category) == ("onnx", "vision")
    with pytest.raises(FormatRefused, match="library of its own"):
        inspect({"m.onnx": onnx([onnx_node("BertTokenizer", "ai.onnx.contrib")])})
