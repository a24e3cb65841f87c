"""Networks that nobody trained, with answers that can be computed by hand. Their configs say `"synthetic": true`.

No package of an index carries a general image classifier or detector with real weights, so that tests of the way from
a picture to labels and boxes use these.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np

from scripts.models.graphs import Graph
from scripts.models.ready import pictures
from scripts.models.recipes import write_json, write_readme

OPSET: Final = 17
COLOURS: Final = ("red", "green", "blue")
LABELS: Final = {str(number): colour for number, colour in enumerate(COLOURS)}
SHARPNESS: Final = 5.0
"""Factor from a mean of -1 to 1 to a logit: a picture of one pure colour gets a probability above 0.99."""
DETECTOR_PIXELS: Final = 160
ECHOES: Final = ((0.0, 1.0, 0.95), (2.0, 1.0, 0.8), (0.0, 1.2, 0.7))
"""(shift in pixels, factor on the size, score) of the boxes for one square: two of them are for suppression to drop."""
ON: Final = 0.5
"""A pixel is of a colour where that channel passes both others together by more than this."""


def make_colours(folder: Path, models: Path) -> None:
    """pixel_values [batch, 3, height, width] -> logits [batch, 3]: which channel is brightest on the whole."""
    graph = Graph()
    mean = graph.node("ReduceMean", "pixel_values", axes=[2, 3], keepdims=0)
    graph.node("Mul", mean, graph.constant(SHARPNESS, "float32"), outputs=["logits"])
    graph.save(
        folder / "model.onnx",
        {"pixel_values": ("float", ("batch", 3, "height", "width"))},
        {"logits": ("float", ("batch", len(COLOURS)))},
        opset=OPSET,
    )
    _describe(folder, "SyntheticForImageClassification", "image-classification", "classifier: the mean colour decides")
    write_json(folder / "preprocessor_config.json", pictures(32, 32, mean=0.5, std=0.5))


def make_squares(folder: Path, models: Path) -> None:
    """images [batch, 3, 160, 160] -> output0 [batch, 4 + 3, 9] as YOLOv8 has it: centre, width, height, class scores.

    For each colour the box around all of its pixels, three times: as it is, shifted, and larger with lower scores.
    Without a pixel of that colour its scores are 0.
    """
    graph = Graph()
    others = np.full((3, 3), -1, np.float32)
    np.fill_diagonal(others, 1)
    excess = graph.node("Conv", "images", graph.weight("colours", others.reshape(3, 3, 1, 1)))
    on = graph.node("Cast", graph.node("Greater", excess, graph.constant(ON, "float32")), to=1)
    left, right, across = _span(graph, on, axis=2)
    top, bottom, _ = _span(graph, on, axis=3)
    half, echoes = graph.constant(0.5, "float32"), np.asarray(ECHOES, np.float32)
    shift, size, score = (graph.constant(echoes[:, column], "float32") for column in range(3))
    rows = []
    for low, high in ((left, right), (top, bottom)):
        rows.append(graph.node("Add", graph.node("Mul", graph.node("Add", low, high), half), shift))
    for low, high in ((left, right), (top, bottom)):
        rows.append(graph.node("Mul", graph.node("Sub", high, low), size))
    # [batch, colour, echo] -> one row of boxes a number, as many as colours x echoes
    flat = graph.constant([0, 1, len(COLOURS) * len(ECHOES)])
    rows = [graph.node("Reshape", row, flat) for row in rows]
    rows.append(_class_scores(graph, graph.node("Mul", across, score)))
    graph.node("Concat", *rows, axis=1, outputs=["output0"])
    graph.save(
        folder / "model.onnx",
        {"images": ("float", ("batch", 3, DETECTOR_PIXELS, DETECTOR_PIXELS))},
        {"output0": ("float", ("batch", 4 + len(COLOURS), len(COLOURS) * len(ECHOES)))},
        opset=OPSET,
    )
    _describe(folder, "SyntheticForObjectDetection", "object-detection", "detector: a box around each pure colour")
    write_json(
        folder / "preprocessor_config.json",
        pictures(DETECTOR_PIXELS, DETECTOR_PIXELS, mean=0, std=1) | {"do_pad": True},
    )


def _span(graph: Graph, on: str, *, axis: int) -> tuple[str, str, str]:
    """First and last + 1 place along the axis that is left, and 1.0 where there is one at all; [batch, colour, 1]."""
    line = graph.node("ReduceMax", on, axes=[axis], keepdims=0)
    last = graph.constant(DETECTOR_PIXELS, "float32")
    turned = graph.node("Slice", line, *(graph.constant([each]) for each in (-1, -DETECTOR_PIXELS - 1, 2, -1)))
    first = graph.node("Cast", graph.node("ArgMax", line, axis=2), to=1)
    behind = graph.node("Sub", last, graph.node("Cast", graph.node("ArgMax", turned, axis=2), to=1))
    return first, behind, graph.node("ReduceMax", line, axes=[2])


def _class_scores(graph: Graph, scores: str) -> str:
    """[batch, colour, echo] -> [batch, class, colour x echo]: a box scores for its own colour alone."""
    own = np.eye(len(COLOURS), dtype=np.float32).reshape(1, len(COLOURS), len(COLOURS), 1)
    wide = graph.node("Unsqueeze", scores, graph.constant([1]))
    apart = graph.node("Mul", wide, graph.weight("own", own))
    return graph.node("Reshape", apart, graph.constant([0, len(COLOURS), len(COLOURS) * len(ECHOES)]))


def _describe(folder: Path, architecture: str, task: str, what: str) -> None:
    config = {"architectures": [architecture], "model_type": "synthetic", "synthetic": True, "pipeline_tag": task}
    labels = {"id2label": LABELS, "label2id": {name: int(number) for number, name in LABELS.items()}}
    write_json(folder / "config.json", config | labels)
    write_readme(
        folder, f"Synthetic {what}", "apache-2.0", "Synthetic: made for tests by octonode, trained on nothing."
    )
