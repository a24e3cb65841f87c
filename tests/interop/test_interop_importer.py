"""Our importer gives the CIDs of Helia and of Kubo, under every profile and at the edges of leaves and nodes."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import trio

from octonode.ipfs.unixfs import PROFILES, UNIXFS_V1_2025, Profile, import_file
from tests.interop.ipfs_peers import HeliaPeer, KuboPeer, Shape
from tests.interop.talking import GENEROUS_SECONDS

KIB, MIB = 1024, 1024 * 1024
SIZES = (0, 100, 256 * KIB, 256 * KIB + 1, MIB, MIB + 1, 5 * MIB)
TORN = 100
"""Bytes of the last leaf of the large files."""
KUBO_DEFAULT = PROFILES["unixfs-v0-2015"]
each_profile = pytest.mark.parametrize("profile", PROFILES.values(), ids=lambda profile: profile.name)


@pytest.fixture(scope="module", params=SIZES)
def file(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("files") / str(request.param)
    path.write_bytes(random.Random(request.param).randbytes(request.param))
    return path


def wide_file(path: Path, profile: Profile) -> Path:
    """One leaf more than a node has links, and a torn one: two levels. All leaves but the last are the same zeros."""
    with path.open("wb") as file:
        file.seek((profile.links_per_node + 1) * profile.leaf_bytes)
        file.write(random.Random(1).randbytes(TORN))
    return path


def shape_of(profile: Profile) -> Shape:
    return Shape(profile.leaf_bytes, profile.links_per_node, profile.raw_leaves, profile.cid_version)


@each_profile
async def test_helia_gives_the_same_cid(helia: HeliaPeer, file: Path, profile: Profile) -> None:
    with trio.fail_after(GENEROUS_SECONDS):
        assert str(import_file(file, profile=profile).root) == await helia.add(file, shape_of(profile))


@each_profile
async def test_helia_gives_the_same_cid_over_two_levels(helia: HeliaPeer, tmp_path: Path, profile: Profile) -> None:
    file = wide_file(tmp_path / "wide", profile)
    with trio.fail_after(GENEROUS_SECONDS):
        assert str(import_file(file, profile=profile).root) == await helia.add(file, shape_of(profile))


async def test_kubo_gives_the_same_cid(kubo: KuboPeer, file: Path) -> None:
    with trio.fail_after(GENEROUS_SECONDS):
        assert str(import_file(file, profile=KUBO_DEFAULT).root) == await kubo.add(file, only_hash=True)


async def test_kubo_gives_the_same_cid_over_two_levels(kubo: KuboPeer, tmp_path: Path) -> None:
    file = wide_file(tmp_path / "wide", KUBO_DEFAULT)
    with trio.fail_after(GENEROUS_SECONDS):
        assert str(import_file(file, profile=KUBO_DEFAULT).root) == await kubo.add(file, only_hash=True)


def test_ours_is_the_profile_that_helia_takes_by_itself() -> None:
    assert shape_of(UNIXFS_V1_2025) == Shape(MIB, 1024, raw_leaves=True, version=1)
