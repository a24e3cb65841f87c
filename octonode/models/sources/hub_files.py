"""Which files of a hub's repository make a model: chosen by name and size before one byte is downloaded. Pure.

By default what we can load and what stands beside it. Pickles are never taken, whatever is asked for: a file that is
named as one is not downloaded, and one that hides under another name is refused by its content later.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final

from octonode.errors import NotFound, OctonodeError
from octonode.models.adding import SIDE_SUFFIXES
from octonode.models.formats import FormatRefused
from octonode.models.manifest import FILES_MAX, safe_path
from octonode.models.reference import HubReference

PICKLES: Final = (
    ".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".npy", ".npz", ".h5", ".keras", ".msgpack", ".ot",
    ".mar", ".nemo", ".dill", ".tar", ".gz", ".tgz", ".zip", ".7z", ".exe", ".dll", ".so", ".dylib",
)  # fmt: skip
"""Endings that are pickles, archives that may hold one, or programs."""
WEIGHTS: Final = (".gguf", ".safetensors", ".onnx")
BESIDE_ONNX: Final = (".onnx_data", ".onnx.data", ".data")
LISTED_MAX: Final = 40
"""Choices that an error shows."""
_PART: Final = re.compile(r"-(\d{5})-of-(\d{5})\.gguf\Z")
_NOT_ALONE: Final = re.compile(r"(?:.*/)?mmproj[^/]*\.gguf\Z", re.IGNORECASE)
"""A projector for images, which stands beside a language model and is none."""


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file of a repository at one commit."""

    path: str
    size_bytes: int
    sha256: str = ""
    """Of its content, where the hub keeps it as a large file; hex."""
    blob: str = ""
    """Its git blob id, for the small ones."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What is to be downloaded. `folder` is the part of all paths that the model's own leave out."""

    files: tuple[HubFile, ...]
    folder: str = ""

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)

    @property
    def alone(self) -> bool:
        return len(self.files) == 1


def choose(reference: HubReference, files: Sequence[HubFile], patterns: Sequence[str] = ()) -> Choice:
    """The files that `reference` means; `patterns` (as in a shell) replace the default of what is taken.

    Raises NotFound, FormatRefused (a pickle is asked for, or nothing else is there), BAD_REQUEST that lists choices.
    """
    here = [file for file in files if safe_path(file.path) and not _hidden(file.path)]
    named = reference.file.rstrip("/")
    if any(file.path == named for file in here):
        chosen, folder = _one_file(named, here), named.rpartition("/")[0]
    else:
        below = [file for file in here if not named or file.path.startswith(f"{named}/")]
        if not below:
            near = ", ".join(sorted({f.path for f in here if f.path.endswith(WEIGHTS)})[:LISTED_MAX])
            raise NotFound(f"{reference.repository} has no file or folder {named!r}; it has {near or 'no model files'}")
        chosen, folder = _all_of(reference, below, patterns), named
    if len(chosen) > FILES_MAX:
        raise FormatRefused(f"{reference} would be {len(chosen)} files; a model has at most {FILES_MAX}")
    return Choice(tuple(sorted(chosen, key=lambda file: file.path)), folder)


def _hidden(path: str) -> bool:
    return any(part.startswith(".") for part in path.split("/"))


def _one_file(named: str, here: Sequence[HubFile]) -> list[HubFile]:
    """The file that was asked for by name; all parts of a GGUF that is split."""
    if named.lower().endswith(PICKLES):
        raise FormatRefused(
            f"{named} is a pickle, an archive or a program by its name, which is never taken; choose a GGUF, "
            "SafeTensors or ONNX file"
        )
    part = _PART.search(named)
    stem = named[: part.start()] if part else ""
    return [
        file for file in here
        if file.path == named or (part and file.path.startswith(stem) and _part_of(file.path, stem, part[2]))
    ]  # fmt: skip


def _part_of(path: str, stem: str, count: str) -> bool:
    found = _PART.fullmatch(path[len(stem) :])
    return found is not None and found[2] == count


def _all_of(reference: HubReference, below: Sequence[HubFile], patterns: Sequence[str]) -> list[HubFile]:
    """A whole repository or folder: one GGUF if there are any, else SafeTensors, else ONNX, with what stands beside."""
    clean = [file for file in below if not file.path.lower().endswith(PICKLES)]
    if patterns:
        found = [file for file in clean if any(fnmatchcase(file.path, each) for each in patterns)]
        if not found:
            raise NotFound(f"no file of {reference} matches models.hub_patterns ({', '.join(patterns)})")
        return found
    quantizations = _quantizations(clean)
    if len(quantizations) > 1:
        raise _which(reference, "several quantizations", quantizations)
    if quantizations:
        return next(iter(quantizations.values()))
    beside = [file for file in clean if file.path.lower().endswith(SIDE_SUFFIXES)]
    tensors = _tensors(clean)
    if tensors:
        return tensors + beside
    graphs = {file.path: [file] for file in clean if file.path.lower().endswith(".onnx")}
    if len(graphs) > 1 and not reference.file:
        folders = {path.rpartition("/")[0]: each for path, each in graphs.items() if "/" in path}
        raise _which(reference, "several ONNX graphs", graphs | folders)
    if graphs:
        data = [file for file in clean if file.path.lower().endswith(BESIDE_ONNX)]
        return [each for group in graphs.values() for each in group] + data + beside
    if len(clean) < len(below):
        raise FormatRefused(
            f"{reference} has pickles or archives alone, which are never taken: a pickle runs code when it is loaded; "
            "look for a repository with GGUF, SafeTensors or ONNX files"
        )
    raise FormatRefused(f"{reference} has no GGUF, SafeTensors or ONNX file")


def _quantizations(files: Sequence[HubFile]) -> dict[str, list[HubFile]]:
    """The GGUF models among `files` by the path to name, the parts of a split one together."""
    found: dict[str, list[HubFile]] = {}
    for file in sorted(files, key=lambda each: each.path):
        if not file.path.lower().endswith(".gguf") or _NOT_ALONE.match(file.path):
            continue
        part = _PART.search(file.path)
        key = f"{file.path[: part.start()]}-00001-of-{part[2]}.gguf" if part else file.path
        found.setdefault(key, []).append(file)
    return found


def _tensors(files: Sequence[HubFile]) -> list[HubFile]:
    """SafeTensors, without the second copy that some publishers put beside the shards."""
    found = [file for file in files if file.path.lower().endswith(".safetensors")]
    without = [file for file in found if not file.path.rpartition("/")[2].startswith("consolidated")]
    return without or found


def _which(reference: HubReference, what: str, choices: dict[str, list[HubFile]]) -> OctonodeError:
    lines = [
        f"  {HubReference(reference.repository, path, reference.revision)}  "
        f"{sum(file.size_bytes for file in group) / 1e9:.2f} GB"
        for path, group in sorted(choices.items())[:LISTED_MAX]
    ]
    more = f"\n  and {len(choices) - LISTED_MAX} more" if len(choices) > LISTED_MAX else ""
    return OctonodeError(
        f"{reference} has {what}; say which:\n" + "\n".join(lines) + more,
        code="BAD_REQUEST",
        detail={"choices": sorted(choices)[:LISTED_MAX]},
    )
