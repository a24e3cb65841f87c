"""The sizes of a network from the header of a GGUF, as llama.cpp reads them. Pure.

Sources: the keys are those of gguf.md; what a layer keeps is `llama_hparams::n_embd_k_gqa` and `llama_kv_cache` (MLA
keeps no values of its own), which layers slide is `llama_hparams::set_swa_pattern`, both of llama.cpp.
"""

from __future__ import annotations

from typing import Final

from octonode.models.headers.description import CacheGroup, Shape
from octonode.models.headers.gguf import GgufHeader

LAYERS_MAX: Final = 2048
_PURE_RECURRENT: Final = ("mamba", "mamba2", "rwkv6", "rwkv7", "rwkv6qwen2", "arwkv7")
_SLIDING_OF: Final = {
    name: every
    for every, names in {
        2: ("gemma2", "gpt-oss"),
        4: ("cohere2", "olmo2", "exaone4", "llama4", "afmoe"),
        5: ("gemma3n",),
        6: ("gemma3", "gemma-embedding"),
    }.items()
    for name in names
}
"""Architecture -> every n-th layer keeps all, where llama.cpp knows it and the header does not say it."""


def shape_of(header: GgufHeader) -> Shape:
    """What the header says; 0 and empty where it does not, or where it says what cannot be."""
    name = header.architecture
    layers = min(header.number(f"{name}.block_count"), LAYERS_MAX)
    embedding = header.number(f"{name}.embedding_length")
    heads = header.by_layer(f"{name}.attention.head_count", layers)
    kv_heads = header.by_layer(f"{name}.attention.head_count_kv", layers)
    if f"{name}.attention.head_count_kv" not in header.values:
        kv_heads = heads
    most = max(heads, default=0)
    key = header.number(f"{name}.attention.key_length") or (embedding // most if most else 0)
    value = header.number(f"{name}.attention.value_length") or (embedding // most if most else 0)
    return Shape(
        layers=layers,
        heads=most,
        kv_heads=max(kv_heads, default=0),
        head_dim=key,
        embedding=embedding,
        feed_forward=max(header.by_layer(f"{name}.feed_forward_length", layers), default=0),
        vocab=header.number(f"{name}.vocab_size") or header.count("tokenizer.ggml.tokens"),
        experts=header.number(f"{name}.expert_count"),
        caches=_caches(header, kv_heads, key, value),
        state_bytes=_state_bytes(header, kv_heads),
    )


def _caches(header: GgufHeader, kv_heads: list[int], key: int, value: int) -> tuple[CacheGroup, ...]:
    name = header.architecture
    if name in _PURE_RECURRENT:
        return ()
    if f"{name}.attention.key_length_mla" in header.values:
        value = 0
    window = header.number(f"{name}.attention.sliding_window")
    sliding = _sliding(header, len(kv_heads)) if window else [0] * len(kv_heads)
    owned = len(kv_heads) - min(header.number(f"{name}.attention.shared_kv_layers"), len(kv_heads))
    interval = header.number(f"{name}.full_attention_interval")
    narrow = (
        header.number(f"{name}.attention.key_length_swa") or key,
        (header.number(f"{name}.attention.value_length_swa") or value),
    )
    groups: dict[tuple[int, int, int], int] = {}
    for layer, count in enumerate(kv_heads[:owned]):
        if count <= 0 or (interval and (layer + 1) % interval):
            continue
        wide = narrow if sliding[layer] else (key, value)
        group = (count * wide[0], count * wide[1], window if sliding[layer] else 0)
        groups[group] = groups.get(group, 0) + 1
    return tuple(CacheGroup(layers, *group) for group, layers in sorted(groups.items(), key=lambda each: each[0][2]))


def _sliding(header: GgufHeader, layers: int) -> list[int]:
    """For each layer whether it slides: as the header says, else as llama.cpp has it for this architecture."""
    key = f"{header.architecture}.attention.sliding_window_pattern"
    if header.count(key):
        return header.by_layer(key, layers)
    every = header.number(key) or _SLIDING_OF.get(header.architecture, 1)
    return [int(layer % every < every - 1) for layer in range(layers)]


def _state_bytes(header: GgufHeader, kv_heads: list[int]) -> int:
    """Of recurrent layers, in F32: `n_embd_r` and `n_embd_s` of llama.cpp."""
    name = header.architecture
    inner, state = header.number(f"{name}.ssm.inner_size"), header.number(f"{name}.ssm.state_size")
    if not inner or not state:
        return 0
    kernel, groups = header.number(f"{name}.ssm.conv_kernel"), header.number(f"{name}.ssm.group_count")
    interval = header.number(f"{name}.full_attention_interval")
    layers = sum(not count for count in kv_heads) or len(kv_heads)
    if interval:
        layers = len(kv_heads) - len(kv_heads) // interval
    return layers * 4 * (max(kernel - 1, 0) * (inner + 2 * groups * state) + inner * state)
