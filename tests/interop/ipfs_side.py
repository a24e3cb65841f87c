"""Our side towards peers of IPFS: a host, a store and the bitswap service between them, without a daemon."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from pathlib import Path

import trio

from octonode.ids import PeerId
from octonode.ipfs.bitswap import Bitswap
from octonode.ipfs.cid import Cid
from octonode.ipfs.unixfs import Profile
from octonode.models.adding import describe
from octonode.models.fetch import BlockPeers, FetchLimits, FetchReport, Progress, fetch
from octonode.models.formats import SCRIPTED_MAGIC
from octonode.models.sources.bitswap import BitswapSource
from octonode.models.store import ModelStore
from tests.interop.hosts import OurHost

SOON = FetchLimits(set_aside_seconds=0.1)
"""So that a test need not wait until the network is asked for more holders."""


def write_model(path: Path, size_bytes: int, seed: str) -> Path:
    """A file of the scripted format; its bytes after the magic follow from `seed`."""
    path.write_bytes(SCRIPTED_MAGIC + random.Random(seed).randbytes(size_bytes - len(SCRIPTED_MAGIC)))
    return path


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class OurNode:
    """Made on a host that runs; `run` serves what `add` took in."""

    def __init__(self, host: OurHost, home: Path) -> None:
        self.host = host
        self.store = ModelStore(home)
        self.bitswap = Bitswap(host, self.store)  # type: ignore[arg-type]

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        try:
            await self.bitswap.run(task_status=task_status)
        finally:
            self.store.close()

    @property
    def address(self) -> str:
        return str(self.host.addresses[0])

    def add(self, file: Path, profile: Profile) -> Cid:
        described = describe(file, profile=profile)
        self.store.adopt(described.layout, described.sources)
        return described.layout.root

    def source(self, peer_id: PeerId) -> BitswapSource:
        return BitswapSource(self.bitswap, peer_id)

    async def fetch(
        self,
        root: str,
        peer_ids: Sequence[PeerId],
        *,
        peers: BlockPeers | None = None,
        progress: Progress | None = None,
    ) -> FetchReport:
        sources = [self.source(each) for each in peer_ids]
        return await fetch(Cid.parse(root), self.store, sources=sources, peers=peers, progress=progress, limits=SOON)

    def held(self, root: str) -> Path:
        """The file of a model that is here, complete."""
        model = self.store.require(Cid.parse(root))
        assert model.row.complete
        (path,) = model.paths
        return path
