"""A bare root: taken under a manifest that is found for it, or by the user's word, and refused else."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from octonode.errors import OctonodeError
from octonode.identity import NodeKey
from octonode.ipfs.cid import Cid, raw_cid
from octonode.models.library import Library
from octonode.models.manifest import SignedManifest
from octonode.models.store import ModelStore
from octonode.models.trust import TrustTable
from octonode.network.discovery import FoundManifest, Genuine
from octonode.network.peerbook import Peerbook
from octonode.node.shelf import Shelf
from octonode.node.vouching import Voucher
from octonode.protocol.announcement import Announcement, Holding, sign_announcement
from tests.node.test_node_resolving import PUBLISHER, STRANGER, US, manifest

CONTENT = b"the bytes of a model"
ROOT = raw_cid(CONTENT)


class Holders:
    """Stands in for `network.discovery`: peers that hold ROOT and show these manifests."""

    def __init__(self, peerbook: Peerbook, *shown: SignedManifest, lies: bytes = b"") -> None:
        self.shown = {signed.cid.text: signed.encode() for signed in shown}
        self.lies = lies
        self.searched = 0
        self._peerbook = peerbook

    async def holders(self, root: str) -> list[object]:
        self.searched += 1
        for number, cid in enumerate(self.shown):
            announce(self._peerbook, NodeKey(bytes([100 + number]) * 32), Holding(root, cid, "x/y", "1.0.0"))
        return []

    async def find_manifest_by_cid(self, cid: str, genuine: Genuine) -> list[FoundManifest]:
        found = [
            data for data in (self.lies or self.shown.get(cid, b"junk"), self.lies) if data and await genuine(data)
        ]
        return [FoundManifest(data, STRANGER.peer_id) for data in found]


def announce(peerbook: Peerbook, key: NodeKey, holding: Holding) -> None:
    now_ms = int(time.time() * 1000)
    announcement = Announcement(key.peer_id, 1, now_ms, now_ms + 60_000, holding=(holding,))
    peerbook.add(announcement, sign_announcement(key, announcement), now_ms)


class World:
    def __init__(self, home: Path, *shown: SignedManifest, allow_all: bool = False, lies: bytes = b"") -> None:
        self.library = Library(ModelStore(home), TrustTable(home, always=(US.peer_id,)), US)
        peerbook = Peerbook(US.peer_id)
        self.voucher = Voucher(self.library, Shelf(self.library), peerbook, allow_all=allow_all)
        self.holders = Holders(peerbook, *shown, lies=lies)
        self.voucher.connect(self.holders)  # type: ignore[arg-type]

    async def refused(self, root: Cid = ROOT) -> OctonodeError:
        with pytest.raises(OctonodeError) as caught:
            await self.voucher.manifest_for(root)
        return caught.value


async def test_a_root_nobody_signed_for_is_refused_until_the_user_says_so_once(home: Path) -> None:
    world = World(home)
    error = await world.refused()
    assert error.code == "UNSIGNED"
    assert "--allow-unsigned" in error.message
    assert error.row.http_status == 403
    assert await world.voucher.manifest_for(ROOT, allow_unsigned=True) is None
    searched = world.holders.searched
    assert await World(home).voucher.manifest_for(ROOT) is None  # for this root, over restarts
    assert world.holders.searched == searched
    assert (await World(home).refused(raw_cid(b"another"))).code == "UNSIGNED"


async def test_the_setting_takes_all(home: Path) -> None:
    assert await World(home, allow_all=True).voucher.manifest_for(ROOT) is None


async def test_a_manifest_that_holders_announce_is_found_and_needs_no_flag(home: Path) -> None:
    signed = manifest(PUBLISHER, content=CONTENT)
    world = World(home, signed)
    assert await world.voucher.manifest_for(ROOT) == signed  # its publisher is asked about when it is taken in
    world.library.trust(PUBLISHER.peer_id)
    assert await world.voucher.manifest_for(ROOT) == signed


async def test_a_manifest_that_was_accepted_before_is_enough(home: Path) -> None:
    signed = manifest(PUBLISHER, content=CONTENT)
    world = World(home)
    world.library.accept(signed.encode(), trust=True)
    assert await world.voucher.manifest_for(ROOT) == signed
    assert world.holders.searched == 0


async def test_the_trusted_one_is_taken_among_squatters_and_several_strangers_are_not_chosen_from(home: Path) -> None:
    squatter = manifest(STRANGER, "9.9.9", seq=99, content=CONTENT)
    signed = manifest(PUBLISHER, content=CONTENT)
    world = World(home, squatter, signed)
    error = await world.refused()
    assert error.code == "NOT_TRUSTED"
    assert "publisher" not in error.detail  # nobody is offered for trust
    assert PUBLISHER.peer_id in error.message
    assert STRANGER.peer_id in error.message
    assert await world.voucher.manifest_for(ROOT, allow_unsigned=True) is None  # the bytes alone
    world.library.trust(PUBLISHER.peer_id)
    assert await world.voucher.manifest_for(ROOT) == signed


@pytest.mark.parametrize("kind", ["of other bytes", "another than announced", "junk"])
async def test_a_manifest_that_is_not_of_this_root_vouches_for_nothing(home: Path, kind: str) -> None:
    other = manifest(PUBLISHER, content=b"other bytes")
    lies = {
        "of other bytes": b"",
        "another than announced": manifest(STRANGER, content=CONTENT).encode(),
        "junk": b"\xff",
    }
    world = World(home, other, lies=lies[kind])
    assert (await world.refused()).code == "UNSIGNED"
