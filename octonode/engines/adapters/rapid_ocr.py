"""Reads the text in pictures with the networks of PaddleOCR, run by RapidOCR on the files of the model's folder.

RapidOCR gets paths for all it needs, so that it never downloads anything; workers could not either.
"""

from __future__ import annotations

import os
from collections.abc import Hashable, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image

from octonode.engines.adapters.base import Outcome, Progress, each_alone, refuse_skill
from octonode.engines.adapters.onnx_folder import ModelFolder
from octonode.engines.adapters.onnx_session import Array, Graph, library
from octonode.engines.adapters.pictures import open_picture
from octonode.engines.adapters.stoppable import Stop, Stopped, run_stoppable
from octonode.engines.contract import EngineFacts, LoadRequest
from octonode.errors import OctonodeError
from octonode.protocol.work.skills import WorkRequest
from octonode.protocol.work.vision import Box, ReadRequest, ReadText, TextLine

ENGINE: Final = "rapidocr"
LINES_MAX: Final = 4096
LINE_CHARACTERS_MAX: Final = 4096
PARTS: Final = {
    "Det": ("detection", "det"),
    "Rec": ("recognition", "rec"),
    "Cls": ("direction", "cls"),
}
"""Section of RapidOCR's settings -> what the name of its graph has in it."""
SIDE_PIXELS: Final = 736
"""To which the shorter side of a picture is enlarged before lines are looked for; RapidOCR's own."""
MAGNIFIED: Final = 2
"""At most so many times: a strip of one line would grow to millions of pixels and take seconds."""
KEYS: Final = "keys.txt"
_FIRST_PIXELS: Final = (64, 64)


class RapidOcrMaker:
    """Finds lines of text, turns those that stand on their head, and reads them."""

    async def load(self, request: LoadRequest, temporary_directory: Path) -> EngineFacts:
        return await run_stoppable(partial(self._load, request))

    def _load(self, request: LoadRequest, stop: Stop) -> EngineFacts:
        folder = ModelFolder(request.model_path, ENGINE)
        graphs = {part: Graph(path, request) for part, path in _paths(folder).items()}
        self._networks = {part: _Network(graph) for part, graph in graphs.items()}
        self._engine = _engine(folder, graphs, self._networks)
        self._detector = self._engine.text_det
        self._read(Image.new("RGB", _FIRST_PIXELS, "white"), 1.0, stop)
        return graphs["Rec"].facts(request, ENGINE, "vision", ("read",), flags={"rapidocr": version("rapidocr")})

    def sample(self) -> WorkRequest | None:
        """None: pictures differ in size, so each is run alone, and its lines together."""
        return None

    def key(self, request: WorkRequest) -> Hashable:
        if not isinstance(request, ReadRequest):
            raise refuse_skill(request, "read")
        return "read"

    async def make(self, requests: Sequence[WorkRequest], progress: Progress) -> Sequence[Outcome]:
        return await run_stoppable(partial(self._make, requests, progress))

    def close(self) -> None:
        pass

    def _make(self, requests: Sequence[WorkRequest], progress: Progress, stop: Stop) -> list[Outcome]:
        def read(request: ReadRequest) -> ReadText:
            found = self._read(open_picture(request.image), request.score_least, stop)
            progress(1, 1)  # each request is a batch of its own, see `sample`
            return found

        return each_alone(requests, ReadRequest, read)

    def _read(self, picture: Image.Image, score_least: float, stop: Stop) -> ReadText:
        """Raises Stopped, OctonodeError ENGINE_FAILED."""
        for network in self._networks.values():
            network.stop = stop
        self._detector.limit_side_len = min(SIDE_PIXELS, MAGNIFIED * min(picture.size))
        blue_first = np.ascontiguousarray(np.asarray(picture)[:, :, ::-1])
        try:
            found = self._engine(blue_first, use_cls="Cls" in self._networks, text_score=score_least)
        except (Stopped, OctonodeError):
            raise
        except Exception as error:
            stop.check()
            raise OctonodeError(f"RapidOCR failed: {type(error).__name__}", code="ENGINE_FAILED") from None
        if getattr(found, "boxes", None) is None or not getattr(found, "txts", None):
            return ReadText((), picture.width, picture.height)
        lines = [
            _line(*each, picture.size)
            for each in zip(found.txts[:LINES_MAX], found.scores, found.boxes, strict=False)
            if each[1] >= score_least
        ]
        return ReadText(tuple(lines), picture.width, picture.height)


class _Network:
    """Stands in RapidOCR for its own session, which could not be stopped and turns every failure into "no text"."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        [self._input] = graph.inputs
        self.stop = Stop()

    def __call__(self, values: Array) -> Array:
        [answer] = self._graph.run({self._input: values}, self.stop, self._graph.outputs[:1])
        return answer


def _paths(folder: ModelFolder) -> dict[str, Path]:
    """The graphs there are; the one for the direction may be missing. Raises OctonodeError FORMAT_REFUSED."""
    found = {part: path for part, marks in PARTS.items() if (path := folder.graph_like(marks)) is not None}
    for part in ("Det", "Rec"):
        if part not in found:
            name = PARTS[part][0]
            files = ", ".join(f"{marks[0]}.onnx" for marks in PARTS.values())
            text = f"the model has no graph for {name}; its files are {files}, and {KEYS} with its characters"
            raise OctonodeError(text, code="FORMAT_REFUSED")
    return found


def _engine(folder: ModelFolder, graphs: Mapping[str, Graph], networks: Mapping[str, _Network]) -> Any:
    """RapidOCR around graphs that are loaded already. Raises OctonodeError, ConfigError."""
    module, omegaconf = library("rapidocr", "ocr"), library("omegaconf", "ocr")
    keys = folder.path / KEYS
    settings = {"Global.log_level": "critical", "Rec.rec_keys_path": os.fspath(keys) if keys.is_file() else None}
    if "character" not in graphs["Rec"].session.get_modelmeta().custom_metadata_map and not keys.is_file():
        raise OctonodeError(
            f"the model does not say which characters it knows; {KEYS} is missing", code="FORMAT_REFUSED"
        )
    try:
        engine = module.RapidOCR(params=settings)
        loaders = {"Det": engine._load_det_model, "Cls": engine._load_cls_model, "Rec": engine._load_rec_model}
        for part, graph in graphs.items():
            with omegaconf.flag_override(engine.cfg, "allow_objects", True):
                engine.cfg[part].session = graph.session
            loaders[part]().session = networks[part]
    except Exception as error:
        reason = f"{type(error).__name__}: {str(error)[:160]}"
        raise OctonodeError(f"RapidOCR cannot take the model ({reason})", code="ENGINE_FAILED") from None
    return engine


def _line(text: str, score: float, corners: Array, size: tuple[int, int]) -> TextLine:
    """The upright box around a line that may stand askew, within the picture."""
    low, high = np.clip(corners.min(axis=0), 0, size), np.clip(corners.max(axis=0), 0, size)
    box = Box(float(low[0]), float(low[1]), float(high[0]), float(high[1]))
    return TextLine(text[:LINE_CHARACTERS_MAX], min(max(float(score), 0.0), 1.0), box)
