"""Golden vectors of what models need, from what their manifests claim; `scripts/vectors.py` writes them."""

from __future__ import annotations

from typing import Any

from octonode.models.claims import SHAPE_KEY, shape_from
from octonode.models.requirements import Subject, need_of

LLAMA3_8B: dict[str, Any] = {
    "parameters": 8_030_261_248, "layers": 32, "heads": 32, "kv_heads": 8, "head_dim": 128, "embedding": 4096,
    "feed_forward": 14336, "vocab": 128256, "weights_bytes": 4_920_734_272, "caches": [[32, 1024, 1024, 0]],
}  # fmt: skip
WINDOWS = {**LLAMA3_8B, "caches": [[8, 2048, 2048, 0], [40, 2048, 2048, 1024]]}
LATENT = {**LLAMA3_8B, "caches": [[60, 576, 0, 0]]}
RECURRENT = {
    "parameters": 130_000_000,
    "vocab": 50280,
    "embedding": 768,
    "weights_bytes": 260_000_000,
    "state_bytes": 2_359_296,
}
UNKNOWN = {"parameters": 8_030_261_248, "weights_bytes": 4_920_734_272}
ODD: dict[str, Any] = {
    "parameters": -1,
    "vocab": "many",
    "weights_bytes": 1000,
    "caches": [[1, 2, 3], "x", [1, 64, 64, 0]],
}


def needs() -> dict[str, Any]:
    """Claims in `ext`, and the bytes they come to."""
    cases = []
    for name, shape in (
        ("grouped queries", LLAMA3_8B),
        ("sliding windows", WINDOWS),
        ("latent attention", LATENT),
        ("recurrent", RECURRENT),
        ("estimated", UNKNOWN),
        ("odd claims are zero", ODD),
    ):
        for context, parallel, cache_type in ((8192, 1, "f16"), (1000, 4, "f16"), (131072, 1, "q8_0")):
            cases.append(_case(name, shape, context, parallel, cache_type))
    return {"page": "protocols/manifest.md", "format": "gguf", "cases": cases}


def _case(name: str, claimed: dict[str, Any], context: int, parallel: int, cache_type: str) -> dict[str, Any]:
    ext = {SHAPE_KEY: claimed}
    shape, weights_bytes = shape_from(ext)
    subject = Subject("m", "gguf", weights_bytes, weights_bytes, shape=shape)
    options = {"parallel": parallel, "cache_type": cache_type}
    ram, vram = (need_of(subject, context, place=place, **options) for place in ("ram", "vram"))  # type: ignore[arg-type]
    return {
        "name": name,
        "ext": ext,
        "context_tokens": context,
        "parallel": parallel,
        "cache_type": cache_type,
        "exact": subject.exact,
        "weights_bytes": ram.weights_bytes,
        "cache_bytes": ram.cache_bytes,
        "overhead_bytes": {"ram": ram.overhead_bytes, "vram": vram.overhead_bytes},
    }
