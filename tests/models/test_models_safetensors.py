"""SafeTensors: single files and sets whose index and shards must say the same."""

from __future__ import annotations

import json
from typing import Any

import pytest

from octonode.models.formats import CacheGroup, FormatRefused
from octonode.models.headers import safetensors as reader
from octonode.models.headers.strict_json import NODES_MAX, JsonRefused, read_object
from tests.models.samples import LLAMA_CONFIG, inspect, safetensors, shard, sharded

FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


def test_a_set_with_its_index_and_config() -> None:
    info = inspect(sharded())
    assert (info.format, info.architecture, info.category) == ("safetensors", "LlamaForCausalLM", "llm")
    assert (info.quantization, info.weights_bytes, info.shape.parameters) == ("BF16", 36, 18)
    assert info.shape.caches == (CacheGroup(32, 1024, 1024),)
    assert (info.context_tokens, info.shape.vocab, info.opens, info.notes) == (8192, 128256, "", ())
    assert info.files == {FIRST: "safetensors", SECOND: "safetensors"} | dict.fromkeys(
        ("model.safetensors.index.json", "config.json"), "other"
    )


@pytest.mark.parametrize(
    ("index", "why"),
    [
        ({"weight_map": {"a": FIRST, "c": "../" + SECOND}}, "outside of its directory"),
        ({"weight_map": {"a": "/etc/passwd"}}, "outside of its directory"),
        ({"weight_map": {"a": "sub/" + FIRST}}, "outside of its directory"),
        ({"weight_map": {"a": "..\\x"}}, "outside of its directory"),
        ({"weight_map": {"a": "model-00009-of-00002.safetensors"}}, "not in the model"),
        ({"weight_map": {"a": FIRST, "z": SECOND}}, "does not have the tensor 'z'"),
        ({"weight_map": {"a": 5}}, "no text"),
        ({"weight_map": []}, "no weight_map"),
        ({"weight_map": {}}, "no weight_map"),
        ({"metadata": {"total_size": 100}}, "total_size of 100"),
        ({"metadata": {"total_size": 3}}, "total_size of 3"),
        ({"metadata": {"total_size": -1}}, "not a size"),
        ({"metadata": {"total_size": "big"}}, "not a size"),
    ],
)
def test_an_index_that_lies_is_refused(index: dict[str, Any], why: str) -> None:
    with pytest.raises(FormatRefused, match=why) as caught:
        inspect(sharded(**index))
    assert caught.value.detail["file"] == "model.safetensors.index.json"


def test_a_total_size_that_is_a_little_off_is_taken() -> None:
    assert inspect(sharded(metadata={"total_size": 40.0})).format == "safetensors"
    assert inspect(sharded(metadata={})).format == "safetensors"


def test_tensors_that_the_index_does_not_name_are_told() -> None:
    info = inspect(sharded(weight_map={"a": FIRST, "c": SECOND}))
    assert info.notes == ("model.safetensors.index.json does not name 1 tensors of its shards",)


def test_a_tensor_in_two_shards_is_refused() -> None:
    with pytest.raises(FormatRefused, match="two shards"):
        inspect({**sharded(), SECOND: shard("c", "a")})


def test_a_missing_shard_is_named() -> None:
    contents = sharded()
    contents.pop(SECOND)
    with pytest.raises(FormatRefused, match="not in the model"):
        inspect(contents)
    contents.pop("model.safetensors.index.json")
    with pytest.raises(FormatRefused, match=f"{SECOND}: this shard of the model is missing"):
        inspect(contents)


@pytest.mark.parametrize(
    "header",
    [
        b'{"a":{"dtype":"BF16","shape":[2,3],"data_offsets":[0,12]},"a":{"dtype":"BF16","shape":[2,3],"data_offsets":[0,12]}}',
        b'{"a":{"dtype":"BF16","dtype":"F32","shape":[2,3],"data_offsets":[0,12]}}',
        b'{"__metadata__":{"x":"1","x":"2"},"a":{"dtype":"BF16","shape":[2,3],"data_offsets":[0,12]}}',
    ],
)
def test_a_key_twice_is_refused(header: bytes) -> None:
    with pytest.raises(FormatRefused, match="twice"):
        inspect({"m.safetensors": safetensors(header, bytes(12))})


def test_a_key_twice_in_an_index_or_a_config_is_refused() -> None:
    for path, data in (
        ("model.safetensors.index.json", b'{"weight_map":{"a":"%b","a":"%b"}}' % (FIRST.encode(), SECOND.encode())),
        ("config.json", b'{"architectures":["A"],"architectures":["B"]}'),
        ("tokenizer_config.json", b'{"chat_template":"a","chat_template":"b"}'),
    ):
        with pytest.raises(FormatRefused, match="twice") as caught:
            inspect({**sharded(), path: data})
        assert caught.value.detail["file"] == path


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"[" * 100_000, "nested|not JSON"),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "nested"),
        (b'{"a":NaN}', "NaN"),
        (b'{"a":' + b"9" * 10_000 + b"}", "not JSON"),
        (b"[]", "not an object"),
        (b"", "not JSON"),
        (b"{" + b'"":{},' * (NODES_MAX // 2), "parts"),
        (b'{"a":"' + "\N{GRINNING FACE}".encode() * 300_000 + b'"}', "ASCII"),
        (b'{"a":"' + b"x" * 40_000_000 + b'"}', "bytes"),
    ],
)
def test_json_bombs_are_refused(data: bytes, why: str) -> None:
    with pytest.raises(JsonRefused, match=why):
        read_object(data, reader.HEADER_BYTES_MAX)


def test_odd_dtypes_of_whole_and_half_bytes() -> None:
    header = {
        "a": {"dtype": "F4", "shape": [3], "data_offsets": [0, 2]},
        "b": {"dtype": "F6_E2M3", "shape": [4], "data_offsets": [2, 5]},
        "c": {"dtype": "F8_E4M3", "shape": [4, 4], "data_offsets": [5, 21]},
    }
    info = inspect({"m.safetensors": safetensors(header, bytes(21))})
    assert (info.quantization, info.compute_capability, info.shape.parameters) == ("F8_E4M3", "8.9", 23)


@pytest.mark.parametrize(
    ("config", "caches"),
    [
        ({"sliding_window": 4096, "model_type": "mistral"}, (CacheGroup(32, 1024, 1024, 4096),)),
        ({"sliding_window": 4096, "use_sliding_window": False, "model_type": "qwen2"}, (CacheGroup(32, 1024, 1024),)),
        (
            {"sliding_window": 512, "sliding_window_pattern": 6, "num_hidden_layers": 12},
            (CacheGroup(2, 1024, 1024), CacheGroup(10, 1024, 1024, 512)),
        ),
        (
            {"sliding_window": 128, "num_hidden_layers": 2, "layer_types": ["sliding_attention", "full_attention"]},
            (CacheGroup(1, 1024, 1024), CacheGroup(1, 1024, 1024, 128)),
        ),
        ({"num_hidden_layers": 2, "layer_types": ["linear_attention", "full_attention"]}, (CacheGroup(1, 1024, 1024),)),
        ({"kv_lora_rank": 512, "qk_rope_head_dim": 64}, (CacheGroup(32, 576, 0),)),
        ({"head_dim": 64}, (CacheGroup(32, 512, 512),)),
        ({"num_attention_heads": 0, "num_key_value_heads": None}, ()),
        ({"num_hidden_layers": "many"}, ()),
    ],
)
def test_what_a_config_says_of_the_cache(config: dict[str, Any], caches: tuple[CacheGroup, ...]) -> None:
    contents = {"model.safetensors": shard("a"), "config.json": json.dumps({**LLAMA_CONFIG, **config}).encode()}
    assert inspect(contents).shape.caches == caches


def test_configs_of_models_that_see_and_code_that_is_never_run() -> None:
    config = {
        "architectures": ["LlavaForConditionalGeneration"],
        "text_config": LLAMA_CONFIG,
        "auto_map": {"AutoModel": "x.Y"},
    }
    info = inspect({"model.safetensors": shard("a"), "config.json": json.dumps(config).encode()})
    assert (info.category, info.shape.layers) == ("llm", 32)
    assert info.notes == ("config.json asks for code of its own (auto_map), which is never run",)


@pytest.mark.parametrize(
    ("architecture", "category"),
    [
        ("WhisperForConditionalGeneration", "audio"),
        ("BertModel", "embeddings"),
        ("ViTForImageClassification", "vision"),
        ("Qwen2ForCausalLM", "llm"),
        ("SomethingElse", "other"),
    ],
)
def test_the_category_by_the_class(architecture: str, category: str) -> None:
    config = json.dumps({"architectures": [architecture]}).encode()
    assert inspect({"model.safetensors": shard("a"), "config.json": config}).category == category


def test_quantized_checkpoints() -> None:
    config = {**LLAMA_CONFIG, "quantization_config": {"quant_method": "awq", "bits": 4}}
    assert (
        inspect({"model.safetensors": shard("a"), "config.json": json.dumps(config).encode()}).quantization
        == "awq 4 bit"
    )
    config["quantization_config"] = {"quant_method": "fp8"}
    info = inspect({"model.safetensors": shard("a"), "config.json": json.dumps(config).encode()})
    assert (info.quantization, info.compute_capability) == ("fp8", "8.9")
