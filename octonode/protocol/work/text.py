"""Embeddings: texts in, vectors out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from octonode.protocol.work.records import Bound

TEXTS_MAX = 2048
TEXT_CHARACTERS_MAX = 256 * 1024


@dataclass(frozen=True, slots=True)
class EmbedRequest:
    texts: Annotated[tuple[str, ...], Bound(1, TEXTS_MAX, TEXT_CHARACTERS_MAX)]
    truncate: bool = True
    """Cut texts that are longer than the model takes; else they are refused with CONTEXT_EXCEEDED."""


@dataclass(frozen=True, slots=True)
class Embeddings:
    """One vector a text, in order; pooled and normalised as the model says."""

    vectors: Annotated[bytes, Bound(0, 16 << 20)]
    """float32, little-endian, `dimensions` of them a text."""
    dimensions: Annotated[int, Bound(1, 65_536)]
    tokens_in: Annotated[int, Bound(0, 1 << 40)] = 0
    texts_cut: Annotated[int, Bound(0, TEXTS_MAX)] = 0
    """Texts that were longer than the model takes."""
