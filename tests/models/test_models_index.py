"""Indexes of models: those of earlier versions are brought up to date, others are refused."""

from __future__ import annotations

import hashlib
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from octonode.errors import OctonodeError
from octonode.ipfs.cid import Cid
from octonode.ipfs.layout import DagWalk
from octonode.ipfs.leaves import RAW_LEAVES
from octonode.models import index
from octonode.models.store import ModelStore
from tests.models.kept import blocks_of

MIB = 1024 * 1024
OLD_ROOT = Cid.parse("bafybeid7mtnfjd2eb7qu7a2jaw72fdylygabw2cenibcehiyu2ibkdb3wm")


@pytest.fixture
def old_store(home: Path, gguf: Callable[..., bytes]) -> Path:
    """A model as the version before wrapped leaves wrote it; index-v1.sql is a dump of its index."""
    directory = home / "models" / OLD_ROOT.text
    (directory / "data").mkdir(parents=True)
    (directory / "data" / "tiny.gguf").write_bytes(gguf(3 * MIB + 333))
    (directory / "have.bitmap").write_bytes(b"\x0f")
    db = sqlite3.connect(directory / "index.sqlite")
    db.executescript((Path(__file__).parent / "index-v1.sql").read_text())
    db.execute("PRAGMA user_version = 1")
    db.close()
    return home


def _version(home: Path) -> int:
    db = sqlite3.connect(home / "models" / OLD_ROOT.text / "index.sqlite")
    (version,) = db.execute("PRAGMA user_version").fetchone()
    db.close()
    return int(version)


def test_an_old_store_is_brought_up_to_date_in_place(old_store: Path) -> None:
    before = (old_store / "models" / OLD_ROOT.text / "data" / "tiny.gguf").read_bytes()
    model = ModelStore(old_store).require(OLD_ROOT)
    assert _version(old_store) == index.SCHEMA_VERSION == 2
    assert model.row.complete
    assert model.files[0].leaf_form == RAW_LEAVES
    layout = model.layout()
    walk = DagWalk(OLD_ROOT)
    walk.add(OLD_ROOT, layout.nodes[OLD_ROOT])
    assert layout.leaves == walk.layout().leaves
    assert model.paths[0].read_bytes() == before
    assert [hashlib.sha256(block).digest() for block in blocks_of(model).values()] == [
        cid.digest for cid in blocks_of(model)
    ]
    assert ModelStore(old_store).require(OLD_ROOT).row.complete  # and opened again


def test_two_processes_may_open_an_old_store_at_once(old_store: Path) -> None:
    path = old_store / "models" / OLD_ROOT.text / "index.sqlite"
    errors: list[BaseException] = []

    def open_it() -> None:
        try:
            opened = index.Index.open(path)
            opened.files()
            opened.close()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=open_it) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert _version(old_store) == 2


@pytest.fixture
def cannot_be_written(old_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "read_only", lambda directory: True)


@pytest.mark.usefixtures("cannot_be_written")
def test_an_old_store_on_a_read_only_disk_is_read_as_it_is(old_store: Path) -> None:
    model = ModelStore(old_store).require(OLD_ROOT)
    assert _version(old_store) == 1
    assert model.files[0].leaf_form == RAW_LEAVES
    assert len(model.layout().leaves) == 4
    assert blocks_of(model)


@pytest.mark.parametrize("version", [0, 3])
def test_an_index_of_a_later_version_is_refused(old_store: Path, version: int) -> None:
    path = old_store / "models" / OLD_ROOT.text / "index.sqlite"
    db = sqlite3.connect(path)
    db.execute(f"PRAGMA user_version = {version}")
    db.close()
    with pytest.raises(OctonodeError, match=f"has schema {version}"):
        index.Index.open(path)
    assert _version(old_store) == version


def test_a_damaged_index_says_so(old_store: Path) -> None:
    path = old_store / "models" / OLD_ROOT.text / "index.sqlite"
    path.write_bytes(b"no database at all, but long enough to be looked at" * 100)
    with pytest.raises(OctonodeError, match="damaged"):
        index.Index.open(path)
