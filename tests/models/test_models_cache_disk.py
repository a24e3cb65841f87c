"""A disk that is full, over quota, read-only or failing: a typed error that says what to do, and nothing half there."""

from __future__ import annotations

import errno
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from octonode.errors import OctonodeError
from octonode.ipfs.cid import raw_cid
from octonode.models import placing, staging
from octonode.models.adding import describe
from octonode.models.block_index import BlockIndex
from octonode.models.checking import verify_model
from octonode.models.disk import DISK_CODES, disk_error, probe, sqlite_error
from octonode.models.index import Index
from octonode.models.library import Library
from octonode.models.store import ModelStore
from octonode.models.writing import LeafWriter
from tests.models.disks import mounted, read_only

Make = Callable[..., Library]
MIB = 1024 * 1024
FAULTS = {
    errno.ENOSPC: "DISK_FULL", errno.EDQUOT: "DISK_FULL", errno.EFBIG: "DISK_FULL", errno.EROFS: "READ_ONLY",
    errno.EIO: "DISK_FAILED", errno.EACCES: "READ_ONLY",
}  # fmt: skip


def failing(number: int) -> Callable[..., Any]:
    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


def hidden(library: Library) -> list[str]:
    directory = library.store.directory
    return [path.name for path in directory.iterdir()] if directory.exists() else []


@pytest.mark.parametrize("number", FAULTS)
def test_every_fault_has_a_code_and_advice(number: int, tmp_path: Path) -> None:
    error = disk_error(OSError(number, os.strerror(number)), tmp_path, 5 * MIB)
    assert error.code == FAULTS[number]
    assert error.code in DISK_CODES
    assert str(tmp_path) in error.message
    assert "then run the same command again" in error.message


@pytest.mark.parametrize("number", FAULTS)
@pytest.mark.parametrize("place", ["preallocate", "index", "bitmap", "rename", "mkdir"])
def test_a_fetch_that_cannot_begin_leaves_nothing(
    number: int, place: str, make_library: Make, model_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = describe(model_file).layout
    library = make_library("a")
    with monkeypatch.context() as patched:
        if place == "preallocate":
            patched.setattr("octonode.models.store.preallocate", failing(number))
        elif place == "index":
            patched.setattr(Index, "create", failing(number))
        elif place == "bitmap":
            patched.setattr(staging.os, "fsync", failing(number))
        elif place == "rename":
            patched.setattr(Path, "rename", failing(number))
        else:
            patched.setattr(Path, "mkdir", failing(number))
        with pytest.raises(OctonodeError) as caught:
            library.store.prepare(layout)
        assert caught.value.code == FAULTS[number]
    assert library.list() == []
    assert hidden(library) == []
    assert library.store.prepare(layout).row.leaf_count == 11, "the same again, once the disk is well"


@pytest.mark.parametrize("number", FAULTS)
@pytest.mark.parametrize("place", ["copy", "index", "guard", "rename"])
def test_an_import_that_cannot_end_leaves_nothing(
    number: int, place: str, make_library: Make, model_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = make_library("a")
    with monkeypatch.context() as patched:
        if place == "copy":
            patched.setattr(placing, "_copy_some", failing(number))
            patched.setattr(placing, "_reflink", lambda source, target: False)
        elif place == "index":
            patched.setattr(Index, "create", failing(number))
        elif place == "guard":
            patched.setattr("octonode.models.store.guard", failing(number))
        else:
            patched.setattr(Path, "rename", failing(number))
        with pytest.raises(OctonodeError) as caught:
            library.add(model_file, placement="copy")
        assert caught.value.code == FAULTS[number]
    assert library.list() == []
    assert hidden(library) == []
    assert library.add(model_file).complete


@pytest.mark.parametrize("number", FAULTS)
@pytest.mark.parametrize("place", ["pwrite", "fdatasync", "bitmap"])
def test_a_write_that_fails_marks_nothing_and_the_next_one_goes_on(
    number: int, place: str, make_library: Make, model_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout, data, store = describe(model_file).layout, model_file.read_bytes(), make_library("a").store
    model = store.prepare(layout)
    writer = LeafWriter(model)
    first, second = layout.leaves[:2]
    writer.write(first, data[:MIB])
    writer.sync()
    with monkeypatch.context() as patched:
        name = {"pwrite": "pwrite", "fdatasync": "fdatasync", "bitmap": "pwrite"}[place]
        if place == "bitmap":
            writer.write(second, data[MIB : 2 * MIB])
        patched.setattr(f"octonode.models.{'held' if place == 'bitmap' else 'writing'}.os.{name}", failing(number))

        def write_and_sync() -> None:
            writer.write(second, data[MIB : 2 * MIB])
            writer.sync()

        with pytest.raises(OctonodeError) as caught:
            write_and_sync()
        assert caught.value.code == FAULTS[number]
    writer.close()
    assert model.have_bits() == 0b1
    again = LeafWriter(model)
    for leaf in layout.leaves[1:]:
        again.write(leaf, data[leaf.offset_bytes : leaf.offset_bytes + leaf.size_bytes])
    again.finish()
    again.close()
    assert model.row.complete
    assert model.paths[0].read_bytes() == data


@pytest.mark.parametrize("number", FAULTS)
def test_a_manifest_is_there_whole_or_not_at_all(
    number: int, make_library: Make, model_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = make_library("a")
    with monkeypatch.context() as patched:
        patched.setattr(placing.os, "fsync", failing(number))
        with pytest.raises(OctonodeError) as caught:
            placing.write_atomically(library.store.directory.parent / "manifest.cbor", b"x")
        assert caught.value.code == FAULTS[number]
    assert not list(library.store.directory.parent.glob("*manifest*"))


def test_a_real_disk_that_is_full(tmp_path: Path, make_library: Make, model_file: Path, monkeypatch: Any) -> None:
    """12 MiB of disk: the model of 10 MiB does not fit beside the margin, and without the margin only just."""
    home = tmp_path / "small"
    with mounted(home, 12 * MIB) as really:
        if not really:
            monkeypatch.setattr(os, "posix_fallocate", failing(errno.ENOSPC))
            monkeypatch.setattr(placing, "_copy_some", failing(errno.ENOSPC))
        store = ModelStore(home)
        with pytest.raises(OctonodeError) as caught:
            store.prepare(describe(model_file).layout)
        assert caught.value.code == "DISK_FULL"
        monkeypatch.setattr(placing, "FREE_BYTES_MARGIN", 0)
        if really:
            (home / "ballast").write_bytes(bytes(6 * MIB))
        for act in (
            lambda: store.prepare(describe(model_file).layout),
            lambda: store.adopt(describe(model_file).layout, [model_file], placement="copy"),
        ):
            with pytest.raises(OctonodeError) as caught:
                act()
            assert caught.value.code == "DISK_FULL"
            assert list(store.directory.iterdir()) == []
        if really:
            (home / "ballast").unlink()
            model = store.adopt(describe(model_file).layout, [model_file], placement="copy")
            assert model.row.complete
        store.close()


def test_an_index_on_a_full_disk_says_so(tmp_path: Path, model_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "small"
    with mounted(home, 14 * MIB) as really:
        monkeypatch.setattr(placing, "FREE_BYTES_MARGIN", 0)
        store = ModelStore(home)
        model = store.adopt(describe(model_file).layout, [model_file], placement="copy")
        if really:
            _fill(home / "ballast")
        else:
            monkeypatch.setattr(Index, "_write", failing_index)

        def write_much() -> None:
            for _ in range(50):
                store.set_flags(model.root, pinned=True)
                model.set_manifest(bytes(400_000), [])

        with pytest.raises(OctonodeError) as caught:
            write_much()
        assert caught.value.code == "DISK_FULL"
        store.touch(model.root)  # passes in silence
        body = store.block(raw_cid(model_file.read_bytes()[:MIB]))
        assert body is not None, "what is here is served"
        body.close()
        store.close()


def failing_index(self: Index, statement: str, values: tuple[Any, ...]) -> None:
    error = sqlite3.OperationalError("database or disk is full")
    error.sqlite_errorcode = sqlite3.SQLITE_FULL
    raise sqlite_error(error, self._path)


def _fill(path: Path) -> None:
    with open(path, "wb", buffering=0) as file:
        size = MIB
        while size:
            try:
                file.write(bytes(size))
            except OSError:
                size //= 2


def test_models_on_a_read_only_disk_are_used_and_served_and_nothing_is_added(
    make_library: Make, model_file: Path, gguf: Callable[..., bytes], tmp_path: Path
) -> None:
    library = make_library("a")
    entry = library.add(model_file, placement="copy")
    partial = describe(_other(tmp_path, gguf)).layout
    LeafWriter(library.store.prepare(partial)).close()
    before = library.show("tiny").row.last_used_ms
    library.store.close()
    with read_only(library.store.directory):
        library = make_library("a")
        shown = library.show("tiny")
        assert shown.complete
        assert shown.path.read_bytes() == model_file.read_bytes()
        body = library.store.block(raw_cid(model_file.read_bytes()[:MIB]))
        assert body is not None
        assert body.read() == model_file.read_bytes()[:MIB]
        body.close()
        assert library.verify("tiny").ok
        library.store.touch(entry.root)
        assert library.show("tiny").row.last_used_ms == before
        with library.store.require(entry.root).leases.take("engine", "engine llama"):
            pass
        for act in (
            lambda: library.add(_other(tmp_path, gguf, seed=3)),
            lambda: library.pin("tiny"),
            lambda: library.remove(f"cid:{entry.root}"),
            lambda: library.store.prepare(describe(_other(tmp_path, gguf, seed=4)).layout),
            lambda: LeafWriter(library.store.require(partial.root)),
        ):
            with pytest.raises(OctonodeError) as caught:
                act()
            assert caught.value.code == "READ_ONLY", caught.value.message
        library.store.close()
    library = make_library("a")
    library.pin("tiny")
    library.remove("tiny", force=True)


def _other(tmp_path: Path, gguf: Callable[..., bytes], seed: int = 2) -> Path:
    path = tmp_path / f"other{seed}.gguf"
    path.write_bytes(gguf(2 * MIB, seed=seed))
    return path


def test_damage_on_a_read_only_disk_is_not_handed_out(
    make_library: Make, model_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = make_library("a")
    entry = library.add(model_file, placement="copy")
    entry.path.chmod(0o644)
    status = entry.path.stat()
    with open(entry.path, "r+b") as file:
        file.seek(2 * MIB)
        file.write(b"rot")
    os.utime(entry.path, ns=(status.st_atime_ns, status.st_mtime_ns))  # as rot does: no time tells of it
    leaf = raw_cid(model_file.read_bytes()[2 * MIB : 3 * MIB])
    library.store.close()
    with read_only(library.store.directory) as really:
        library = make_library("a")
        model = library.store.require(entry.root)
        if not really:
            monkeypatch.setattr(type(model), "change_bits", failing(errno.EROFS))
        report = verify_model(model, entry.manifest)
        assert report.bad_leaves == (2,)
        assert library.store.block(leaf) is None
        assert library.store.have(entry.root) == b"\xfb\x07"
        library.store.close()


def test_a_limit_on_file_sizes_is_told_as_a_full_disk(tmp_path: Path, model_file: Path) -> None:
    """RLIMIT_FSIZE, in a process of its own: EFBIG from writes, an I/O error from SQLite."""
    program = """
import resource, sys
from pathlib import Path
from octonode.errors import OctonodeError
from octonode.models.adding import describe
from octonode.models.store import ModelStore
layout = describe(Path(sys.argv[2])).layout
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), resource.RLIM_INFINITY))
store = ModelStore(Path(sys.argv[1]))
try:
    store.adopt(layout, [Path(sys.argv[2])], placement="copy")
except OctonodeError as error:
    print(error.code, len(list(store.directory.iterdir())))
"""
    for limit in (2 * MIB, 12 * 1024):
        done = subprocess.run(
            [sys.executable, "-c", program, str(tmp_path / f"home{limit}"), str(model_file), str(limit)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.stdout == "DISK_FULL 0\n", done.stderr


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("SQLITE_FULL", "DISK_FULL"),
        ("SQLITE_IOERR", "DISK_FULL"),
        ("SQLITE_BUSY", "OVERLOADED"),
        ("SQLITE_CORRUPT", "INTERNAL"),
    ],
)
def test_what_sqlite_says_is_typed(code: str, expected: str, tmp_path: Path) -> None:
    error = sqlite3.OperationalError("?")
    error.sqlite_errorcode = getattr(sqlite3, code)
    assert sqlite_error(error, tmp_path / "index.sqlite").code == expected


def test_a_probe_tells_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert probe(tmp_path) is None
    monkeypatch.setattr("octonode.models.disk.os.fsync", failing(errno.EIO))
    found = probe(tmp_path)
    assert found is not None
    assert found.errno == errno.EIO
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"garbage" * 5000, b"SQLite format 3\0" + bytes(100)])
def test_the_index_of_blocks_is_a_cache_that_is_made_again(
    content: bytes, make_library: Make, model_file: Path
) -> None:
    library = make_library("a")
    library.add(model_file)
    library.store.close()
    (library.store.directory.parent / "blocks.sqlite").write_bytes(content)
    for name in ("blocks.sqlite-wal", "blocks.sqlite-shm"):
        (library.store.directory.parent / name).unlink(missing_ok=True)
    again = make_library("a")
    assert again.store.read_block(raw_cid(model_file.read_bytes()[:MIB])) == model_file.read_bytes()[:MIB]


def test_the_index_of_blocks_lives_in_memory_where_the_home_cannot_be_written(
    make_library: Make, model_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = make_library("a")
    library.add(model_file)
    library.store.close()
    home = library.store.directory.parent
    for path in home.glob("blocks.sqlite*"):
        path.unlink()
    with read_only(home) as really:
        if not really:  # SQLite asks no call of ours
            monkeypatch.setattr(BlockIndex, "_connect", _only_in_memory)
        again = make_library("a")
        assert again.store.read_block(raw_cid(model_file.read_bytes()[:MIB])) is not None
        again.store.close()


_connect = BlockIndex._connect


def _only_in_memory(self: BlockIndex, address: str) -> sqlite3.Connection:
    if address != ":memory:":
        raise sqlite3.OperationalError("unable to open database file")
    return _connect(self, address)
