"""Every signed manifest this node has accepted, a file each under `OCTONODE_HOME/manifests/`, named by its CID.

They stay when a model is removed: the highest `seq` seen of a name is what rollbacks are told by.
"""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import Final

from octonode.errors import OctonodeError
from octonode.ids import PeerId
from octonode.ipfs.cid import Cid
from octonode.models.disk import disk_error
from octonode.models.manifest import SIGNED_BYTES_MAX, SignedManifest, verify
from octonode.models.names import NameBook
from octonode.models.placing import write_atomically

log = logging.getLogger(__name__)

MANIFESTS_MAX: Final = 10_000
_SUFFIX: Final = ".cbor"


class Catalogue:
    """Files of other processes are seen at the next look. Damaged files are logged and passed over."""

    def __init__(self, home: Path) -> None:
        self.directory = home / "manifests"
        self.names = NameBook(home)
        """What publishers say of the versions of a name."""
        self._known: dict[str, SignedManifest | None] = {}
        self._lock = threading.Lock()

    def all(self) -> tuple[SignedManifest, ...]:
        with self._lock:
            try:
                names = {path.name for path in self.directory.iterdir() if path.name.endswith(_SUFFIX)}
            except FileNotFoundError:
                names = set()
            for gone in self._known.keys() - names:
                del self._known[gone]
            for name in sorted(name for name in names - self._known.keys() if not name.startswith(".")):
                self._known[name] = self._load(name)
            return tuple(signed for signed in self._known.values() if signed is not None)

    def _load(self, name: str) -> SignedManifest | None:
        try:
            with open(self.directory / name, "rb") as file:
                signed = verify(file.read(SIGNED_BYTES_MAX + 1))
            if signed.cid.text + _SUFFIX == name:
                return signed
        except (OctonodeError, OSError) as error:
            log.warning("%s is damaged and passed over: %s", self.directory / name, error)
        return None

    def save(self, signed: SignedManifest) -> None:
        """Durable when this returns. Raises OctonodeError (DISK_FULL, or TOO_LARGE when there are too many)."""
        name = signed.cid.text + _SUFFIX
        if signed.cid not in {known.cid for known in self.all()}:
            if len(self._known) >= MANIFESTS_MAX:
                raise OctonodeError(
                    f"{MANIFESTS_MAX} manifests are kept in {self.directory}; remove old ones", code="TOO_LARGE"
                )
            try:
                self.directory.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise disk_error(error, self.directory) from error
            write_atomically(self.directory / name, signed.encode())

    def get(self, cid: Cid) -> SignedManifest | None:
        return next((signed for signed in self.all() if signed.cid == cid.v1), None)

    def named(self, publisher: PeerId, name: str) -> tuple[SignedManifest, ...]:
        """All versions, the highest seq last."""
        found = [s for s in self.all() if s.manifest.publisher == publisher and s.manifest.name == name]
        return tuple(sorted(found, key=lambda s: s.manifest.seq))

    def publishers_of(self, name: str) -> frozenset[PeerId]:
        return frozenset(signed.manifest.publisher for signed in self.all() if signed.manifest.name == name)

    def of_root(self, root: Cid) -> SignedManifest | None:
        """The manifest with the highest seq among those of `root`."""
        found = [signed for signed in self.all() if signed.manifest.root == root.v1]
        return max(found, key=lambda signed: signed.manifest.seq, default=None)
