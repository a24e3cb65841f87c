"""What a YOLO-shaped detector says, as boxes: thresholds, and suppression of the same thing found twice. Pure.

Shapes: [4 + classes, boxes] (v8 and later), the same turned round, and with a score of its own for "something is here"
between box and classes (v5). Boxes are centre, width, height in pixels of what the network saw.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from octonode.errors import OctonodeError

Array = npt.NDArray[Any]

CANDIDATES_MAX: Final = 4096
"""Boxes over the threshold, the best first, that suppression looks at: its work grows with their square."""
CLASSES_MAX: Final = 65_536


def layout_of(shape: tuple[int, ...], classes: int) -> tuple[bool, bool]:
    """(whether boxes come first, whether there is a score of its own) for [a, b], with -1 for what is not fixed.

    `classes` is the count of labels, 0 when no file has them. Raises OctonodeError FORMAT_REFUSED.
    """
    for own_score in (False, True):
        rows = 4 + classes + own_score
        if classes and shape[0] == rows:
            return False, own_score
        if classes and shape[1] == rows:
            return True, own_score
    if not classes and min(shape) > 4:
        return shape[0] > shape[1], False  # there are always more boxes than classes
    raise OctonodeError(
        f"the detector's answer of shape {list(shape)} is not that of a YOLO with {classes} labels in config.json "
        "(id2label)",
        code="FORMAT_REFUSED",
    )


def read_boxes(values: Array, layout: tuple[bool, bool], score_least: float) -> tuple[Array, Array, Array]:
    """(corners [n, 4], scores [n], classes [n]) of what passes the threshold, the best first."""
    boxes_first, own_score = layout
    rows = values if boxes_first else values.T
    scores = rows[:, 5:] * rows[:, 4:5] if own_score else rows[:, 4:]
    classes = scores.argmax(axis=1)
    best = np.clip(scores[np.arange(len(scores)), classes], 0, 1)
    kept = np.flatnonzero(best >= max(score_least, 1e-6))
    kept = kept[np.argsort(-best[kept], kind="stable")][:CANDIDATES_MAX]
    centre, half = rows[kept, :2], np.abs(rows[kept, 2:4]) / 2
    corners = np.concatenate([centre - half, centre + half], axis=1)
    return corners, best[kept], classes[kept]


def suppressed(corners: Array, classes: Array, overlap_most: float, most: int) -> list[int]:
    """Indices of the boxes that stay, in order: each that no better one of its class overlaps by more than this.

    Overlap is intersection over union. The boxes come the best first.
    """
    areas = np.prod(np.maximum(corners[:, 2:] - corners[:, :2], 0), axis=1)
    alive = np.ones(len(corners), bool)
    kept: list[int] = []
    for index in range(len(corners)):
        if not alive[index]:
            continue
        kept.append(index)
        if len(kept) == most:
            break
        low = np.maximum(corners[index + 1 :, :2], corners[index, :2])
        high = np.minimum(corners[index + 1 :, 2:], corners[index, 2:])
        shared = np.prod(np.maximum(high - low, 0), axis=1)
        union = np.maximum(areas[index + 1 :] + areas[index] - shared, 1e-9)
        same = classes[index + 1 :] == classes[index]
        alive[index + 1 :] &= ~(same & (shared / union > overlap_most))
    return kept
