"""Any bytes give a description or a typed refusal, in bounded work and memory: made-up, mutated and cut files."""

from __future__ import annotations

import contextlib
import io
import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octonode.models.claims import ext_of, requirements_of, shape_from
from octonode.models.formats import FileBytes, FormatInfo, FormatRefused, inspect_model
from octonode.models.headers import gguf as gguf_reader
from octonode.models.requirements import in_words, judge, subject_of, tier_machines
from tests.models import bombs, samples

ROOT = Path(__file__).resolve().parents[2]
RESIDENT_BYTES_MAX = 512 * 1024 * 1024
READS_MAX = 12 * gguf_reader.TENSORS_MAX + 4 * gguf_reader.ARRAY_TEXTS_MAX


def _outcome(contents: dict[str, bytes]) -> FormatInfo | FormatRefused:
    try:
        return inspect_model(samples.files(contents))
    except FormatRefused as refused:
        return refused


def _any(contents: dict[str, bytes]) -> None:
    """A description, or a refusal that names a file of the model; whatever is described can be judged."""
    info = _outcome(contents)
    if isinstance(info, FormatRefused):
        assert info.detail.get("file", next(iter(contents))) in {*contents, *_numbered(contents)}
        assert info.message
        return
    assert set(info.files) == set(contents)
    for machine in tier_machines():
        assert in_words(judge(subject_of(info, "m", 1), machine))
    requirements_of(info)
    claimed, _ = shape_from(ext_of(info))
    assert claimed.parameters == (info.shape.parameters if info.shape.parameters < 2**48 else 0)


def _numbered(contents: dict[str, bytes]) -> set[str]:
    """Shards that are missed by name."""
    return {f"model-0000{n}-of-00002.safetensors" for n in (1, 2)} if contents else set()


WHOLE: dict[str, Callable[[], dict[str, bytes]]] = {
    "gguf": lambda: {
        "m.gguf": samples.gguf(
            {
                "llama.block_count": 2,
                "llama.embedding_length": 64,
                "llama.attention.head_count": [4, 2],
                "tokenizer.chat_template": "{{ messages[0]['content'] }}",
                "tokenizer.ggml.tokens": ["a", "b", "c"],
            },
            [samples.tensor("a", [32, 2], 0, kind=2), samples.tensor("b", [8], 64)],
            96,
        )
    },
    "split": lambda: samples.split_gguf(2),
    "sharded": samples.sharded,
    "onnx": lambda: {
        "m.onnx": samples.onnx(
            [
                samples.onnx_node(
                    more=samples.chunk(5, samples.chunk(1, "a") + samples.chunk(5, samples.onnx_tensor(2)))
                )
            ],
            [samples.onnx_tensor(2, external={"location": "d", "offset": "0"}), samples.onnx_tensor(1, raw=bytes(4))],
        ),
        "d": bytes(range(8)),
    },
    "tensorrt": lambda: samples.tensorrt(1),
    "ctranslate2": lambda: {
        "model.bin": samples.ctranslate2(
            samples.ct2_variable("a"), samples.ct2_variable("b", (), 1, b"\x03"), aliases=[("c", "a")]
        ),
        "config.json": b'{"suppress_ids": []}',
        "vocabulary.txt": b"a\nb\n",
    },
    "directory": lambda: {
        "m.safetensors": samples.shard("a"),
        "tokenizer_config.json": b'{"chat_template": "{{ x }}"}',
        "chat_template.jinja": b"{% for m in messages %}{{ m.content }}{% endfor %}",
    },
}


@pytest.mark.parametrize("name", WHOLE)
def test_the_whole_ones_are_described(name: str) -> None:
    assert inspect_model(samples.files(WHOLE[name]()), signed=True).weights_bytes


@pytest.mark.parametrize("name", WHOLE)
@settings(max_examples=200)
@given(data=st.data())
def test_mutated_files_are_described_or_refused(name: str, data: st.DataObject) -> None:
    contents = WHOLE[name]()
    path = data.draw(st.sampled_from(sorted(contents)))
    changed = bytearray(contents[path])
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, max(0, len(changed) - 1)))
        kind = data.draw(st.sampled_from(("flip", "byte", "insert", "drop", "cut")))
        if kind == "flip" and changed:
            changed[position] ^= 1 << data.draw(st.integers(0, 7))
        elif kind == "byte" and changed:
            changed[position] = data.draw(st.sampled_from((0, 1, 0x7F, 0x80, 0xFF)))
        elif kind == "insert":
            changed[position:position] = data.draw(st.binary(max_size=9))
        elif kind == "drop":
            del changed[position : position + data.draw(st.integers(1, 9))]
        else:
            del changed[position:]
    _any({**contents, path: bytes(changed)})


@pytest.mark.parametrize("name", WHOLE)
def test_files_cut_at_every_byte_are_refused_or_described(name: str) -> None:
    contents = WHOLE[name]()
    for path, whole in contents.items():
        for length in range(len(whole)):
            _any({**contents, path: whole[:length]})


STARTS = [
    *(b"", b"GGUF\x03\0\0\0", b"GGUF\x03\0\0\0\x01" + bytes(7) + b"\x01" + bytes(7), b"PK\x03\x04", b"\x08\x09\x12"),
    *(b"\x10" + bytes(7) + b"{", b"\x08\x09\x3a", b"ftrt", b"\x80\x04", b"\x93NUMPY\x01\x00", b"{", b"(", b"c"),
]


@settings(max_examples=500)
@given(
    st.binary(max_size=400),
    st.sampled_from(STARTS),
    st.sampled_from(["m.bin", "config.json", "x.safetensors.index.json"]),
)
def test_any_bytes_alone_and_beside_a_model(data: bytes, start: bytes, name: str) -> None:
    _any({name: start + data})
    _any({"model.safetensors": samples.shard("a"), name: start + data})


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)
KEYS = (
    *("architectures", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "hidden_size", "head_dim"),
    *("layer_types", "sliding_window", "sliding_window_pattern", "quantization_config", "text_config", "kv_lora_rank"),
    *(
        "max_position_embeddings",
        "chat_template",
        "weight_map",
        "metadata",
        "version",
        "pretrained_config",
        "model_type",
    ),
)


@settings(max_examples=300)
@given(st.dictionaries(st.sampled_from(KEYS), JSON | st.just("sliding_attention"), max_size=8))
def test_any_json_in_the_place_of_a_config(value: dict[str, Any]) -> None:
    data = json.dumps(value).encode()
    for name in ("config.json", "tokenizer_config.json", "chat_template.json", "model.safetensors.index.json"):
        _any({"model.safetensors": samples.shard("a"), name: data})
    with contextlib.suppress(FormatRefused):
        inspect_model(samples.files({**samples.tensorrt(1), "config.json": data}), signed=True)


@given(JSON)
def test_any_claim_of_a_manifest_is_read(value: Any) -> None:
    shape, weights_bytes = shape_from({"shape": value})
    assert weights_bytes >= 0
    assert shape.parameters >= 0


# -- a real file --------------------------------------------------------------------------------------------------


class Counting(io.BytesIO):
    """The beginning of a large file; counts how it is read."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.reads = 0
        self.positions: list[int] = []

    def read(self, size: int | None = -1) -> bytes:
        self.reads += 1
        self.positions.append(self.tell())
        return super().read(size)

    def close(self) -> None:
        return


@pytest.fixture(scope="module")
def header(smollm2: Path) -> tuple[bytes, int, list[int]]:
    """Of the real model: the bytes before its tensors' data, the file's size, and where the reader reads."""
    size = smollm2.stat().st_size
    with open(smollm2, "rb") as file:
        data = file.read(4 * 1024 * 1024)
    counting = Counting(data)
    gguf_reader.read_gguf(counting, size)
    assert counting.reads < READS_MAX
    return data[: counting.tell()], size, counting.positions


def _real(data: bytes, size: int) -> FormatInfo | None:
    opened: list[Counting] = []

    def opens() -> Counting:
        opened.append(Counting(data))
        return opened[-1]

    try:
        return inspect_model([FileBytes("m.gguf", size, opens)])
    except FormatRefused:
        return None
    finally:
        assert sum(file.reads for file in opened) < READS_MAX


@pytest.mark.model
def test_the_real_file_cut_at_every_field_is_refused(header: tuple[bytes, int, list[int]]) -> None:
    data, size, positions = header
    assert _real(data, size) is not None
    seed = 20260714
    print(f"seed {seed}")
    some = [*positions[:100], *random.Random(seed).sample(positions, 20), *positions[-20:]]
    for number, position in enumerate(some):
        length = min(position + number % 2, len(data) - 1)
        assert _real(data[:length], (size, length)[number % 2]) is None


@pytest.mark.model
@settings(max_examples=30, deadline=None)
@given(flips=st.lists(st.tuples(st.integers(0, 2**31), st.integers(0, 7)), min_size=1, max_size=6))
def test_the_real_file_with_flipped_bits_is_described_or_refused(
    header: tuple[bytes, int, list[int]], flips: list[tuple[int, int]]
) -> None:
    data, size, positions = header
    changed = bytearray(data)
    for place, bit in flips:
        early = positions[place % min(2000, len(positions))] if place % 2 else place
        changed[early % len(changed)] ^= 1 << bit
    _real(bytes(changed), size)


# -- bombs --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_bombs_in_a_process_with_little_memory() -> None:
    """Its address space is limited, so what wants more ends with another error than ours."""
    command = [sys.executable, "-m", "tests.models.bombs"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    *lines, peak = done.stdout.splitlines()
    became = {line["bomb"]: line["became"] for line in map(json.loads, lines)}
    assert len(became) == len(lines) == sum(1 for _ in bombs.bombs()) + sum(1 for _ in bombs.endless())
    whole = {"many texts in arrays", "many tensors", "many keys", "many shards' tensors", "many nodes"}
    for bomb, what in became.items():
        assert what, bomb
        if bomb in whole:
            assert what in ("gguf", "safetensors", "onnx"), bomb
    assert sum(what in ("gguf", "safetensors", "onnx") for what in became.values()) <= len(whole) + 2
    assert int(peak) <= RESIDENT_BYTES_MAX
