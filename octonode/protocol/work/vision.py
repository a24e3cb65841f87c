"""Pictures in, labels, boxes or lines of text out. Boxes are in pixels of the picture as it was sent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from octonode.protocol.work.records import Bound

IMAGE_BYTES_MAX = 12 << 20
PIXELS_MAX = 64_000_000
"""Of one picture, width times height as its header declares them; checked before it is decoded."""

Image = Annotated[bytes, Bound(1, IMAGE_BYTES_MAX)]
"""A PNG, JPEG, WebP, GIF (its first frame) or BMP file."""
Score = Annotated[float, Bound(0, 1)]
Pixels = Annotated[int, Bound(0, PIXELS_MAX)]
Labels = Annotated[str, Bound(0, 256)]


@dataclass(frozen=True, slots=True)
class ClassifyRequest:
    image: Image
    top: Annotated[int, Bound(1, 1000)] = 5
    """At most so many labels, the likeliest first."""


@dataclass(frozen=True, slots=True)
class Label:
    name: Labels
    score: Score


@dataclass(frozen=True, slots=True)
class Classification:
    labels: Annotated[tuple[Label, ...], Bound(0, 1000)]


@dataclass(frozen=True, slots=True)
class DetectRequest:
    image: Image
    score_least: Score = 0.25
    overlap_most: Score = 0.45
    """Of two boxes of one label that overlap more (intersection over union), the better one stays."""
    most: Annotated[int, Bound(1, 1000)] = 100


@dataclass(frozen=True, slots=True)
class Box:
    """Corners in pixels; the origin is the picture's top left."""

    left: float
    top: float
    right: float
    bottom: float


@dataclass(frozen=True, slots=True)
class DetectedObject:
    label: Labels
    score: Score
    box: Box


@dataclass(frozen=True, slots=True)
class Detection:
    """The best first."""

    objects: Annotated[tuple[DetectedObject, ...], Bound(0, 1000)]
    width_pixels: Pixels
    height_pixels: Pixels


@dataclass(frozen=True, slots=True)
class ReadRequest:
    """Optical character recognition."""

    image: Image
    score_least: Score = 0.5


@dataclass(frozen=True, slots=True)
class TextLine:
    text: Annotated[str, Bound(0, 4096)]
    score: Score
    box: Box


@dataclass(frozen=True, slots=True)
class ReadText:
    """Lines from top to bottom."""

    lines: Annotated[tuple[TextLine, ...], Bound(0, 4096)]
    width_pixels: Pixels
    height_pixels: Pixels
