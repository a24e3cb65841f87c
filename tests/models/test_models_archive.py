"""A model as one CAR: whole, each block once, in whatever form its leaves are."""

from __future__ import annotations

import io
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from octonode.errors import VerificationFailed
from octonode.ipfs import car
from octonode.ipfs.cid import Cid
from octonode.ipfs.layout import DagWalk
from octonode.ipfs.unixfs import UNIXFS_V1_2025, profile_named
from octonode.models.archive import archive
from octonode.models.formats import SCRIPTED_MAGIC
from octonode.models.library import Library

MIB = 1024 * 1024


def blocks_of(data: bytes) -> dict[Cid, bytes]:
    found: dict[Cid, bytes] = {}
    for cid, block in car.read(io.BytesIO(data)):
        assert cid not in found
        assert cid.matches(block)
        found[cid] = block
    return found


@pytest.mark.parametrize("profile", [UNIXFS_V1_2025.name, "unixfs-v0-2015"])
def test_archive_is_all_of_a_model_and_nothing_twice(
    tmp_path: Path, make_library: Callable[..., Library], profile: str
) -> None:
    library = make_library("a")
    folder = tmp_path / "model"
    (folder / "more").mkdir(parents=True)
    data = SCRIPTED_MAGIC + random.Random(1).randbytes(3 * MIB) + bytes(3 * MIB)  # equal leaves at the end
    (folder / "a.model").write_bytes(data)
    (folder / "more" / "b.json").write_bytes(b"{}")
    entry = library.add(folder, profile=profile_named(profile))
    told: list[tuple[int, int]] = []
    blocks = blocks_of(b"".join(archive(library.store.require(entry.root), lambda *each: told.append(each))))
    walk = DagWalk(entry.root)
    while wanted := walk.wanted:
        for cid in wanted:
            walk.add(cid, next(block for each, block in blocks.items() if each.digest == cid.digest))
    layout = walk.layout()
    digests = {cid.digest for cid in blocks}
    assert {leaf.cid.digest for leaf in layout.leaves} <= digests
    assert layout.size_bytes == len(data) + 2
    assert told[-1][1] == layout.size_bytes
    assert told == sorted(told)


def test_damaged_block_is_not_handed_on(tmp_path: Path, make_library: Callable[..., Library]) -> None:
    library = make_library("a")
    path = tmp_path / "a.model"
    path.write_bytes(SCRIPTED_MAGIC + random.Random(1).randbytes(2 * MIB))
    entry = library.add(path, placement="copy")
    stored = entry.paths[0]
    status = stored.stat()
    stored.chmod(0o644)
    with stored.open("r+b") as file:
        file.seek(MIB + 5)
        file.write(b"?!")
    os.utime(stored, ns=(status.st_atime_ns, status.st_mtime_ns))  # the guard on times does not see it
    with pytest.raises(VerificationFailed, match="octonode models verify"):
        list(archive(library.store.require(entry.root)))
