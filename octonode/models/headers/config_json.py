"""What `config.json` beside SafeTensors says of a network, as transformers writes it. Pure.

Source of the keys: https://huggingface.co/docs/transformers/main_classes/configuration; MLA by
https://arxiv.org/abs/2405.04434 (a compressed key of `kv_lora_rank` and the rotated part, no values).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from octonode.models.headers.description import CacheGroup, Shape, clean, count

CONFIG_BYTES_MAX: Final = 1024 * 1024
LAYERS_MAX: Final = 2048
_SLIDING: Final = ("sliding_attention", "chunked_attention")
_LINEAR: Final = ("linear_attention", "mamba", "conv", "recurrent")
_ALWAYS_SLIDING: Final = ("mistral", "mixtral", "phi3", "starcoder2")
_SEES: Final = (
    *("ImageClassification", "ObjectDetection", "Segmentation", "ViT", "CLIP", "Siglip", "Dino", "OCR"),
    *("YOLO", "Yolo"),
)
_TASKS: Final = {
    **dict.fromkeys(("image-classification", "object-detection", "image-segmentation"), "vision"),
    **dict.fromkeys(("text-to-speech", "voice-activity-detection", "automatic-speech-recognition"), "audio"),
    **dict.fromkeys(("feature-extraction", "sentence-similarity"), "embeddings"),
    "text-generation": "llm",
    "text-to-image": "diffusion",
}
"""`pipeline_tag`, by which a hub sorts models."""
_CATEGORIES: Final = (
    ("audio", ("Whisper", "Wav2Vec2", "Speech", "Hubert", "SeamlessM4T", "Musicgen", "Bark", "Vits", "Clap")),
    ("llm", ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration", "ForImageTextToText")),
    ("vision", _SEES),
    ("embeddings", ("Bert", "Roberta", "MPNet", "NomicBert", "XLMRoberta", "ModernBert", "E5", "Embedding")),
)


def category_of(config: Mapping[str, Any]) -> str:
    """By the class that transformers would load, else by the task; `other` where no rule knows either."""
    architecture = architecture_of(config)
    for category, marks in _CATEGORIES:
        if any(mark in architecture for mark in marks):
            return category
    task = config.get("pipeline_tag")
    return _TASKS.get(task, "other") if isinstance(task, str) else "other"


def facts_of_own(config: Mapping[str, Any], architecture: str) -> dict[str, Any]:
    """Fields of a FormatInfo by `genai_config.json` of onnxruntime-genai or the json of a voice of Piper; none for
    another file. `architecture`: what is known already, and stays."""
    model, audio = config.get("model"), config.get("audio")
    if isinstance(model, Mapping) and isinstance(model.get("decoder"), Mapping):
        return {
            "category": "llm",
            "architecture": architecture or clean(model.get("type")),
            "context_tokens": count(model.get("context_length"), 2**31),
        }
    if isinstance(audio, Mapping) and isinstance(config.get("phoneme_id_map"), Mapping):
        return {"category": "audio", "architecture": architecture or "PiperVits"}
    return {}


def architecture_of(config: Mapping[str, Any]) -> str:
    named = config.get("architectures")
    return clean(named[0]) if isinstance(named, list) and named else clean(config.get("architecture"))


def quantization_of(config: Mapping[str, Any]) -> str:
    """`awq 4 bit`, `fp8`, `fp8 compressed-tensors`; empty where the weights are as their dtype says."""
    said = config.get("quantization_config", config.get("compression_config"))
    if not isinstance(said, dict):
        return ""
    method, bits = clean(said.get("quant_method"), 32), count(said.get("bits", said.get("w_bit")), 64)
    if method == "compressed-tensors" and said.get("format") == "float-quantized":
        return f"fp8 {method}"
    return f"{method} {bits} bit" if bits else method


def context_of(config: Mapping[str, Any]) -> int:
    inner = _inner(config)
    named = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "n_ctx")
    return next((value for key in named if (value := count(inner.get(key), 2**31))), 0)


def _inner(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part about text, of models that see or hear as well."""
    for key in ("text_config", "llm_config", "language_config", "thinker_config"):
        if isinstance(config.get(key), dict):
            return _inner(config[key]) if key == "thinker_config" else dict(config[key])
    return config


def shape_of(config: Mapping[str, Any]) -> Shape:
    """Layers, heads and what each layer keeps of a token; 0 and empty where it is not said."""
    inner = _inner(config)

    def number(*keys: str) -> int:
        return next((value for key in keys if (value := count(inner.get(key), 2**31))), 0)

    layers = min(number("num_hidden_layers", "n_layer", "num_layers"), LAYERS_MAX)
    heads = number("num_attention_heads", "n_head")
    embedding = number("hidden_size", "n_embd", "d_model")
    kv_heads = number("num_key_value_heads", "num_kv_heads") or (1 if inner.get("multi_query") is True else heads)
    head_dim = number("head_dim") or (embedding // heads if heads else 0)
    keys, values = kv_heads * head_dim, kv_heads * head_dim
    if number("kv_lora_rank"):
        keys, values = number("kv_lora_rank") + number("qk_rope_head_dim"), 0
    return Shape(
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        embedding=embedding,
        feed_forward=number("intermediate_size", "n_inner", "ffn_dim"),
        vocab=number("vocab_size"),
        experts=number("num_local_experts", "num_experts", "n_routed_experts"),
        caches=_caches(inner, layers, keys, values) if keys else (),
    )


def _caches(inner: Mapping[str, Any], layers: int, keys: int, values: int) -> tuple[CacheGroup, ...]:
    window = count(inner.get("sliding_window"), 2**31) or count(inner.get("attention_chunk_size"), 2**31)
    if inner.get("use_sliding_window") is False:
        window = 0
    sliding, linear = 0, 0
    types, every = inner.get("layer_types"), count(inner.get("sliding_window_pattern"), LAYERS_MAX)
    if isinstance(types, list) and len(types) == layers:
        sliding = sum(each in _SLIDING for each in types) if window else 0
        linear = sum(each in _LINEAR for each in types)
    elif window and every:
        sliding = layers - layers // every
    elif window and inner.get("model_type") in _ALWAYS_SLIDING:
        sliding = layers
    groups = (CacheGroup(layers - sliding - linear, keys, values), CacheGroup(sliding, keys, values, window))
    return tuple(group for group in groups if group.layers > 0)
