"""The files on both sides of making a model smaller: the parent as the store has it, and what a child made of it."""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from octonode.engines.quantizing.said import lied
from octonode.errors import NotFound, OctonodeError
from octonode.hardware.facts import Hardware
from octonode.ipfs.cid import Cid
from octonode.models.adding import collect
from octonode.models.entry import ModelEntry
from octonode.models.formats import FormatInfo
from octonode.models.inspecting import inspect_paths
from octonode.models.library import FIRST_VERSION
from octonode.models.manifest import FILES_MAX
from octonode.node.gate import Gate
from octonode.tasks.residency import ResolvedModel

NAME_CHARACTERS_MAX: Final = 96


@dataclass(frozen=True, slots=True)
class Parent:
    """A model that is wholly here and passed the gate."""

    entry: ModelEntry
    info: FormatInfo
    source: Path
    """What a library opens: of GGUF the file, else the folder where there is one."""
    files: tuple[str, ...]
    """Paths in the folder; empty for a model of one file."""
    weights_bytes: int

    @property
    def root(self) -> str:
        return self.entry.root.text

    @property
    def cid(self) -> Cid:
        """What the new manifest names: the parent's manifest, or its root where nobody signed one."""
        return self.entry.manifest.cid if self.entry.manifest else self.entry.root

    @property
    def name(self) -> str:
        """`publisher/name@version`, or `cid:` and the root."""
        return self.entry.name if self.entry.manifest else f"cid:{self.root}"

    @property
    def version(self) -> str:
        return self.entry.manifest.manifest.version if self.entry.manifest else FIRST_VERSION

    @property
    def licence(self) -> str:
        return self.entry.manifest.manifest.licence if self.entry.manifest else self.info.licence

    @property
    def category(self) -> str:
        return self.entry.manifest.manifest.category if self.entry.manifest else self.info.category

    @property
    def context_tokens(self) -> int:
        return self.entry.manifest.manifest.context_tokens if self.entry.manifest else self.info.context_tokens

    def child_name(self, kind: str, wanted: str) -> str:
        """`wanted`, else the parent's name with the kind behind it. Raises BAD_REQUEST where nothing names it."""
        own = self.entry.manifest.manifest.name if self.entry.manifest else ""
        own = own or re.sub(r"[^a-z0-9._-]+", "-", self.info.name.lower()).strip("._-")
        if not wanted and not own:
            text = f"cid:{self.root} has no name; give the new model one: --name NAME"
            raise OctonodeError(text, code="BAD_REQUEST")
        behind = f"-{kind.lower()}"
        return wanted or f"{own[: NAME_CHARACTERS_MAX - len(behind)]}{behind}"


def capability_of(hardware: Hardware | None) -> tuple[int, int] | None:
    """The least of the GPUs that have one; None where none has, or it was not looked yet."""
    found = [gpu.compute_capability for gpu in (hardware.gpus if hardware else ())]
    return min((each for each in found if each), default=None)


async def parent_of(entry: ModelEntry, gate: Gate) -> Parent:
    """Raises MODEL_NOT_FOUND where it is not wholly here, FormatRefused."""
    if not entry.complete:
        text = f"{entry.name} is not wholly here; fetch it: octonode models fetch cid:{entry.root}"
        raise NotFound(text, code="MODEL_NOT_FOUND")
    info = await gate.info(entry.root.text)
    _, opens, folder = await gate.admit(ResolvedModel(root=entry.root.text, format=""), entry.path)
    source = opens if info.format == "gguf" else folder
    files = tuple(info.files) if source.is_dir() else ()
    sizes = {name: (folder / name if folder.is_dir() else folder).stat().st_size for name in info.files}
    weights = sum(sizes[name] for name, kind in info.files.items() if kind != "other")
    return Parent(entry, info, source, files, weights)


def checked(said: str, target: Path, bytes_max: int) -> Path:
    """The file or folder that a child says it made. It must be the target or lie in it, and there must be nothing but
    plain files of its own there: a link could name a file of ours. Raises ENGINE_FAILED."""
    path = Path(said)
    if path != target and (path.parent != target or path.name in ("", "..") or not path.is_file()):
        raise lied("what it made is not where it was to be")
    size_bytes = files = 0
    for folder, folders, names in os.walk(target):
        for name in (*folders, *names):
            status = os.lstat(os.path.join(folder, name))
            if stat.S_ISDIR(status.st_mode):
                continue
            if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
                raise lied("what it made is not a plain file")
            size_bytes, files = size_bytes + status.st_size, files + 1
            if size_bytes > bytes_max or files > FILES_MAX:
                raise lied(f"it wrote more than the {bytes_max // 2**20} MiB that the model may take")
    return path


def weights_bytes(path: Path) -> int:
    """Of a model on disk, without the files beside its weights. Raises FormatRefused."""
    items = collect(path)
    info = inspect_paths(items)
    return sum(item.stat().st_size for name, item in items if info.files[name] != "other")
