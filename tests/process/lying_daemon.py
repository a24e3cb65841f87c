"""`octonode` that shows false manifests to peers who ask, as LIE says: with a broken signature, or its oldest one."""

from __future__ import annotations

import os

from octonode.cli.main import run
from octonode.ids import PeerId
from octonode.node.shelf import Shelf

_honest = Shelf.manifest


def _forged(shelf: Shelf, publisher: PeerId, name: str) -> bytes | None:
    """One bit of the signature is not what it was."""
    data = _honest(shelf, publisher, name)
    held = next(each.signed for each in shelf.public() if each.signed)
    signature = held.signatures[0].signature
    return data and data.replace(signature, bytes([signature[0] ^ 1]) + signature[1:])


def _oldest(shelf: Shelf, publisher: PeerId, name: str) -> bytes | None:
    found = [each.signed for each in shelf.public() if each.signed and each.name == f"{publisher}/{name}"]
    return min(found, key=lambda signed: signed.manifest.seq).encode() if found else None


Shelf.manifest = {"forged": _forged, "oldest": _oldest}[os.environ["LIE"]]  # type: ignore[method-assign, assignment]
run()
