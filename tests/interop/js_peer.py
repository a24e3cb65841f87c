"""js-libp2p as a peer: js/peer.mjs, told what to do by a JSON line, answering with one."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.interop.json_peer import JsonPeer

FOLDER = Path(__file__).resolve().parents[2] / "build" / "js"
NODE = FOLDER / "node_modules" / ".bin" / "node"
SCRIPTS = Path(__file__).with_name("js")


def beside_the_packages(name: str) -> Path:
    """A copy of the script `name` of ours, beside the packages that it imports."""
    place = FOLDER / name
    shutil.copyfile(SCRIPTS / name, place)
    return place


class JsPeer(JsonPeer):
    """A running js peer."""

    def __init__(self, log: Path, *, pause_ms: int) -> None:
        command: list[str | Path] = [NODE, beside_the_packages("peer.mjs"), str(pause_ms)]
        super().__init__("js-libp2p", command, log=log, folder=FOLDER)

    def address(self, transport: str) -> str:
        (found,) = [each for each in self.addresses if ("/ws/" in each) == (transport == "ws")]
        return found

    async def hang_up(self, peer_id: str) -> None:
        await self.tell("close", peer=peer_id)
