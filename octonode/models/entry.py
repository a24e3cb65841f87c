"""What a reference means on this node: a model in the store, or what is to be asked for."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from octonode.ids import PeerId
from octonode.ipfs.cid import Cid
from octonode.models.index import ModelRow
from octonode.models.manifest import SignedManifest
from octonode.models.version import ANY_VERSION, VersionRange


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """A model in the store."""

    root: Cid
    row: ModelRow
    manifest: SignedManifest | None
    held_bytes: int
    paths: tuple[Path, ...]

    @property
    def complete(self) -> bool:
        return self.row.complete

    @property
    def name(self) -> str:
        """`publisher/name@version`, or the root where no manifest is known."""
        return self.manifest.manifest.reference if self.manifest else self.root.text

    @property
    def path(self) -> Path:
        """What an engine opens: the file of a model of one file, else the directory."""
        return self.paths[0] if len(self.paths) == 1 else Path(os.path.commonpath(self.paths))


@dataclass(frozen=True, slots=True)
class Resolved:
    """What a reference means here. `root` is None when the network must be asked for the manifest first."""

    reference: str
    root: Cid | None = None
    manifest: SignedManifest | None = None
    entry: ModelEntry | None = None
    publisher: PeerId | None = None
    name: str = ""
    versions: VersionRange = ANY_VERSION
    manifest_cid: Cid | None = None
    """Asked for by CID: the manifest to look for."""
    path: Path | None = None
    """`file:/path`: add it."""
