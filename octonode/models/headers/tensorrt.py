"""TensorRT-LLM engine directories: `config.json` and `rank<N>.engine`. Pure.

An engine is code for a GPU: nothing in it can be checked from outside, so who made it has to be trusted. Sources: the
`config.json` that `trtllm-build` writes (`version`, `pretrained_config`, `build_config`); a serialized engine begins
with `ftrt`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from octonode.models.headers.description import Shape, clean, count
from octonode.models.headers.strict_json import JsonRefused, read_object

MAGIC: Final = b"ftrt"
CONFIG_BYTES_MAX: Final = 1024 * 1024
RANKS_MAX: Final = 256
ENGINE_BYTES_MIN: Final = 64
_RANK = re.compile(r"rank(0|[1-9]\d{0,2})\.engine\Z")
UNSIGNED: Final = (
    "the content is a TensorRT engine, which is code for a GPU that nobody can check; it is taken from a signed "
    "manifest of a publisher you trust alone: octonode models trust PEER_ID, and fetch it by its name"
)


class TensorrtError(ValueError):
    """The directory is not a whole engine of TensorRT-LLM."""


@dataclass(frozen=True, slots=True)
class TensorrtEngine:
    version: str
    architecture: str
    quantization: str
    context_tokens: int
    shape: Shape


def looks_like_engine(head: bytes) -> bool:
    """True for a serialized engine, bare or behind the JSON that exporters put before it."""
    if head.startswith(MAGIC):
        return True
    start = 4 + int.from_bytes(head[:4], "little")
    return head[4:5] == b"{" and head[start : start + 4] == MAGIC


def read_engine(config: bytes, engines: Mapping[str, int]) -> TensorrtEngine:
    """What `config.json` says; `engines` are names and sizes of the engine files beside it. Raises TensorrtError."""
    try:
        value = read_object(config, CONFIG_BYTES_MAX)
    except JsonRefused as error:
        raise TensorrtError(f"config.json: {error}") from None
    version = clean(value.get("version"), 32)
    pretrained, build = _map(value.get("pretrained_config")), _map(value.get("build_config"))
    if not re.match(r"\d+\.\d+", version) or not pretrained:
        raise TensorrtError("config.json does not say version and pretrained_config, as trtllm-build writes them")
    _check_ranks(engines, _map(pretrained.get("mapping")))
    quantization = _map(pretrained.get("quantization"))
    heads, embedding = count(pretrained.get("num_attention_heads")), count(pretrained.get("hidden_size"))
    return TensorrtEngine(
        version=version,
        architecture=clean(pretrained.get("architecture")),
        quantization=clean(quantization.get("quant_algo"), 32) or clean(pretrained.get("dtype"), 32),
        context_tokens=count(build.get("max_seq_len")) or count(build.get("max_input_len")),
        shape=Shape(
            layers=count(pretrained.get("num_hidden_layers"), 2048),
            heads=heads,
            kv_heads=count(pretrained.get("num_key_value_heads")) or heads,
            head_dim=count(pretrained.get("head_size")) or (embedding // heads if heads else 0),
            embedding=embedding,
            vocab=count(pretrained.get("vocab_size")),
        ),
    )


def _check_ranks(engines: Mapping[str, int], mapping: Mapping[str, Any]) -> None:
    ranks = {int(match[1]) for name in engines if (match := _RANK.match(name))}
    world = count(mapping.get("world_size", 1), RANKS_MAX)
    odd = [name for name in engines if not _RANK.match(name)]
    if odd:
        raise TensorrtError(
            f"the engine {odd[0][:64]!r} is not named rank<N>.engine; only directories of trtllm-build are taken"
        )
    if not world or ranks != set(range(world)):
        raise TensorrtError(f"config.json says {world} ranks, and the engines there are {sorted(ranks)}")
    if min(engines.values()) < ENGINE_BYTES_MIN:
        raise TensorrtError("an engine file is cut short")


def _map(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
