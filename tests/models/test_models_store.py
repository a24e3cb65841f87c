"""The store: nothing half-written is visible, changed files are found, damage is repaired and never served."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from octonode.errors import OctonodeError
from octonode.ipfs.cid import raw_cid
from octonode.models import bitmap
from octonode.models.adding import describe
from octonode.models.library import Library
from octonode.models.store import ModelStore
from octonode.models.writing import LeafWriter

Make = Callable[..., Library]
MIB = 1024 * 1024


def test_leaves_are_marked_only_after_the_sync(home: Path, model_file: Path) -> None:
    described = describe(model_file)
    store = ModelStore(home)
    model = store.prepare(described.layout, file_name="tiny.gguf")
    assert model.paths[0].stat().st_size == model_file.stat().st_size
    assert model.paths[0].stat().st_blocks * 512 >= model_file.stat().st_size  # the disk is taken already
    data, writer = model_file.read_bytes(), LeafWriter(model)
    for leaf in described.layout.leaves[:3]:
        writer.write(leaf, data[leaf.offset_bytes : leaf.offset_bytes + leaf.size_bytes])
    assert (model.have_bits(), writer.pending_bytes) == (0, 3 * MIB)
    writer.sync()
    assert (model.have_bits(), model.row.complete) == (0b111, False)
    assert store.read_block(described.layout.leaves[2].cid) == data[2 * MIB : 3 * MIB]
    assert store.read_block(described.layout.leaves[3].cid) is None
    assert store.run(described.layout.root, 0, 4 * MIB, nodes=False) is None
    with pytest.raises(OctonodeError) as caught:
        LeafWriter(model)
    assert caught.value.code == "ALREADY_RUNNING"
    for leaf in described.layout.leaves[3:]:
        writer.write(leaf, data[leaf.offset_bytes : leaf.offset_bytes + leaf.size_bytes])
    writer.finish()
    writer.close()
    assert model.row.complete
    assert model.paths[0].stat().st_mode & 0o777 == 0o444
    assert model.paths[0].read_bytes() == data
    again = ModelStore(home).require(described.layout.root)
    assert again.row.complete
    assert again.layout().leaves == described.layout.leaves


def test_a_touched_file_is_hashed_again_and_a_changed_one_is_not_served(make_library: Make, model_file: Path) -> None:
    library = make_library("a")
    entry = library.add(model_file, placement="reference")
    store, leaf = library.store, raw_cid(model_file.read_bytes()[:MIB])
    os.utime(model_file)
    assert store.block(leaf) is not None
    with open(model_file, "r+b") as file:
        file.write(b"changed!")
    assert store.block(leaf) is None
    body = store.run(entry.root, 2 * MIB, 3 * MIB - 1, nodes=False)
    assert body is not None  # the rest is right and is still served
    body.close()
    assert store.have(entry.root) == b"\xfe\x07"
    assert not store.require(entry.root).row.complete


def test_verify_finds_damage_and_a_touched_file_is_right_again(make_library: Make, model_file: Path) -> None:
    library = make_library("a")
    entry = library.add(model_file, placement="copy")
    os.utime(entry.path)
    assert library.verify("tiny").ok
    entry.path.chmod(0o644)
    with open(entry.path, "r+b") as file:
        file.seek(5 * MIB + 3)
        file.write(b"!")
    report = library.verify("tiny")
    assert (report.ok, report.bad_leaves, report.bad_files) == (False, (5,), ("tiny.gguf",))
    assert bitmap.from_bytes(library.store.have(entry.root) or b"", 11) == bitmap.full(11) & ~(1 << 5)
    entry.path.unlink()
    assert len(library.verify("tiny").bad_leaves) == 10


def test_repair_never_writes_to_the_users_file(make_library: Make, model_file: Path) -> None:
    library = make_library("a")
    good = model_file.read_bytes()
    entry = library.add(model_file)  # linked or reflinked
    with open(model_file, "r+b") as file:
        file.write(b"mine, changed")
    changed = model_file.read_bytes()
    library.verify("tiny")
    model = library.store.require(entry.root)
    if model.row.complete:  # a reflink: the store's bytes were never shared
        assert entry.path.read_bytes() == good
        return
    writer = LeafWriter(model)
    leaf = model.layout().leaves[0]
    writer.write(leaf, good[:MIB])
    writer.finish()
    writer.close()
    assert model.row.complete
    assert model.paths[0].read_bytes() == good
    assert model_file.read_bytes() == changed


def test_what_a_dead_process_left_is_swept_and_was_never_visible(
    make_library: Make, model_file: Path, gguf: Callable[..., bytes]
) -> None:
    library = make_library("a")
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    left = library.store.directory / f".new-{int(dead.stdout)}-1-bafy"
    (left / "data").mkdir(parents=True)
    assert library.list() == []
    library.add(model_file)
    assert not left.exists()
    assert len(list(library.store.directory.iterdir())) == 1


def test_two_stores_on_one_home_see_each_other(make_library: Make, model_file: Path) -> None:
    one, two = make_library("a"), make_library("a")
    assert two.list() == []
    entry = one.add(model_file)
    assert two.show("tiny").root == entry.root
    two.remove("tiny")
    assert one.list() == []
    assert one.store.block(entry.root) is None
    one.add(model_file)
    assert two.store.have(entry.root) == b"\xff\x07"


def test_the_quota_and_a_too_small_disk(make_library: Make, model_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    described = describe(model_file)
    library = make_library("a", disk_bytes_max=MIB)
    with pytest.raises(OctonodeError, match="disk_bytes_max") as caught:
        library.store.prepare(described.layout)
    assert caught.value.code == "DISK_FULL"
    library = make_library("b")
    usage = shutil.disk_usage(model_file)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=5 * MIB))
    with pytest.raises(OctonodeError, match="MiB are free") as caught:
        library.store.prepare(described.layout)
    assert caught.value.code == "DISK_FULL"
    assert library.list() == []
    assert not list(library.store.directory.iterdir())


def test_a_damaged_index_is_an_error_that_says_what_to_do(make_library: Make, model_file: Path) -> None:
    entry = make_library("a").add(model_file)
    library = make_library("a")
    index = library.store.directory / entry.root.text / "index.sqlite"
    index.write_bytes(b"garbage" * 1000)
    with pytest.raises(OctonodeError, match="damaged"):
        library.store.require(entry.root)
    assert library.list() == []
    library.remove(f"cid:{entry.root}")
    assert not list(library.store.directory.iterdir())


def test_bitmaps() -> None:
    bits = 0b1011_0111
    assert bitmap.to_bytes(bits, 9) == b"\xb7\x00"
    assert bitmap.from_bytes(b"\xff\xff", 9) == bitmap.full(9) == 0x1FF
    assert bitmap.from_bytes(b"\x01", 9) == 1
    assert list(bitmap.members(bits)) == [0, 1, 2, 4, 5, 7]
    assert (bitmap.run_length(bits, 0, 9), bitmap.run_length(bits, 4, 1), bitmap.run_length(bits, 3, 5)) == (3, 1, 0)
