"""What a reference means: only a manifest that its publisher signed decides, whatever peers announce."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest

from octonode.errors import OctonodeError
from octonode.identity import NodeKey
from octonode.ids import PeerId
from octonode.ipfs.cid import Cid, raw_cid
from octonode.models.formats import SCRIPTED_MAGIC
from octonode.models.library import Library
from octonode.models.manifest import ModelFile, ModelManifest, SignedManifest, sign
from octonode.models.store import ModelStore
from octonode.models.trust import TrustTable
from octonode.network.discovery import FoundManifest, Genuine
from octonode.network.peerbook import Peerbook
from octonode.node.listing import facts_of
from octonode.node.resolving import Resolver
from octonode.node.shelf import Shelf
from octonode.protocol.announcement import Announcement, Serving, sign_announcement

US, PUBLISHER, STRANGER = (NodeKey(bytes([number]) * 32) for number in (1, 2, 3))


def manifest(
    key: NodeKey, version: str = "1.0.0", *, seq: int = 1, content: bytes = b"a", name: str = "m"
) -> SignedManifest:
    root = raw_cid(content)
    file = ModelFile("model.gguf", len(content), root, bytes(32), "gguf")
    return sign(ModelManifest(key.peer_id, name, version, (file,), root, seq=seq), key)


class Peers:
    """Stands in for `network.discovery`: what peers show for a name or a CID."""

    def __init__(self, *shown: bytes) -> None:
        self.shown = shown
        self.asked = 0

    async def find_manifest(self, publisher: PeerId, name: str, genuine: Genuine) -> list[FoundManifest]:
        self.asked += 1
        return [FoundManifest(data, STRANGER.peer_id) for data in self.shown]

    async def find_manifest_by_cid(self, cid: str, genuine: Genuine) -> list[FoundManifest]:
        self.asked += 1
        return [FoundManifest(data, STRANGER.peer_id) for data in self.shown]


class World:
    def __init__(self, home: Path, *shown: bytes) -> None:
        self.library = Library(ModelStore(home), TrustTable(home, always=(US.peer_id,)), US)
        self.shelf = Shelf(self.library)
        self.peerbook = Peerbook(US.peer_id)
        self.peers = Peers(*shown)
        self.resolver = Resolver(self.library, self.shelf, self.peerbook)
        self.resolver.connect(self.peers)  # type: ignore[arg-type]

    async def root(self, reference: str) -> Cid:
        return (await self.resolver.root_and_manifest(reference))[0]


async def test_a_name_means_what_its_publisher_signed_last(home: Path) -> None:
    old, new = manifest(PUBLISHER, seq=1, content=b"old"), manifest(PUBLISHER, seq=2, content=b"new")
    world = World(home, old.encode(), new.encode())
    assert await world.root(f"{PUBLISHER.peer_id}/m") == new.manifest.root


async def test_the_highest_version_in_range_is_taken(home: Path) -> None:
    shown = [manifest(PUBLISHER, v, seq=i + 1, content=v.encode()) for i, v in enumerate(("1.2.0", "1.10.0", "2.0.0"))]
    world = World(home, *(each.encode() for each in shown))
    assert await world.root(f"{PUBLISHER.peer_id}/m@^1.0.0") == raw_cid(b"1.10.0")
    assert await world.root(f"{PUBLISHER.peer_id}/m") == raw_cid(b"2.0.0")


async def test_manifests_of_others_and_forged_ones_are_passed_over(home: Path) -> None:
    right = manifest(PUBLISHER, content=b"right")
    forged = manifest(PUBLISHER, "9.0.0", seq=9, content=b"forged")
    forged_bytes = replace(forged, signatures=(replace(forged.signatures[0], signature=bytes(64)),)).encode()
    other = manifest(STRANGER, "9.0.0", seq=9, content=b"other")
    misnamed = manifest(PUBLISHER, "9.0.0", seq=9, content=b"misnamed", name="other-model")
    world = World(home, forged_bytes, other.encode(), misnamed.encode(), b"junk", right.encode())
    assert await world.root(f"{PUBLISHER.peer_id}/m") == right.manifest.root


async def test_only_forgeries_are_said_to_be_forgeries(home: Path) -> None:
    world = World(home, manifest(STRANGER).encode(), b"junk")
    with pytest.raises(OctonodeError) as caught:
        await world.root(f"{PUBLISHER.peer_id}/m")
    assert caught.value.code == "VERIFICATION_FAILED"


async def test_a_manifest_asked_for_by_cid_must_be_that_one(home: Path) -> None:
    wanted, other = manifest(PUBLISHER, content=b"wanted"), manifest(PUBLISHER, "2.0.0", seq=2, content=b"other")
    assert await World(home, other.encode(), wanted.encode()).root(f"cid:{wanted.cid}") == wanted.manifest.root
    with pytest.raises(OctonodeError) as caught:
        await World(home, other.encode()).root(f"cid:{wanted.cid}")
    assert caught.value.code == "MODEL_NOT_FOUND"


async def test_a_bare_name_is_looked_up_among_trusted_publishers_alone(home: Path) -> None:
    right, wrong = manifest(PUBLISHER, content=b"right"), manifest(STRANGER, content=b"wrong")
    world = World(home, right.encode(), wrong.encode())
    for key in (PUBLISHER, STRANGER):
        announce(world.peerbook, key, f"{key.peer_id}/m", raw_cid(b"x").text)
    with pytest.raises(OctonodeError) as caught:
        await world.root("m")
    assert caught.value.code == "MODEL_NOT_FOUND"
    world.library.trust(PUBLISHER.peer_id)
    assert await world.root("m") == right.manifest.root


async def test_an_announced_name_is_never_shown_as_trusted(home: Path) -> None:
    world = World(home)
    world.library.trust(PUBLISHER.peer_id)
    root = raw_cid(b"evil").text
    announcement = announce(world.peerbook, STRANGER, f"{PUBLISHER.peer_id}/m", root)
    facts = facts_of(root, US.peer_id, library=world.library, serving=[announcement])
    assert facts.reference == f"{PUBLISHER.peer_id}/m"
    assert facts.servers == (STRANGER.peer_id,)
    assert not facts.trusted


async def test_what_is_held_answers_without_asking_anybody(home: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(SCRIPTED_MAGIC + random.Random(1).randbytes(5000))
    world = World(home)
    entry = world.library.add(path, name="mine")
    await world.shelf.refresh()
    assert await world.root("mine") == entry.root
    assert await world.root(f"{US.peer_id}/mine") == entry.root
    assert await world.root(f"cid:{entry.root}") == entry.root
    assert world.peers.asked == 0


async def test_a_name_is_asked_for_once_a_minute(home: Path, autojump_clock: object) -> None:
    import trio

    world = World(home, manifest(PUBLISHER).encode())
    for _ in range(3):
        await world.root(f"{PUBLISHER.peer_id}/m")
    assert world.peers.asked == 1
    await trio.sleep(61)
    await world.root(f"{PUBLISHER.peer_id}/m")
    assert world.peers.asked == 2


@pytest.mark.parametrize(
    ("reference", "code", "words"),
    [
        ("hf:org/repo", "MODEL_NOT_FOUND", "octonode models fetch hf:org/repo"),
        ("file:/tmp/model.gguf", "UNSUPPORTED", "octonode models add"),
    ],
)
async def test_what_cannot_be_asked_for_says_what_to_do(home: Path, reference: str, code: str, words: str) -> None:
    with pytest.raises(OctonodeError, match=words) as caught:
        await World(home).root(reference)
    assert caught.value.code == code


def announce(peerbook: Peerbook, key: NodeKey, name: str, root: str) -> Announcement:
    import time

    now_ms = int(time.time() * 1000)
    announcement = Announcement(key.peer_id, 1, now_ms, now_ms + 60_000, serving=(Serving(root=root, name=name),))
    peerbook.add(announcement, sign_announcement(key, announcement), now_ms)
    return announcement
