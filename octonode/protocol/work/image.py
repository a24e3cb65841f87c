"""Pictures made by diffusion: from text, and from a picture and text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from octonode.protocol.work.records import Bound
from octonode.protocol.work.vision import IMAGE_BYTES_MAX

IMAGES_MAX = 8

Side = Annotated[int, Bound(8, 4096)]


@dataclass(frozen=True, slots=True)
class ImageRequest:
    prompt: Annotated[str, Bound(1, 16_384)]
    negative_prompt: Annotated[str, Bound(0, 16_384)] = ""
    image: Annotated[bytes, Bound(0, IMAGE_BYTES_MAX)] = b""
    """A picture to start from; empty: from noise."""
    strength: Annotated[float, Bound(0, 1)] = 0.8
    """How far to leave `image`: 0 keeps it, 1 is from noise."""
    width_pixels: Annotated[int, Bound(0, 4096)] = 0
    """0: what the model was made for. Multiples of 8."""
    height_pixels: Annotated[int, Bound(0, 4096)] = 0
    steps: Annotated[int, Bound(0, 500)] = 0
    """0: the model's default."""
    guidance: Annotated[float, Bound(-1, 50)] = -1.0
    """-1: the model's default."""
    seed: Annotated[int, Bound(-(2**63), 2**63 - 1)] | None = None
    """The same seed gives the same picture at the same engine; none: another each time."""
    count: Annotated[int, Bound(1, IMAGES_MAX)] = 1


@dataclass(frozen=True, slots=True)
class Images:
    images: Annotated[tuple[bytes, ...], Bound(0, IMAGES_MAX, 15 << 20)]
    width_pixels: Side
    height_pixels: Side
    steps: Annotated[int, Bound(1, 500)]
    seed: Annotated[int, Bound(-(2**63), 2**63 - 1)]
    """That was used; picture `i` of several used `seed + i`."""
    media_type: Literal["image/png"] = "image/png"
