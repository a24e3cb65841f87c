"""Labels of pictures, or boxes of what is in them, with ONNX Runtime. Which of the two a model has, its files say."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image

from octonode.engines.adapters import detecting
from octonode.engines.adapters.base import Outcome, Progress, refuse_skill
from octonode.engines.adapters.onnx_folder import ModelFolder
from octonode.engines.adapters.onnx_session import Array, Graph
from octonode.engines.adapters.pictures import open_picture, png_of
from octonode.engines.adapters.preprocessing import Frame, Pixels, preprocessing_of
from octonode.engines.adapters.stoppable import Stop, run_stoppable
from octonode.engines.contract import EngineFacts, LoadRequest
from octonode.errors import OctonodeError
from octonode.protocol.work.skills import WorkRequest
from octonode.protocol.work.vision import (
    Box,
    Classification,
    ClassifyRequest,
    DetectedObject,
    Detection,
    DetectRequest,
    Label,
)

ENGINE: Final = "onnx-vision"
LABEL_CHARACTERS_MAX: Final = 256
_DETECTORS: Final = ("yolo", "objectdetection", "detector")
_SUMS_TO_ONE: Final = 1e-3
_SAMPLE_PIXELS: Final = (640, 480)


class OnnxVisionMaker:
    """One classifier or one detector."""

    async def load(self, request: LoadRequest, temporary_directory: Path) -> EngineFacts:
        return await run_stoppable(partial(self._load, request))

    def _load(self, request: LoadRequest, stop: Stop) -> EngineFacts:
        folder = ModelFolder(request.model_path, ENGINE)
        config = folder.map("config.json")
        self._graph = Graph(folder.graph("model.onnx"), request)
        if len(self._graph.inputs) != 1:
            raise OctonodeError(
                f"the graph asks for {len(self._graph.inputs)} inputs; one picture is given", code="FORMAT_REFUSED"
            )
        [self._input] = self._graph.inputs
        self._labels = labels_of(config)
        self._many = config.get("problem_type") == "multi_label_classification"
        self.skill = skill_of_graph(config, self._graph)
        self._output = self._graph.outputs[0]
        self._preprocessing = preprocessing_of(
            folder.map("preprocessor_config.json"), self._graph.shape_of(self._input), letterbox=self.skill == "detect"
        )
        self._check_answer(stop)
        return self._graph.facts(
            request, ENGINE, "vision", (self.skill,),
            flags={"width": self._preprocessing.width, "height": self._preprocessing.height},
        )  # fmt: skip

    def _check_answer(self, stop: Stop) -> None:
        """One run on an empty picture, which shows the shape of the answer. Raises OctonodeError FORMAT_REFUSED."""
        picture = Image.new("RGB", (self._preprocessing.width, self._preprocessing.height))
        [answer] = self._run([self._preprocessing.apply(picture)[0]], stop)
        if self.skill == "detect":
            if answer.ndim != 2:
                text = f"the detector answers in {answer.ndim} dimensions, which is not the shape of YOLO"
                raise OctonodeError(text, code="FORMAT_REFUSED")
            self._layout = detecting.layout_of(answer.shape, len(self._labels))

    def sample(self) -> WorkRequest | None:
        picture = png_of(Image.effect_mandelbrot(_SAMPLE_PIXELS, (-2, -1.5, 1, 1.5), 32).convert("RGB"))
        return ClassifyRequest(picture) if self.skill == "classify" else DetectRequest(picture)

    def key(self, request: WorkRequest) -> Hashable:
        wanted = ClassifyRequest if self.skill == "classify" else DetectRequest
        if not isinstance(request, wanted):
            raise refuse_skill(request, self.skill)
        return self.skill

    async def make(self, requests: Sequence[WorkRequest], progress: Progress) -> Sequence[Outcome]:
        return await run_stoppable(partial(self._make, requests, progress))

    def close(self) -> None:
        pass

    def _make(self, requests: Sequence[WorkRequest], progress: Progress, stop: Stop) -> list[Outcome]:
        outcomes: list[Outcome | None] = [None] * len(requests)
        prepared: dict[int, tuple[Pixels, Frame]] = {}
        for index, request in enumerate(requests):
            stop.check()
            assert isinstance(request, ClassifyRequest | DetectRequest)
            try:
                prepared[index] = self._preprocessing.apply(open_picture(request.image))
            except OctonodeError as error:
                outcomes[index] = error
        if prepared:
            answers = self._run([values for values, _ in prepared.values()], stop)
            for index, answer in zip(prepared, answers, strict=True):
                outcomes[index] = self._result(requests[index], answer, prepared[index][1])
        progress(len(requests), len(requests))
        return [outcome for outcome in outcomes if outcome is not None]

    def _run(self, pictures: Sequence[Pixels], stop: Stop) -> list[Array]:
        """One answer a picture; together where the graph takes more than one. Raises as `Graph.run`."""
        together = self._graph.shape_of(self._input)[0] != 1
        groups = [pictures] if together else [[each] for each in pictures]
        answers: list[Array] = []
        for group in groups:
            feeds = {self._input: self._graph.cast(self._input, np.stack(group))}
            [values] = self._graph.run(feeds, stop, [self._output])
            if len(values) != len(group):
                raise OctonodeError("the graph gives fewer answers than it got pictures", code="ENGINE_FAILED")
            answers += list(values.astype(np.float32, copy=False))
        return answers

    def _result(self, request: WorkRequest, answer: Array, frame: Frame) -> Outcome:
        if isinstance(request, DetectRequest):
            return self._detection(request, answer, frame)
        assert isinstance(request, ClassifyRequest)
        scores = probabilities(answer.reshape(-1), many=self._many)
        best = np.argsort(-scores, kind="stable")[: request.top]
        return Classification(tuple(Label(self._label(int(each)), float(scores[each])) for each in best))

    def _detection(self, request: DetectRequest, answer: Array, frame: Frame) -> Detection:
        corners, scores, classes = detecting.read_boxes(answer, self._layout, request.score_least)
        kept = detecting.suppressed(corners, classes, request.overlap_most, request.most)
        found = []
        for index, corner in zip(kept, frame.back(corners[kept]), strict=True):
            box = Box(*(float(each) for each in corner))
            if box.right > box.left and box.bottom > box.top:
                found.append(DetectedObject(self._label(int(classes[index])), float(scores[index]), box))
        return Detection(tuple(found), frame.width_pixels, frame.height_pixels)

    def _label(self, index: int) -> str:
        return self._labels.get(index, f"class {index}")[:LABEL_CHARACTERS_MAX]


def skill_of_graph(config: Mapping[str, Any], graph: Graph) -> str:
    """`detect` or `classify`, by what the config says, else by the dimensions of the answer."""
    said = " ".join(map(str, (config.get("architectures"), config.get("model_type"), config.get("pipeline_tag"))))
    plain = said.lower().replace("-", "").replace("_", "")
    if "imageclassification" in plain or "cls" in plain:
        return "classify"
    if any(mark in plain for mark in _DETECTORS):
        return "detect"
    return "detect" if graph.ranks[graph.outputs[0]] == 3 else "classify"


def labels_of(config: Mapping[str, Any]) -> dict[int, str]:
    """Number -> label, from `id2label` or, as Ultralytics writes it, `names`."""
    said = config.get("id2label", config.get("names"))
    if isinstance(said, list):
        said = dict(enumerate(said))
    if not isinstance(said, dict):
        return {}
    try:
        found = {int(key): str(value) for key, value in said.items()}
    except ValueError:
        raise OctonodeError("id2label of the model has keys that are no numbers", code="FORMAT_REFUSED") from None
    if len(found) > detecting.CLASSES_MAX:
        raise OctonodeError(f"the model has {len(found)} labels", code="FORMAT_REFUSED")
    return found


def probabilities(values: Array, *, many: bool = False) -> Array:
    """Of each class, from logits; what already adds up to 1 stays. `many`: classes do not exclude each other. Pure."""
    values = values.astype(np.float64)
    if many:
        return np.asarray(1 / (1 + np.exp(-np.clip(values, -60, 60))))
    if (values >= 0).all() and abs(values.sum() - 1) < _SUMS_TO_ONE:
        return np.asarray(np.minimum(values, 1))
    raised = np.exp(values - values.max())
    return np.asarray(raised / raised.sum())
