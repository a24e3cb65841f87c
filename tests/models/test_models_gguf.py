"""GGUF headers: tensors side by side inside the file, split sets, and the sizes of networks as llama.cpp reads them."""

from __future__ import annotations

import struct

import pytest

from octonode.models.formats import CacheGroup, FormatInfo, FormatRefused, Shape
from tests.models.samples import gguf, inspect, pair, split_gguf, tensor, text


def _info(keys: dict[str, object], **contents: bytes) -> FormatInfo:
    return inspect({"m.gguf": gguf(keys), **contents})


def _refused(data: bytes, match: str) -> None:
    with pytest.raises(FormatRefused, match=match) as caught:
        inspect({"m.gguf": data})
    assert caught.value.detail["file"] == "m.gguf"


def test_tensors_lie_side_by_side() -> None:
    good = [tensor("a", [32], 0), tensor("b", [64, 2], 128), tensor("c", [256, 2], 128 + 512, kind=12)]
    info = inspect({"m.gguf": gguf(tensors=good, data_bytes=128 + 512 + 288)})
    assert info.weights_bytes == 128 + 512 + 288
    assert info.shape.parameters == 32 + 128 + 512
    assert info.quantization == "F32"


@pytest.mark.parametrize(
    ("tensors", "why"),
    [
        ([tensor("a", [64], 0), tensor("b", [64], 128)], "overlap"),
        ([tensor("a", [64], 0), tensor("b", [64], 0)], "overlap"),
        ([tensor("a", [64], 256), tensor("b", [64], 4096)], "cut short"),
        ([tensor("a", [64], 2**63)], "cut short"),
        ([tensor("a", [64], 33)], "aligned"),
        ([tensor("a", [64], 0), tensor("a", [64], 256)], "twice"),
        ([tensor("a", [0], 0)], "absurd"),
        ([tensor("a", [2**32, 2**32], 0)], "absurd"),
        ([tensor("a", [2**63, 2], 0)], "absurd"),
        ([tensor("a", [1, 1, 1, 1, 1], 0)], "5 dimensions"),
        ([tensor("a", [33], 0, kind=2)], "blocks"),
        ([tensor("x" * 300, [64], 0)], "300 bytes"),
    ],
)
def test_tables_of_tensors_that_lie_are_refused(tensors: list[bytes], why: str) -> None:
    _refused(gguf(tensors=tensors, data_bytes=1024), why)


@pytest.mark.parametrize("alignment", [0, 1, 7, 48, 2**20, 2**31])
def test_an_alignment_that_is_none_is_refused(alignment: int) -> None:
    _refused(gguf({"general.alignment": alignment}), "alignment")


def test_another_alignment_is_followed() -> None:
    data = gguf({"general.alignment": 64}, [tensor("a", [16], 0), tensor("b", [16], 64)], 128, alignment=64)
    assert inspect({"m.gguf": data}).weights_bytes == 128
    _refused(gguf({"general.alignment": 64}, [tensor("a", [16], 32)], 256, alignment=64), "aligned")


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"GGUF" + struct.pack("<IQQ", 3, 10**9, 0), "1000000000 tensors"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 10**9), "1000000000 keys"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 2**32), "4294967296 bytes"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("k") + struct.pack("<IQ", 8, 2**32), "4294967296 bytes"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("k") + struct.pack("<IIQ", 9, 8, 10**9), "array of 1000000000"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("k") + struct.pack("<IIQ", 9, 4, 10**6), "early"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("k") + struct.pack("<IIQ", 9, 9, 4), "array of type 9"),
        (gguf({f"k{n}": "x" * 900_000 for n in range(5)}), "texts"),
    ],
)
def test_bombs_of_counts_are_refused(data: bytes, why: str) -> None:
    _refused(data, why)


def test_grouped_queries_by_one_number_and_by_layer() -> None:
    keys: dict[str, object] = {
        "llama.block_count": 4,
        "llama.embedding_length": 4096,
        "llama.attention.head_count": 32,
        "llama.attention.head_count_kv": 8,
        "llama.context_length": 8192,
        "tokenizer.ggml.tokens": ["a", "b", "c"],
    }
    shape = _info(keys).shape
    assert (shape.kv_heads, shape.head_dim, shape.vocab) == (8, 128, 3)
    assert shape.caches == (CacheGroup(4, 1024, 1024),)
    by_layer = _info({**keys, "llama.attention.head_count_kv": [8, 4, 0, 4]}).shape
    assert sorted(by_layer.caches, key=lambda group: group.key_values) == [
        CacheGroup(2, 512, 512),
        CacheGroup(1, 1024, 1024),
    ]
    keys.pop("llama.attention.head_count_kv")
    assert _info(keys).shape.caches == (CacheGroup(4, 4096, 4096),)


def _network(name: str, layers: int, **more: object) -> Shape:
    keys: dict[str, object] = {
        "general.architecture": name,
        f"{name}.block_count": layers,
        f"{name}.embedding_length": 1024,
        f"{name}.attention.head_count": 8,
        f"{name}.attention.head_count_kv": 4,
    }
    return _info({**keys, **{f"{name}.{key}": value for key, value in more.items()}}).shape


def test_sliding_windows_by_pattern_by_architecture_and_not_at_all() -> None:
    window = {"attention.sliding_window": 512}
    assert _network("gemma3", 12, **window).caches == (CacheGroup(2, 512, 512), CacheGroup(10, 512, 512, 512))
    pattern = {**window, "attention.sliding_window_pattern": [True, True, False, True]}
    assert _network("new", 4, **pattern).caches == (CacheGroup(1, 512, 512), CacheGroup(3, 512, 512, 512))
    assert _network("phi3", 4, **window).caches == (CacheGroup(4, 512, 512),)  # llama.cpp keeps all of it


def test_latent_attention_shared_layers_and_recurrent_states() -> None:
    latent = {"attention.key_length": 576, "attention.value_length": 512, "attention.key_length_mla": 192}
    assert _network("deepseek2", 2, **{**latent, "attention.head_count_kv": 1}).caches == (CacheGroup(2, 576, 0),)
    assert _network("gemma3n", 10, **{"attention.shared_kv_layers": 4}).caches == (CacheGroup(6, 512, 512),)
    state = {"ssm.inner_size": 2048, "ssm.state_size": 16, "ssm.conv_kernel": 4}
    mamba = _network("mamba", 3, **state)
    assert mamba.caches == ()
    assert mamba.state_bytes == 3 * 4 * (3 * 2048 + 2048 * 16)
    hybrid = _network("qwen3next", 8, **state, full_attention_interval=4)
    assert hybrid.caches == (CacheGroup(2, 512, 512),)
    assert hybrid.state_bytes == 6 * 4 * (3 * 2048 + 2048 * 16)


def test_absurd_sizes_give_a_description_all_the_same() -> None:
    shape = _network("llama", 2**31, **{"attention.head_count_kv": [1.0e38, -5.0], "embedding_length": 2**32 - 1})
    assert shape.layers == 2048


def test_a_split_set_is_one_model() -> None:
    contents = split_gguf(3)
    info = inspect({**contents, "README.md": b"hello"})
    assert (info.opens, info.shape.parameters, info.weights_bytes) == ("m-00001-of-00003.gguf", 96, 384)
    assert info.files["m-00002-of-00003.gguf"] == "gguf"
    assert info.shape.layers == 2


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (
            lambda c: {k: v for k, v in c.items() if "00002" not in k},
            "00002-of-00003.gguf of this split GGUF is missing",
        ),
        (lambda c: {"b.gguf": c["m-00002-of-00003.gguf"]}, "part 2 of 3"),
        (lambda c: {"b.gguf": c["m-00001-of-00003.gguf"]}, "part 1 of 3"),
        (lambda c: {**c, "m-00003-of-00003.gguf": c["m-00002-of-00003.gguf"]}, "part 2 of 3"),
        (lambda c: split_gguf(3, tensors_said=9), "have 3 tensors and should have 9"),
    ],
)
def test_a_split_set_that_is_not_whole_is_refused(change, why: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(FormatRefused, match=why):
        inspect(change(split_gguf(3)))


def test_a_split_that_cannot_be_is_refused() -> None:
    _refused(gguf({"split.no": 7, "split.count": 3}), "file 7 of 3")
    _refused(gguf({"split.no": 0, "split.count": 10**6}), "of 1000000")


def test_several_models_are_told_and_a_projector_is_not_the_model() -> None:
    info = inspect({"b.gguf": gguf(), "a.gguf": gguf({"general.architecture": "clip"}), "c.gguf": gguf()})
    assert info.opens == "b.gguf"
    assert info.architecture == "llama"
    assert info.notes == ("2 more GGUF files are there; engines open b.gguf",)


def test_a_template_that_reaches_out_is_refused() -> None:
    for key in ("tokenizer.chat_template", "tokenizer.chat_template.tool_use"):
        _refused(gguf({key: "{{ ''.__class__.__mro__ }}"}), "chat template")
    assert len(_info({"tokenizer.chat_template": "{{ messages[0]['content'] }}"}).chat_template_sha256) == 32


def test_pairs_are_written_as_they_are_read() -> None:
    data = gguf({"a": "x", "b": True, "c": 1.5, "d": 7, "e": [1, 2], "f": ["x", "y"]})
    assert inspect({"m.gguf": data}).format == "gguf"
    assert pair("d", 7).endswith(struct.pack("<II", 4, 7))
