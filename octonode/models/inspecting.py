"""Inspecting models that lie on disk: files of the user, and models of the store before an engine sees one. Blocks."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO, Final

from octonode.errors import OctonodeError
from octonode.models.formats import FileBytes, FormatInfo, FormatRefused, inspect_model
from octonode.models.held import HeldModel

KEPT_MAX: Final = 256
"""Descriptions of models in memory; the least used goes."""


def inspect_paths(items: Sequence[tuple[str, Path]], *, signed: bool = False) -> FormatInfo:
    """What the files at (path in the model, path on disk) are together. Raises FormatRefused, and OctonodeError for a
    file that cannot be read. `signed` is that of `inspect_model`."""
    try:
        files = [FileBytes(name, path.stat().st_size, partial(_open, path)) for name, path in items]
        return inspect_model(files, signed=signed)
    except OSError as error:
        name = error.filename or "a file of the model"
        raise OctonodeError(f"{name} cannot be read: {error.strerror}", code="MODEL_UNAVAILABLE") from None


def _open(path: Path) -> BinaryIO:
    return open(path, "rb")


@dataclass(frozen=True, slots=True)
class Admitted:
    """A model that may be loaded."""

    info: FormatInfo
    opens: Path
    """What an engine of one file opens; the directory where the model has no such file."""
    folder: Path
    """What an engine opens that wants the files beside the weights too: the directory, or the only file."""


class Inspector:
    """Looks at each model of the store once, and again when its files changed. Safe from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: OrderedDict[tuple[str, bool], tuple[object, FormatInfo]] = OrderedDict()
        self.looks = 0
        """Models inspected so far; the rest was remembered."""

    def info(self, model: HeldModel, *, signed: bool) -> FormatInfo:
        """`signed`: its manifest is of a trusted publisher. Raises FormatRefused, OctonodeError (MODEL_UNAVAILABLE)."""
        items = [(file.path or Path(file.stored).name, model.path_of(file)) for file in model.files]
        key, stamp = (model.root.text, signed), _stamp(items)
        with self._lock:
            known = self._known.get(key)
            if known is not None and known[0] == stamp:
                self._known.move_to_end(key)
                return known[1]
        info = inspect_paths(items, signed=signed)
        with self._lock:
            self.looks += 1
            self._known[key] = (stamp, info)
            while len(self._known) > KEPT_MAX:
                self._known.popitem(last=False)
        return info

    def admit(self, model: HeldModel, *, signed: bool) -> Admitted:
        """The gate before an engine. Raises as `info`; the message names the model."""
        try:
            info = self.info(model, signed=signed)
        except FormatRefused as refused:
            raise FormatRefused(f"cid:{model.root} is not loaded: {refused.message}", detail=refused.detail) from None
        where = {file.path or Path(file.stored).name: model.path_of(file) for file in model.files}
        first, *_ = where
        folder = where[first]
        if len(where) > 1:
            for _ in first.split("/"):
                folder = folder.parent
        return Admitted(info, where[info.opens] if info.opens else folder, folder)


def _stamp(items: Sequence[tuple[str, Path]]) -> object:
    try:
        states = [path.stat() for _, path in items]
    except OSError as error:
        raise OctonodeError(f"{error.filename} cannot be read: {error.strerror}", code="MODEL_UNAVAILABLE") from None
    return tuple((state.st_ino, state.st_size, state.st_mtime_ns) for state in states)
