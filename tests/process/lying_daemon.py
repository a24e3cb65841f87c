"""`octonode` that shows false manifests to peers who ask, as LIE says: with a broken signature, or its oldest one.

It publishes no name record, which would say better; with LIE=recordless that is all that is wrong with it.
"""

from __future__ import annotations

import os

from octonode.cli.main import run
from octonode.ids import PeerId
from octonode.node.names import Names
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


async def _unsaid(names: Names) -> None:
    """What is published stands in no record."""


LIES = {"forged": _forged, "oldest": _oldest, "recordless": _honest}
Shelf.manifest = LIES[os.environ["LIE"]]  # type: ignore[method-assign, assignment]
Names.renew = _unsaid  # type: ignore[method-assign]
run()
