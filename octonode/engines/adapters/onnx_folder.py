"""The files of one ONNX model in its folder: which graph is opened, and what the JSON beside it says."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from octonode.errors import ConfigError, OctonodeError

JSON_BYTES_MAX: Final = 32 * 1024 * 1024
FOLDERS: Final = ("", "onnx")
"""Where a hub keeps graphs: beside the config, or one below."""


class ModelFolder:
    """`path` is the folder, or the graph itself where the model is one file."""

    def __init__(self, path: Path | None, engine: str) -> None:
        if path is None:
            raise ConfigError(f"the engine {engine} needs a model")
        self._graph = path if path.is_file() else None
        self.path = path.parent if path.is_file() else path

    def file(self, name: str) -> Path:
        """Raises OctonodeError FORMAT_REFUSED when the model has no such file."""
        found = self.path / name
        if self._alone or not found.is_file():
            raise OctonodeError(f"the model has no {name}, without which it cannot be run", code="FORMAT_REFUSED")
        return found

    def graph(self, *names: str) -> Path:
        """The graph of the first of these names, else the only one, else the largest. Raises as `file`."""
        if self._graph is not None:
            return self._graph
        for folder in FOLDERS:
            for name in names:
                if (self.path / folder / name).is_file():
                    return self.path / folder / name
        found = sorted(self._graphs(), key=lambda each: each.stat().st_size)
        if not found:
            raise OctonodeError("the model has no ONNX graph", code="FORMAT_REFUSED")
        return found[-1]

    def graph_like(self, marks: Sequence[str]) -> Path | None:
        """The one graph whose name has one of these words in it, such as `det` in `PP-OCRv6_det_small.onnx`."""
        words = {each: set(re.split("[^a-z0-9]+", each.stem.lower())) for each in self._graphs()}
        found = [each for each in words if words[each] & set(marks)]
        return found[0] if len(found) == 1 else None

    def json(self, name: str) -> Any:
        """The document, an empty map when it is not there. Raises OctonodeError FORMAT_REFUSED for what is no JSON."""
        path = self.path / name
        # the name may be the model's own words: nothing outside of the model is read
        if self._alone or ".." in Path(name).parts or Path(name).is_absolute() or not path.is_file():
            return {}
        try:
            if path.stat().st_size > JSON_BYTES_MAX:
                raise ValueError("it is too large")
            return json.loads(path.read_bytes())
        except (ValueError, RecursionError, OSError) as error:
            text = f"{name} of the model cannot be read ({type(error).__name__})"
            raise OctonodeError(text, code="FORMAT_REFUSED") from None

    def map(self, name: str) -> dict[str, Any]:
        """The same for a file that has to be a JSON object."""
        value = self.json(name)
        if not isinstance(value, dict):
            raise OctonodeError(f"{name} of the model is no JSON object", code="FORMAT_REFUSED")
        return value

    def lines(self, name: str) -> list[str]:
        return self.file(name).read_text("utf-8", errors="replace").splitlines()

    @property
    def _alone(self) -> bool:
        return self._graph is not None

    def _graphs(self) -> list[Path]:
        return [each for folder in FOLDERS for each in sorted((self.path / folder).glob("*.onnx"))]
