"""What a manifest says of a model's needs: written by whoever adds it, read before a byte is fetched. Pure.

`requirements.vram_bytes` is what the model takes of a GPU at its default context, one stream. `ext["shape"]` holds the
sizes of the network, from which any other context is computed. Both are the publisher's word.
Page: protocols/manifest.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from octonode.models.formats import CacheGroup, FormatInfo, Shape
from octonode.models.manifest import ModelManifest, Requirements
from octonode.models.requirements import Subject, default_context, need_of, subject_of

SHAPE_KEY: Final = "shape"
SHAPE_GROUPS_MAX: Final = 64
_NUMBERS: Final = (
    *("parameters", "layers", "heads", "kv_heads", "head_dim", "embedding", "feed_forward", "vocab", "experts"),
    "state_bytes",
)


def requirements_of(info: FormatInfo) -> Requirements:
    """At the default context; all zero for formats whose needs nothing is known of."""
    if not info.weights_bytes:
        return Requirements()
    subject = subject_of(info, "", info.weights_bytes)
    need = need_of(subject, default_context(info.context_tokens), place="vram")
    return Requirements(vram_bytes=need.total_bytes, compute_capability=info.compute_capability)


def ext_of(info: FormatInfo) -> dict[str, Any]:
    """`{"shape": {...}}`, or nothing where the headers say nothing."""
    numbers = {name: number for name in _NUMBERS if (number := getattr(info.shape, name))}
    if info.weights_bytes:
        numbers["weights_bytes"] = info.weights_bytes
    caches = [[group.layers, group.key_values, group.value_values, group.window_tokens] for group in info.shape.caches]
    shape = {**numbers, **({"caches": caches[:SHAPE_GROUPS_MAX]} if caches else {})}
    return {SHAPE_KEY: shape} if shape else {}


def shape_from(ext: Mapping[str, Any]) -> tuple[Shape, int]:
    """(shape, weights in bytes) as a publisher claims them; zeros for whatever is missing or odd. Never raises."""
    said = ext.get(SHAPE_KEY)
    claimed = said if isinstance(said, Mapping) else {}
    listed = claimed.get("caches")
    rows: Sequence[Any] = listed[:SHAPE_GROUPS_MAX] if isinstance(listed, list | tuple) else ()
    groups = [CacheGroup(*map(_whole, row)) for row in rows if isinstance(row, list | tuple) and len(row) == 4]
    shape = Shape(**{name: _whole(claimed.get(name)) for name in _NUMBERS}, caches=tuple(groups))
    return shape, _whole(claimed.get("weights_bytes"))


def _whole(value: Any) -> int:
    return value if type(value) is int and 0 <= value < 2**48 else 0


def subject_of_manifest(manifest: ModelManifest, reference: str, *, missing_bytes: int = 0) -> Subject:
    """What a model takes, by its publisher's word."""
    shape, weights_bytes = shape_from(manifest.ext)
    listed = sum(file.size_bytes for file in manifest.files if file.format != "other")
    return Subject(
        reference=reference,
        format=manifest.format,
        weights_bytes=weights_bytes or listed,
        size_bytes=manifest.size_bytes,
        context_tokens=manifest.context_tokens,
        quantization=manifest.quantization,
        category=manifest.category,
        architecture=manifest.architecture,
        shape=shape,
        compute_capability=manifest.requirements.compute_capability,
        missing_bytes=missing_bytes,
    )
